"""Prometheus metrics, and the HTTP listener that serves them."""

from greensmtp.middleware.metrics.metrics import Metrics

__all__ = ["Metrics"]
