"""The deadline monitor, with a clock that the test moves: no test here waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent import get_hub
from gevent.event import Event

from greensmtp import Ack, Limits, Session, SMTPServer
from greensmtp.server.deadlines import DeadlineMonitor
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


class Recorder:
    """A monitored connection that notes its checks."""

    def __init__(self) -> None:
        self.checks: list[tuple[float, float]] = []

    def check(self, now: float, elapsed: float) -> None:
        """Note this check."""
        self.checks.append((now, elapsed))


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """An event loop with a timer that never fires by itself."""

    def timer(self, after: float, repeat: float) -> Loop:
        """Return the timer."""
        assert after == repeat
        return self

    def start(self, callback: Callable[[], None]) -> None:
        """Do nothing: the test calls ``tick``."""

    stop = close = lambda self: None


def in_hub(call: Callable[[], object]) -> None:
    """Call something in the hub, where the monitor's timer runs, and wait for that."""
    done = Event()

    def run() -> None:
        done.set()
        call()

    get_hub().loop.run_callback(run)
    assert done.wait(10)


def advance(server: SMTPServer, seconds: float) -> None:
    """Have the present waits noticed, then let so many seconds pass for them."""
    monitor = server._registry.monitor
    in_hub(lambda: monitor.advance(0.001))
    in_hub(lambda: monitor.advance(seconds))


def test_a_tick_checks_every_connection_with_the_seconds_that_have_passed() -> None:
    clock, first, second = Clock(), Recorder(), Recorder()
    monitor = DeadlineMonitor(([first], [second]), Limits(), clock)
    monitor.start(Loop())
    clock.now += 0.5
    monitor.tick()
    clock.now += 1.0
    monitor.tick()
    assert first.checks == second.checks == [(0.5, 0.5), (1.5, 1.0)]


def test_the_clock_stands_still_while_the_hub_is_blocked() -> None:
    clock, connection = Clock(), Recorder()
    monitor = DeadlineMonitor(([connection],), Limits(), clock)
    monitor.start(Loop())
    clock.now += 3600.0
    monitor.tick()
    assert connection.checks == [(2 * monitor.interval, 2 * monitor.interval)]


@pytest.mark.parametrize(
    ("limits", "interval"),
    [({}, 1.0), ({"tls_timeout": 1.6}, 0.1), ({"data_rate_grace": 0.8}, 0.1), ({"data_rate_grace": 0.0}, 1.0)],
    ids=str,
)
def test_the_interval_is_a_sixteenth_of_the_shortest_timeout(limits: dict[str, Any], interval: float) -> None:
    assert DeadlineMonitor((), Limits(**limits)).interval == pytest.approx(interval)


def test_a_command_times_out_after_command_timeout(smtp_server: MakeServer) -> None:
    server = smtp_server()
    with dial(server) as peer:
        peer.hello()
        advance(server, server.limits.command_timeout - 1.0)
        peer.line("NOOP")
        peer.expect("250")
        advance(server, server.limits.command_timeout + 1.0)
        peer.expect("421 4.4.2 Timed out")
        peer.expect_end()


def test_an_ack_is_a_451_after_ack_timeout(smtp_server: MakeServer) -> None:
    server = smtp_server()
    kept: list[Ack] = []
    asked = Event()

    @server.on("from")
    def decide_later(session: Session, address: str, ack: Ack) -> None:
        kept.append(ack)
        asked.set()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        assert asked.wait(10)
        advance(server, server.limits.ack_timeout + 1.0)
        peer.expect("451")
