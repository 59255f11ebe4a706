"""The performance targets: a table of bounds on ratios measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.results import Results

PYTHON_AND_NODE = ("smtp_server", "smtp_protocol", "aiosmtpd", "aiosmtpd_uvloop", "slimta")

Measure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """A row.

    :param bound: ``measured`` must be at most this, or, where ``at_least``, at least this.
    """

    what: str
    measured: Measure
    bound: float
    at_least: bool = False
    unit: str = "x"

    def met(self, value: float) -> bool:
        """Return True if a value meets the target."""
        return value >= self.bound if self.at_least else value <= self.bound


def _ratio(workload: str, server: str, other: str, metric: str = "cpu") -> Measure:
    """Measure the ratio of one server's median to another's."""

    def measured(results: Results) -> float | None:
        one, base = results.median(workload, server, metric), results.median(workload, other, metric)
        return one / base if one is not None and base else None

    return measured


def _best_of_peers(workload: str, server: str) -> Measure:
    """Measure how many times less CPU a server takes than the best Python or node peer."""

    def measured(results: Results) -> float | None:
        ours = results.median(workload, server, "cpu")
        theirs = [value for peer in PYTHON_AND_NODE if (value := results.median(workload, peer, "cpu")) is not None]
        return min(theirs) / ours if ours and theirs else None

    return measured


def _value(workload: str, server: str, metric: str, scale: float = 1.0) -> Measure:
    def measured(results: Results) -> float | None:
        value = results.median(workload, server, metric)
        return None if value is None else value / scale

    return measured


def _within(workload: str, server: str, metric: str, base: str) -> Measure:
    """Measure the ratio of one of a server's metrics to another."""

    def measured(results: Results) -> float | None:
        one, other = results.median(workload, server, metric), results.median(workload, server, base)
        return one / other if one is not None and other else None

    return measured


def _two_workers(results: Results) -> float | None:
    """Measure the gain of a second worker, where each has a core beside the load's."""
    return _ratio("workers", "workers_2", "workers_1", "rate")(results) if machine.ROOM_FOR_TWO else None


def _both(what: str, workload: str, server: str, other: str, bounds: tuple[float, float]) -> Iterator[Target]:
    """Yield the bounds of a ratio of CPU, for plain Python and for the compiled build."""
    for name, bound in zip((server, f"{server}_compiled"), bounds, strict=True):
        shown = what if name == server else f"{what}, compiled"
        yield Target(shown, _ratio(workload, name, other), bound)


def _both_less(what: str, workload: str, server: str, other: str, bounds: tuple[float, float]) -> Iterator[Target]:
    """Yield how many times less CPU than another server is to be taken, for plain Python and for the compiled build."""
    for name, bound in zip((server, f"{server}_compiled"), bounds, strict=True):
        shown = what if name == server else f"{what}, compiled"
        yield Target(shown, _ratio(workload, other, name), bound, at_least=True)


TARGETS: tuple[Target, ...] = (
    *_both("1 kB kept: plain to tuned", "kept", "plain", "tuned", (1.9, 1.4)),
    *_both("1 kB kept: full, lines logged, to tuned", "kept", "logging", "tuned", (2.8, 2.0)),
    *_both("1 kB kept: plain to node's smtp-server", "kept", "plain", "smtp_server", (0.8, 0.6)),
    *_both("1 kB, a connection each: plain to tuned", "each", "plain", "tuned", (1.3, 1.15)),
    *_both("1 kB pipelined: plain to tuned", "pipelined", "plain", "tuned", (2.2, 1.5)),
    *_both_less("1 kB kept: full, lines logged, less than aiosmtpd", "kept", "logging", "aiosmtpd", (3, 4)),
    Target("1 kB, a connection each: the best peer to plain", _best_of_peers("each", "plain"), 1.5, at_least=True),
    Target("1 kB pipelined: messages a second gained", _value("pipelined", "plain", "gain"), 1.8, at_least=True),
    Target("1 MB: plain to the floor", _ratio("big", "plain", "bare"), 1.15),
    Target("1 MB: less CPU than smtp-sink", _ratio("big", "sink", "plain"), 2.5, at_least=True),
    Target("1 MB: less CPU than aiosmtpd", _ratio("big", "aiosmtpd", "plain"), 15, at_least=True),
    Target("idle connection, of 3,500", _value("idle", "plain", "memory", 1e3), 12, unit=" kB"),
    Target("idle connection, of 10,000", _value("idle_10k", "plain", "memory", 1e3), 12, unit=" kB"),
    Target("1 GB by DATA: memory grows by", _value("data_1g", "pipe", "grown", 1e6), 8, unit=" MB"),
    Target("1 GB by BDAT: memory grows by", _value("bdat_1g", "pipe", "grown", 1e6), 8, unit=" MB"),
    Target("TLS: plain to a bare TLS loop", _ratio("tls", "plain", "bare"), 1.2),
    Target("STARTTLS: plain to a bare TLS loop", _ratio("starttls", "plain", "bare"), 1.2),
    Target("a slow handler: the others' p99", _within("slow", "slow", "p99", "p99_without"), 1.5),
    Target("stored: aiosmtpd's Mailbox", _ratio("main", "storing", "storing_aiosmtpd", "rate"), 6, at_least=True),
    Target("stored: Dovecot's LMTP", _ratio("main", "storing", "storing_dovecot", "rate"), 1, at_least=True),
    Target("stored: Postfix's local", _ratio("main", "storing", "storing_postfix", "rate"), 1, at_least=True),
    Target("stored: OpenSMTPD", _ratio("main", "storing", "storing_opensmtpd", "rate"), 1, at_least=True),
    Target("client, one connection: smtplib", _ratio("client", "client", "smtplib", "rate"), 2.5, at_least=True),
    Target("client, send_many: smtplib", _ratio("client", "send_many", "smtplib", "rate"), 2.5, at_least=True),
    Target("client, a pool of 10: smtplib", _ratio("client", "pool", "smtplib", "rate"), 6, at_least=True),
    Target("2 workers to 1: messages/s, where cores are free", _two_workers, 1.8, at_least=True),
    Target("import greensmtp to gevent and blinker", _ratio("import", "greensmtp", "gevent"), 1.3),
)
