"""The lowest rate at which a body may come: ``min_data_rate`` and ``data_rate_grace``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from gevent import spawn

from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import begin_data, collect_reasons
from tests.virtual_clock import VirtualClock

pytestmark = pytest.mark.usefixtures("clock")

#: ``data_rate_grace``, what is surely below it, and what is surely above it.
GRACE = 0.3
LESS = 0.2
MORE = 0.5


@pytest.fixture(autouse=True)
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that a slow client is logged at debug level only."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def drip(peer: Peer, clock: VirtualClock) -> None:
    """Send a little again and again until the connection ends."""
    with suppress(OSError):
        while True:
            peer.send("x" * 10)
            clock.sleep(0.1)


def test_a_body_below_the_rate_is_421(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, min_data_rate=1_000, data_rate_grace=GRACE)
    server.on("message", lambda session, stream, ack: ack.accept())
    reasons = collect_reasons(server)
    with dial(server) as peer:
        begin_data(peer)
        with clock.takes(GRACE):
            dripping = spawn(drip, peer, clock)
            peer.expect("421 4.4.2 Data comes too slowly")
        dripping.kill()
        peer.expect_end()
        peer.close()
        peer.let_it_read()
    assert reasons == ["slow"]


def test_octets_that_come_with_their_command_count(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, min_data_rate=1_000, data_rate_grace=0)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("250", "250")
        for last in ("", "", " LAST"):
            clock.sleep(LESS)
            peer.send(f"BDAT 1000{last}\r\n" + "x" * 1000)
            peer.expect("250")


def test_the_time_between_chunks_does_not_count(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, min_data_rate=1_000, data_rate_grace=GRACE)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.send("BDAT 1\r\nx")
        peer.expect("250", "250", "250")
        clock.sleep(MORE)
        peer.line("NOOP")
        peer.expect("250")
        clock.sleep(MORE)
        peer.send("BDAT 1 LAST\r\nx")
        peer.expect("250")


def test_the_octets_of_a_chunk_are_awaited_at_the_rate(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, min_data_rate=1_000, data_rate_grace=GRACE)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.send("BDAT 1\r\nxBDAT 2\r\nx")
        peer.expect("250", "250", "250")
        with clock.takes(GRACE):
            peer.expect("421 4.4.2 Data comes too slowly")
        peer.expect_end()


@pytest.mark.parametrize(
    ("rate", "grace"), [(10, 0.1), (0, 0.1), (100_000, 30)], ids=["fast enough", "any", "in grace"]
)
def test_a_body_at_the_rate_is_taken(smtp_server: MakeServer, clock: VirtualClock, rate: float, grace: float) -> None:
    server = smtp_server(start=False, min_data_rate=rate, data_rate_grace=grace)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        begin_data(peer)
        for _ in range(3):
            peer.send("x" * 10)
            clock.sleep(0.1)
        peer.send("\r\n.\r\n")
        peer.expect("250")


def test_a_second_body_is_measured_anew(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, min_data_rate=10_000, data_rate_grace=GRACE)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        for _ in range(3):
            peer.envelope()
            peer.line("DATA")
            peer.expect("354")
            clock.sleep(LESS)
            peer.send(".\r\n")
            peer.expect("250")
