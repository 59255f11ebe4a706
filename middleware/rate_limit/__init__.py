"""Rate limits, counted in memory or in Redis."""

from greensmtp.middleware.rate_limit.rate_limit import RateLimit

__all__ = ["RateLimit"]
