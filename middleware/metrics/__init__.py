"""Prometheus metrics, and a listener that serves them."""

from greensmtp.middleware.metrics.metrics import Metrics

__all__ = ["Metrics"]
