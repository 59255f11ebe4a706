"""The catalogue of middleware: each in its own file, each usable alone, none knowing more than the public contract."""

if __name__ != "greensmtp.middleware":
    raise ImportError(
        f"this package is greensmtp.middleware; import it by that name, not as {__name__!r} "
        "(the folder stands at the top of the repository, and is installed inside greensmtp)"
    )

from greensmtp.middleware.auth import Auth
from greensmtp.middleware.log import Logging

__all__ = ["Auth", "Logging"]
