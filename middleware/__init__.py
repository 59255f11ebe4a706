"""The catalogue of middleware. Each one can be used alone, and uses only what a third party's package could."""

if __name__ != "greensmtp.middleware":
    raise ImportError(
        f"this package is greensmtp.middleware; import it by that name, not as {__name__!r} "
        "(the folder stands at the top of the repository, and is installed inside greensmtp)"
    )

from greensmtp.middleware.access_list import AccessList
from greensmtp.middleware.auth import Auth
from greensmtp.middleware.chaos import Chaos
from greensmtp.middleware.connection_limit import ConnectionLimit
from greensmtp.middleware.early_talker import EarlyTalker
from greensmtp.middleware.load_shed import LoadShed
from greensmtp.middleware.logging.logging import Logging
from greensmtp.middleware.metrics import Metrics
from greensmtp.middleware.policy_hook import PolicyHook
from greensmtp.middleware.rate_limit import RateLimit
from greensmtp.middleware.tarpit import Tarpit
from greensmtp.middleware.tracing import Tracing

__all__ = [
    "AccessList",
    "Auth",
    "Chaos",
    "ConnectionLimit",
    "EarlyTalker",
    "LoadShed",
    "Logging",
    "Metrics",
    "PolicyHook",
    "RateLimit",
    "Tarpit",
    "Tracing",
]
