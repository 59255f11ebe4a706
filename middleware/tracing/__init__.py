"""OpenTelemetry spans of sessions, messages, commands and other middleware."""

from greensmtp.middleware.tracing.traced import Traced, traced
from greensmtp.middleware.tracing.tracing import Tracing

__all__ = ["Traced", "Tracing", "traced"]
