"""Timeouts: the reply to each, and the moment from which each is measured."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest
from gevent import spawn

from greensmtp import Ack, AlreadyAcknowledged, Command, ConnectionLost, MessageStream, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import begin_data, collect_reasons
from tests.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.usefixtures("clock")

#: The timeout under test, what is surely below it, and what is surely above it.
SHORT = 0.3
LESS = 0.2
MORE = 0.5


@pytest.fixture(autouse=True)
def no_warnings_but_of_handlers(caplog: pytest.LogCaptureFixture) -> Any:
    """Check that a late client is logged at debug level only, and a late handler above."""
    yield
    noise = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all("ack_timeout" in message for message in noise)


# command_timeout


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["EHLO x"],
        ["EHLO x", "MAIL FROM:<a@example.org>"],
        ["EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>"],
        ["EHLO x", "WHAT"],
    ],
    ids=lambda lines: f"after {lines[-1].split(' ')[0] if lines else 'the banner'}",
)
def test_a_peer_that_says_nothing_gets_421(smtp_server: MakeServer, clock: VirtualClock, lines: list[str]) -> None:
    server = smtp_server(start=False, command_timeout=SHORT)
    reasons = collect_reasons(server)
    with dial(server) as peer:
        peer.expect("220")
        for line in lines:
            peer.line(line)
            peer.reply()
        with clock.takes(SHORT):
            peer.expect("421 4.4.2")
        peer.expect_end()
        peer.close()
        peer.let_it_read()
    assert reasons == ["timeout"]


def test_the_time_for_a_command_begins_when_it_is_awaited(smtp_server: MakeServer, clock: VirtualClock) -> None:
    """Neither the session's age nor the handler of the command before counts."""
    server = smtp_server(start=False, command_timeout=SHORT)

    @server.on("command")
    def slow(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "VRFY":
            clock.sleep(MORE)

    with dial(server) as peer:
        peer.hello()
        for _ in range(3):
            clock.sleep(LESS)
            peer.line("NOOP")
            peer.expect("250")
        peer.line("VRFY x")
        peer.expect("252")
        clock.sleep(LESS)
        peer.line("NOOP")
        peer.expect("250")


def test_a_middleware_may_take_its_time(smtp_server: MakeServer, clock: VirtualClock) -> None:
    def tarpit(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        if reply.is_permanent_failure:
            clock.sleep(MORE)
        return reply

    server = smtp_server(start=False, command_timeout=SHORT, ack_timeout=SHORT, middleware=[tarpit])
    server.on("to", lambda session, address, ack: ack.reject())
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect("250", "550", "250")


def test_half_a_line_has_no_time_of_its_own(smtp_server: MakeServer, clock: VirtualClock) -> None:
    with dial(smtp_server(start=False, command_timeout=SHORT)) as peer:
        peer.hello()
        with clock.takes(SHORT):
            peer.send("NO")
            clock.sleep(LESS)
            peer.send("OP")
            peer.expect("421 4.4.2")


def test_a_command_between_two_chunks_has_its_time(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, command_timeout=SHORT)
    errors: list[BaseException] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            stream.read()
        except ConnectionLost as error:
            errors.append(error)
            raise

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send("BDAT 5\r\nchunk")
        peer.expect("250")
        with clock.takes(SHORT):
            peer.expect("421 4.4.2")
        peer.expect_end()
    assert [getattr(error, "reason", None) for error in errors] == ["timeout"]


def test_an_answer_to_a_challenge_has_its_time(smtp_server: MakeServer, clock: VirtualClock) -> None:
    def asks(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "AUTH":
            session.challenge("c2F5")
        return proceed(session, command)

    with dial(smtp_server(start=False, command_timeout=SHORT, middleware=[asks])) as peer:
        peer.hello()
        peer.line("AUTH X")
        peer.expect("334")
        with clock.takes(SHORT):
            peer.expect("421 4.4.2")


# data_timeout


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_a_body_that_stops_is_421_and_not_delivered(smtp_server: MakeServer, clock: VirtualClock, reads: bool) -> None:
    server = smtp_server(start=False, data_timeout=SHORT)
    reasons = collect_reasons(server)
    errors: list[BaseException] = []
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        if reads:
            try:
                stream.read()
            except ConnectionLost as error:
                errors.append(error)
                raise

    with dial(server) as peer:
        begin_data(peer)
        peer.send("half a body\r\n.")
        with clock.takes(SHORT):
            peer.expect("421 4.4.2")
        peer.expect_end()
        peer.close()
        peer.let_it_read()
    assert reasons == ["timeout"]
    assert received == []
    assert [getattr(error, "reason", None) for error in errors] == ["timeout"] * reads


def test_each_piece_of_a_body_has_its_time(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, data_timeout=SHORT)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        begin_data(peer)
        for _ in range(3):
            peer.send("a piece\r\n")
            clock.sleep(LESS)
        peer.send(".\r\n")
        peer.expect("250")


def test_a_reader_may_take_its_time(smtp_server: MakeServer, clock: VirtualClock) -> None:
    """The client's timeouts do not run between two reads, and ack_timeout does not run after the decision."""
    server = smtp_server(start=False, data_timeout=SHORT, ack_timeout=SHORT, min_data_rate=10_000, data_rate_grace=0)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        for _ in stream:
            clock.sleep(MORE)

    with dial(server) as peer:
        begin_data(peer)
        peer.send("one\r\n" * 1_000 + ".\r\n")
        peer.expect("250")


@pytest.mark.parametrize("before", ["EHLO x", "EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>"])
def test_the_octets_of_a_refused_chunk_have_their_time(
    smtp_server: MakeServer, clock: VirtualClock, before: str
) -> None:
    server = smtp_server(start=False, data_timeout=SHORT)
    server.on("message", lambda session, stream, ack: ack.reject(450))
    with dial(server) as peer:
        peer.expect("220")
        for line in before.split("\r\n"):
            peer.line(line)
            peer.expect("250")
        peer.send("BDAT 100 LAST\r\nsome")
        assert peer.reply()[:3] in ("450", "503")
        with clock.takes(SHORT):
            peer.expect("421 4.4.2")
        peer.expect_end()


# ack_timeout


def test_receivers_that_do_not_decide_are_451_and_named(
    smtp_server: MakeServer, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False, ack_timeout=SHORT)
    kept: list[Ack] = []

    @server.on("to")
    def dawdler(session: Session, address: str, ack: Ack) -> None:
        kept.append(ack)

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("250")
        with clock.takes(SHORT):
            peer.line("RCPT TO:<b@example.com>", "NOOP")
            peer.expect("451 4.3.0")
        peer.expect("250")
        with pytest.raises(AlreadyAcknowledged):
            kept[0].accept()
        peer.line("DATA", "QUIT")
        peer.expect("503", "221")
    assert "dawdler" in caplog.text


@pytest.mark.parametrize("name", ["connect", "greeting", "from", "to", "message", "received", "command"])
def test_a_receiver_that_hangs_is_cut_short(
    smtp_server: MakeServer, clock: VirtualClock, caplog: pytest.LogCaptureFixture, name: Any
) -> None:
    server = smtp_server(start=False, ack_timeout=SHORT)
    cut_short: list[str] = []
    if name == "received":
        server.on("message", lambda session, stream, ack: ack.accept())

    @server.on(name)
    def hangs(session: Session, ack: Ack, **fields: Any) -> None:
        if name == "command" and fields["command"].verb != "NOOP":
            return
        try:
            clock.sleep(30)
        finally:
            cut_short.append(name)

    with dial(server) as peer:
        peer.line("EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP", "DATA")
        replies = ""
        with clock.takes(SHORT):
            while "451" not in replies and "421" not in replies:
                replies += peer.reply() + "\n"
                if replies.splitlines()[-1].startswith("354"):
                    peer.line(".")
        if name == "connect":
            peer.expect_end()
        else:
            peer.line("HELP")
            while not peer.reply().startswith("214"):
                pass
    assert cut_short == [name]
    assert "hangs" in caplog.text


def test_each_signal_has_its_time(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, ack_timeout=SHORT)

    @server.on("from")
    @server.on("to")
    def slow(session: Session, address: str, ack: Ack) -> None:
        clock.sleep(LESS)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", *["RCPT TO:<b@example.com>"] * 3)
        peer.expect("250", "250", "250", "250")


def test_the_time_to_decide_is_not_the_peers(smtp_server: MakeServer, clock: VirtualClock) -> None:
    """The client's timeouts do not run while handlers decide."""
    server = smtp_server(start=False, command_timeout=SHORT, data_timeout=SHORT, ack_timeout=5)

    @server.on("from")
    def slow(session: Session, address: str, ack: Ack) -> None:
        clock.sleep(MORE)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("250")


def test_the_time_that_a_client_takes_to_answer_a_challenge_is_not_the_handlers(
    smtp_server: MakeServer, clock: VirtualClock
) -> None:
    server = smtp_server(start=False, ack_timeout=SHORT)

    @server.on("command")
    def asks(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "AUTH":
            clock.sleep(LESS)
            session.challenge("c2F5")
            clock.sleep(LESS)
            ack.replace(235, "2.7.0 Welcome")

    with dial(server) as peer:
        peer.hello()
        peer.line("AUTH X")
        peer.expect("334")
        clock.sleep(LESS)
        peer.line("c2F5")
        peer.expect("235")


def test_a_late_message_ack_has_its_time_and_the_body_then_its_own(
    smtp_server: MakeServer, clock: VirtualClock
) -> None:
    server = smtp_server(start=False, ack_timeout=SHORT, data_timeout=SHORT)

    @server.on("message")
    def later(session: Session, stream: MessageStream, ack: Ack) -> None:
        def decide() -> None:
            clock.sleep(LESS)
            ack.accept()

        spawn(decide)

    with dial(server) as peer:
        begin_data(peer)
        clock.sleep(LESS)
        peer.send("body\r\n")
        clock.sleep(LESS)
        peer.send(".\r\n")
        peer.expect("250")


def test_an_ask_within_an_ask_leaves_the_outer_one_its_time(
    smtp_server: MakeServer, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False, ack_timeout=SHORT)
    server.on("auth", lambda session, identity, ack: ack.accept())

    @server.on("command")
    def asks(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "AUTH":
            session.ask("auth", identity="jo")
            clock.sleep(30)

    with dial(server) as peer:
        peer.hello()
        with clock.takes(SHORT):
            peer.line("AUTH X")
            peer.expect("451 4.3.0")
    assert "asks did not decide within ack_timeout" in caplog.text


# tls_timeout


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "STARTTLS"])
def test_a_handshake_has_its_time(
    smtp_server: MakeServer, clock: VirtualClock, certificate: Certificate, implicit: bool
) -> None:
    server = smtp_server(
        start=False,
        tls_timeout=SHORT,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=implicit,
    )
    reasons = collect_reasons(server)
    with dial(server) as peer:
        if not implicit:
            peer.hello()
            peer.line("STARTTLS")
            peer.expect("220")
        with clock.takes(SHORT):
            assert b"421" not in peer.rest()  # that would be in the clear
    assert reasons == ["timeout"]


def test_timeouts_hold_inside_tls(smtp_server: MakeServer, clock: VirtualClock, certificate: Certificate) -> None:
    server = smtp_server(
        start=False,
        command_timeout=SHORT,
        data_timeout=SHORT,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=True,
    )
    server.on("message", lambda session, stream, ack: ack.accept())
    for in_data in (False, True):
        with dial(server) as peer:
            peer.start_tls()
            if in_data:
                begin_data(peer)
            else:
                peer.hello()
            with clock.takes(SHORT):
                peer.expect("421 4.4.2")


# All of them


def test_a_peer_is_not_late_because_a_handler_blocks_everybody(smtp_server: MakeServer, clock: VirtualClock) -> None:
    """Input that came meanwhile is read first, and the time does not count for the rate of a body."""
    server = smtp_server(start=False, command_timeout=SHORT, min_data_rate=1_000, data_rate_grace=SHORT)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as idle, dial(server) as sending, dial(server) as other:

        @server.on("command")
        def blocks(session: Session, command: Command, ack: Ack) -> None:
            if command.verb == "VRFY":
                idle.line("NOOP")
                sending.send(b"x" * 100)
                clock.block(MORE)
                sending.send(b"\r\n.\r\n")

        other.hello()
        idle.hello()
        begin_data(sending)
        clock.sleep(SHORT / 4)  # a check has seen them
        other.line("VRFY x")
        other.expect("252")
        idle.expect("250")
        sending.expect("250")


def test_the_default_timeout_of_sockets_has_no_effect(
    smtp_server: MakeServer, clock: VirtualClock, certificate: Certificate
) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    server.on("message", lambda session, stream, ack: ack.accept())
    socket.setdefaulttimeout(0.05)
    try:
        peer = dial(server)
    finally:
        socket.setdefaulttimeout(None)
    with peer:
        peer.socket.settimeout(None)
        peer.start_tls()
        begin_data(peer)
        clock.sleep(LESS)
        peer.send(".\r\n")
        peer.expect("250")


def test_a_slow_peer_has_time_to_read_why_it_is_dropped(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, min_data_rate=1_000, data_rate_grace=0.1)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        begin_data(peer)
        peer.expect("421 4.4.2 Data comes too slowly")
        clock.sleep(MORE)
        assert server.connections  # it lingers for two seconds, unless the peer goes


def test_a_timeout_does_not_affect_other_connections(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(command_timeout=MORE)
    with dial(server) as silent, dial(server) as busy:
        silent.hello()
        busy.hello()
        waiting = spawn(silent.expect, "421")
        while not waiting.ready():
            busy.line("NOOP")
            busy.expect("250")
            clock.sleep(0.05)
        waiting.get()
        busy.line("NOOP")
        busy.expect("250")


def test_timeouts_work_again_after_a_while_without_connections(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(command_timeout=SHORT)
    for _ in range(2):
        with dial(server) as peer:
            peer.hello()
            with clock.takes(SHORT):
                peer.expect("421")
        while server.connections:
            clock.sleep(0.01)
