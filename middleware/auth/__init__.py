"""AUTH (RFC 4954): the middleware, its backends and mechanisms."""

from greensmtp.middleware.auth.auth import Auth

__all__ = ["Auth"]
