"""How connections end: 421 when stop() cuts them off, close_notify under TLS, lines without a CRLF."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
from gevent import GreenletExit, get_hub, sleep, spawn
from gevent import ssl as gevent_ssl
from gevent.event import Event

from greensmtp import Ack, Address, Command, MessageStream, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.server import line_transport, shutdown
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.usefixtures("short_kill")

#: Seconds that stop() may take beyond its timeout, with some room for a busy machine.
BEYOND = 2.0


def stop_soon(server: SMTPServer) -> None:
    began = time.monotonic()
    server.stop(0.05)
    assert time.monotonic() - began < BEYOND


# stop


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("where", ["envelope", "body", "chunks"])
def test_a_transaction_that_outlives_stop_gets_421(
    smtp_server: MakeServer, certificate: Certificate, where: str, tls: bool
) -> None:
    files: dict[str, Any] = {"certfile": certificate.certfile, "keyfile": certificate.keyfile} if tls else {}
    server = smtp_server(implicit_tls=tls, **files)
    lost: list[str] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            stream.read()
        except ConnectionError as error:
            lost.append(str(error))
            raise

    with dial(server) as peer:
        if tls:
            peer.start_tls()
        peer.hello()
        peer.envelope()
        if where == "body":
            peer.line("DATA")
            peer.expect("354")
            peer.line("Subject: half")
        elif where == "chunks":
            peer.line("BDAT 100")
            peer.send("half")
        peer.let_it_read()
        stop_soon(server)
        peer.expect("421 4.3.2")
        peer.expect_end()
    assert lost == ([] if where == "envelope" else ["connection lost: shutdown"])
    assert not server.connections


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("signal", ["from", "to", "message", "received"])
def test_a_handler_that_hangs_is_ended_by_stop_and_its_client_gets_421(
    smtp_server: MakeServer, certificate: Certificate, signal: Any, tls: bool
) -> None:
    files: dict[str, Any] = {"certfile": certificate.certfile, "keyfile": certificate.keyfile} if tls else {}
    server = smtp_server(implicit_tls=tls, **files)
    server.on("message", lambda session, stream, ack: None if signal == "message" else ack.accept())
    hanging = Event()

    def hang(session: Session, **fields: object) -> None:
        hanging.set()
        Event().wait()

    if signal != "message":
        server.on(signal, hang)

    with dial(server) as peer:
        if tls:
            peer.start_tls()
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        if signal == "received":
            peer.expect("250", "250", "354")
            peer.line("x", ".")
        if signal == "message":
            peer.let_it_read()
        else:
            assert hanging.wait(5)
        stop_soon(server)
        answers = peer.rest().decode().splitlines()
        assert answers[-1].startswith("421 4.3.2")
        assert [answer[:3] for answer in answers].count("421") == 1
    assert not server.connections


def test_replies_to_lmtp_recipients_that_are_known_are_sent_before_the_421(smtp_server: MakeServer) -> None:
    server = smtp_server(lmtp=True)
    server.on("message", lambda session, stream, ack: ack.accept())
    hanging = Event()

    @server.on("received")
    def received(session: Session, recipient: Address, ack: Ack) -> None:
        if recipient.local_part == "third":
            hanging.set()
            Event().wait()
        elif recipient.local_part == "second":
            ack.reject(452, "4.2.2 Mailbox full")
        else:
            ack.accept()

    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["first@example.com", "second@example.com", "third@example.com"])
        peer.line("DATA")
        peer.expect("354")
        peer.line("text", ".")
        assert hanging.wait(5)
        stop_soon(server)
        peer.expect("250", "452 4.2.2", "421 4.3.2")
        peer.expect_end()


def test_stop_waits_for_disconnect_handlers_within_its_timeout(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "KILL_SECONDS", 0.001)
    server = smtp_server()
    ended: list[str] = []

    @server.on("disconnect")
    def disconnect(session: Session, reason: str) -> None:
        sleep(0.1)
        ended.append(reason)

    with dial(server) as peer:
        peer.hello()
        stopping = spawn(server.stop, 5)
        peer.expect("421 4.3.2")
        peer.expect_end()
        peer.close()
        stopping.get(timeout=5)
    assert ended == ["shutdown"]


def test_stop_returns_though_a_handler_does_not_let_itself_be_ended(smtp_server: MakeServer) -> None:
    server = smtp_server()
    go_on = Event()

    @server.on("from")
    def stubborn(session: Session, address: str, ack: Ack) -> None:
        while not go_on.is_set():
            try:
                go_on.wait(20)
            except GreenletExit:
                pass
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.let_it_read()
        stop_soon(server)
        peer.expect("421 4.3.2")
        go_on.set()
        peer.expect_end()
    sleep(0.01)
    assert not server.connections


def test_a_client_that_takes_no_replies_does_not_hold_stop_up(smtp_server: MakeServer) -> None:
    server = smtp_server(max_idle_commands=10**6)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        flooding = spawn(flood, peer)
        peer.let_it_read()
        stop_soon(server)
        flooding.kill()


def flood(peer: Peer) -> None:
    try:
        while True:
            peer.socket.sendall(b"HELP\r\n" * 1_000)
    except OSError:
        pass


# close_notify


def tls_end_of(peer: Peer) -> None:
    """Read to the end; a connection that ends without close_notify raises."""
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    peer.socket = context.wrap_socket(peer.socket, suppress_ragged_eofs=False)


@pytest.mark.parametrize("ending", ["quit", "refused", "errors", "stop", "timeout"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tls_connection_ends_with_close_notify(
    smtp_server: MakeServer, certificate: Certificate, ending: str, version: ssl.TLSVersion
) -> None:
    server = smtp_server(
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=True,
        max_errors=1,
        command_timeout=0.2 if ending == "timeout" else 60,
    )
    assert server.tls_context is not None
    server.tls_context.maximum_version = version
    server.on("connect", lambda session, ack: ack.reject() if ending == "refused" else ack.accept())
    with dial(server) as peer:
        tls_end_of(peer)
        if ending != "refused":
            peer.hello()
            if ending != "timeout":
                peer.line({"quit": "QUIT", "errors": "WHAT", "stop": "NOOP"}[ending])
            if ending == "stop":
                stopping = spawn(server.stop, 1)
        rest = b""
        while piece := peer.socket.recv(4096):  # raises SSLEOFError without
            rest += piece
        assert rest
        if ending == "stop":
            peer.close()
            stopping.get()


def test_a_client_that_does_not_answer_close_notify_is_not_waited_for(
    smtp_server: MakeServer, certificate: Certificate
) -> None:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    gone = Event()
    server.on("disconnect", lambda session, reason: gone.set())
    with dial(server) as peer:
        peer.start_tls()
        peer.hello()
        peer.line("QUIT")
        assert gone.wait(1.5)  # and it has read nothing


# A line with a bare LF


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("wire", [b"EHLO x\n", b"EHLO x\nMAIL FROM:<a@example.org>\nRCPT TO:<b@example.com>\n"])
def test_a_client_that_ends_its_lines_with_lf_gets_500_and_soon_421(
    smtp_server: MakeServer, clock: VirtualClock, wire: bytes
) -> None:
    server = smtp_server(start=False, ack_timeout=1)  # swept often
    senders: list[str] = []
    server.on("from", lambda session, address, ack: senders.append(address))
    with dial(server) as peer:
        peer.expect("220")
        peer.send(wire)
        peer.expect("500 5.5.2")
        began = clock.now
        peer.expect("421 4.4.2")
        assert clock.now - began < line_transport.CRLF_SECONDS + 1
        peer.expect_end()
    assert senders == []


def dribble(peer: Peer, clock: VirtualClock) -> None:
    try:
        while True:
            peer.socket.sendall(b"NOOP\n")
            clock.sleep(0.01)
    except OSError:
        pass


@pytest.mark.usefixtures("clock")
def test_bare_lf_again_and_again_does_not_put_the_end_off(smtp_server: MakeServer, clock: VirtualClock) -> None:
    with dial(smtp_server(start=False, ack_timeout=1)) as peer:
        peer.expect("220")
        peer.send("NOOP\n")
        peer.expect("500 5.5.2")
        writing = spawn(dribble, peer, clock)
        peer.expect("421 4.4.2")
        writing.kill()


@pytest.mark.usefixtures("clock")
def test_a_bare_lf_in_an_answer_to_a_challenge_ends_as_soon(smtp_server: MakeServer, clock: VirtualClock) -> None:
    def ask(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "AUTH":
            session.challenge("user?")
        return proceed(session, command)

    with dial(smtp_server(start=False, middleware=[ask], ack_timeout=1)) as peer:
        peer.hello()
        peer.line("AUTH X")
        peer.expect("334")
        peer.send("jo\n")
        peer.expect("451")
        began = clock.now
        peer.expect("421 4.4.2")
        assert clock.now - began < line_transport.CRLF_SECONDS + 1
        peer.expect_end()


# A batch


def test_others_have_their_turn_within_a_pipelined_batch(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_idle_commands=10**6)
    order: list[str] = []

    @server.use
    def note(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "NOOP":
            order.append(command.argument)
        return proceed(session, command)

    with dial(server) as many, dial(server) as few:
        many.hello()
        few.hello()
        many.line(*["NOOP many"] * 1_000)
        few.line("NOOP few")
        few.expect("250")
        many.expect(*["250"] * 1_000)
    assert order.index("few") <= 2 * line_transport.BATCH
    assert len(order) == 1_001


def test_a_batch_of_ordinary_size_is_answered_in_one_go(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    switches: list[Session] = []
    with dial(server) as peer:
        peer.hello()
        (conversation,) = server.connections
        batch = ["MAIL FROM:<a@example.org>", *["RCPT TO:<b@example.com>"] * 45, "RSET"]
        peer.line(*batch)
        replies = b""
        while replies.count(b"\r\n") < len(batch):
            piece = peer.socket.recv(65536)
            switches.append(conversation.session)
            replies += piece
        assert len(switches) == 1


def test_a_connection_that_is_cut_off_while_others_have_their_turn_ends_cleanly(smtp_server: MakeServer) -> None:
    server = smtp_server(max_idle_commands=10**6)
    reasons: list[str] = []

    @server.on("disconnect")
    def disconnect(session: Session, reason: str) -> None:
        reasons.append(reason)
        sleep(0.01)

    peers = [dial(server) for _ in range(20)]
    for peer in peers:
        peer.hello()
        peer.envelope()
        peer.line(*["NOOP"] * 2_500)
    sleep(0)
    stop_soon(server)
    for peer in peers:
        assert b"421 4.3.2" in peer.rest()
        peer.close()
    assert reasons == ["shutdown"] * 20


def test_a_connection_that_is_storing_its_message_is_cut_off_behind_the_250(smtp_server: MakeServer) -> None:
    server = smtp_server()
    storing, stored = Event(), Event()

    def store() -> None:
        storing.set()
        assert stored.wait(5)

    server.on("message", lambda session, stream, ack: ack.accept())

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        session.stage(store)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        peer.expect("250", "250", "354")
        peer.line("x", ".")
        assert storing.wait(5)
        stopping = spawn(server.stop, 0.0)
        sleep(0.01)
        stored.set()
        peer.expect("250", "421 4.3.2")
        peer.expect_end()
        stopping.join()


def test_a_handler_that_does_not_let_itself_be_ended_keeps_no_socket(smtp_server: MakeServer) -> None:
    server = smtp_server()
    go_on = Event()

    @server.on("from")
    def stubborn(session: Session, address: str, ack: Ack) -> None:
        while not go_on.is_set():
            try:
                go_on.wait(20)
            except GreenletExit:
                pass
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.let_it_read()
        (connection,) = server.connections
        stop_soon(server)
        assert connection.socket.fileno() == -1
        go_on.set()
        peer.expect("421 4.3.2")
        peer.expect_end()


@pytest.mark.parametrize("implicit", [False, True])
def test_stop_does_not_wait_for_a_tls_handshake(
    smtp_server: MakeServer, certificate: Certificate, implicit: bool
) -> None:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=implicit)
    with dial(server) as peer:
        if not implicit:
            peer.hello()
            peer.line("STARTTLS")
            peer.expect("220")
        peer.let_it_read()
        began = time.monotonic()
        server.stop(20)
        assert time.monotonic() - began < BEYOND
        peer.expect_end()


def test_stop_ends_a_disconnect_handler_that_hangs(smtp_server: MakeServer) -> None:
    server = smtp_server()
    ended: list[str] = []

    @server.on("disconnect")
    def hangs(session: Session, reason: str) -> None:
        try:
            Event().wait()
        except GreenletExit:
            ended.append(reason)
            raise

    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
        stop_soon(server)
        assert ended == ["quit"]


def test_nothing_follows_replies_that_a_full_buffer_has_swallowed(smtp_server: MakeServer) -> None:
    server = smtp_server()
    full = Event()

    @server.on("from")
    def stubborn(session: Session, address: str, ack: Ack) -> None:
        sock: Any = session.socket
        try:
            while True:
                sock._sock.send(b"x" * 65_536)
        except BlockingIOError:
            full.set()
        try:
            Event().wait()
        except GreenletExit:
            pass
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("VRFY x", "MAIL FROM:<a@example.org>")  # the reply to VRFY cannot be sent, so MAIL's must not be
        assert full.wait(5)
        (connection,) = server.connections
        get_hub().loop.run_callback(connection.cut_off, "shutdown")
        sleep(0.01)
        assert peer.rest().strip(b"x") == b""
