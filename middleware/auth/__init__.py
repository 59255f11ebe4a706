"""AUTH (RFC 4954): the middleware, its backends and its mechanisms."""

from greensmtp.middleware.auth.auth import Auth

__all__ = ["Auth"]
