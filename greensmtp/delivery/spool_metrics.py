"""Metrics of spools for Prometheus, if prometheus-client is installed.

They are in the default registry, which ``Metrics`` serves. With several processes, each knows the whole folder, so its
gauges are not added up.
"""

from __future__ import annotations

from functools import cache
from typing import Any


class SpoolMetrics:
    """The metrics of one spool."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._kept = _metrics()

    def set_waiting(self, messages: int, oldest: float) -> None:
        """Set the number of waiting messages, and the age of the oldest in seconds."""
        if self._kept is not None:
            self._kept["messages"].labels(self._path).set(messages)
            self._kept["oldest"].labels(self._path).set(oldest)

    def count(self, result: str, recipients: int) -> None:
        """Count the recipients of an attempt.

        :param result: ``sent``, ``failed`` or ``deferred``.
        """
        if self._kept is not None and recipients:
            self._kept["recipients"].labels(self._path, result).inc(recipients)

    def count_report(self, kind: str) -> None:
        """Count a report to a sender.

        :param kind: ``failed``, ``delayed``, ``relayed`` or ``delivered``.
        """
        if self._kept is not None:
            self._kept["reports"].labels(self._path, kind).inc()


@cache
def _metrics() -> dict[str, Any] | None:
    """Return the metrics, which are made once in a process; None without prometheus-client."""
    try:
        from prometheus_client import Counter, Gauge
    except ModuleNotFoundError:
        return None
    return {
        "messages": Gauge(
            "greensmtp_spool_messages", "Messages that wait in a spool.", ["spool"], multiprocess_mode="livemax"
        ),
        "oldest": Gauge(
            "greensmtp_spool_oldest_seconds", "The age of the oldest of them.", ["spool"], multiprocess_mode="livemax"
        ),
        "recipients": Counter(
            "greensmtp_spool_recipients", "Recipients that were tried: sent, failed or deferred.", ["spool", "result"]
        ),
        "reports": Counter(
            "greensmtp_spool_reports",
            "Reports to senders: failed, delayed, relayed or delivered.",
            ["spool", "kind"],
        ),
    }
