"""One log record for each transaction and each session."""

from greensmtp.middleware.logging.logging import Logging

__all__ = ["Logging"]
