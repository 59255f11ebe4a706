"""``handler_timeout``: no handler or middleware holds a connection forever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, getcurrent, sleep, spawn
from gevent.event import Event

from greensmtp import Ack, Address, Command, MessageStream, Reply, Session, SMTPServer, when
from greensmtp.chain.chain import Proceed
from greensmtp.session.ack_state import HandlerTimeout
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.usefixtures("clock")

SHORT = 0.1


def hang(*args: Any, **fields: Any) -> None:
    """Never return."""
    Event().wait()


def accept_and_hang(session: Session, ack: Ack, **fields: Any) -> None:
    """Decide, and never return."""
    ack.accept()
    hang()


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """End a test that hangs. No test needs that long."""
    with Timeout(20):
        yield


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    ack.accept()
    stream.read()


def replies_of(peer: Peer, verb: str = "EHLO") -> str:
    """Play a whole session, whatever is rejected in it; return the codes of the replies."""
    replies = [peer.reply()[:3]]
    for line in (f"{verb} x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "RSET", "QUIT"):
        peer.line(line)
        replies.append(peer.reply()[:3])
        if replies[-1] == "354":
            peer.send("text\r\n.\r\n")
            replies.append(peer.reply()[:3])
    peer.expect_end()
    return " ".join(replies)


#: signal -> the replies where its handler hangs
CASES = {
    "greeting": "220 451 503 503 503 250 221",
    "from": "220 250 451 503 503 250 221",
    "to": "220 250 250 451 503 250 221",
    "message": "220 250 250 250 354 451 250 221",
    "received": "220 250 250 250 354 451 250 221",
}


@pytest.mark.parametrize("hangs", [hang, accept_and_hang])
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
@pytest.mark.parametrize("name", CASES)
def test_a_handler_that_hangs_is_a_451(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, name: Any, lmtp: bool, hangs: Any
) -> None:
    expected = CASES[name]
    server = smtp_server(start=False, lmtp=lmtp, handler_timeout=SHORT)
    if name != "message":
        server.on("message", take)
    elif hangs is hang:
        expected = "220 250 250 250 451 250 221"
    if name == "received" and lmtp:
        server.on(name, lambda session, recipient, ack: hangs(session, ack=ack))
    else:
        server.on(name, hangs)
    with dial(server) as peer:
        assert replies_of(peer, "LHLO" if lmtp else "EHLO") == expected
    assert "ran too long: handler_timeout of 0.1 s exceeded at" in caplog.text
    assert hangs.__name__ in caplog.text or "lambda" in caplog.text


@pytest.mark.parametrize("name", ["reset", "quit", "tls", "disconnect"])
def test_a_handler_of_a_signal_without_an_ack_that_hangs_is_ended(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, certificate: Any, name: Any
) -> None:
    server = smtp_server(start=False, handler_timeout=SHORT, certfile=certificate.certfile, keyfile=certificate.keyfile)
    after = Event()
    server.on(name, hang)
    server.on(name, lambda session, **fields: after.set())
    with dial(server) as peer:
        peer.hello()
        peer.line("RSET", "STARTTLS")
        peer.expect("250", "220")
        peer.start_tls()
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
        assert after.wait(10)
    assert f"handler {__name__}.hang for signal {name!r} ran too long" in caplog.text


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "DATA", "END-OF-DATA", "RSET", "NOOP", "XYZZY", "QUIT"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_middleware_that_hangs_is_a_451(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, verb: str, before: bool
) -> None:
    hung: list[str] = []

    def hangs(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == verb and not hung:
            hung.append(verb)
            if before:
                hang()
            proceed(session, command)
            hang()
        return proceed(session, command)

    server = smtp_server(start=False, handler_timeout=SHORT, middleware=[hangs])
    server.on("message", take)
    with dial(server) as peer:
        peer.expect("220")
        if verb == "EHLO":
            peer.line("EHLO x")
            peer.expect("451")
        peer.line("EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect(*("451" if verb == each else "250" for each in ("HELO", "MAIL")))
        peer.expect("451" if verb == "RCPT" else "503" if verb == "MAIL" else "250")
        peer.expect("451" if verb == "NOOP" else "250")
        if verb in ("DATA", "END-OF-DATA"):
            peer.line("DATA")
            if verb == "DATA" and before:
                peer.expect("451")
            else:
                peer.expect("354")
                peer.line("text", ".")
                peer.expect("451")
        elif verb in ("RSET", "XYZZY", "QUIT"):
            peer.line(verb)
            peer.expect("451")
        peer.line("NOOP")
        peer.expect("250")
    shown = "UNKNOWN" if verb == "XYZZY" else verb
    assert f"hangs ran too long: handler_timeout of 0.1 s exceeded at {shown}; replying 451" in caplog.text


def test_a_predicate_that_hangs_is_a_451(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def passes(session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)

    passes.verbs = ("MAIL",)  # type: ignore[attr-defined]
    server = smtp_server(start=False, handler_timeout=SHORT, middleware=[when(hang, passes)])
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "NOOP")
        peer.expect("451", "250")
    assert f"predicate {__name__}.hang ran too long" in caplog.text


def test_a_pipe_that_hangs_fails_the_message(smtp_server: MakeServer) -> None:
    class Stuck:
        def write(self, data: bytes) -> None:
            hang()

    server = smtp_server(start=False, handler_timeout=SHORT)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.pipe(Stuck())
        ack.accept()

    with dial(server) as peer:
        assert replies_of(peer) == "220 250 250 250 354 451 250 221"


def test_a_body_that_flows_is_drained_before_the_451(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, handler_timeout=SHORT)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        next(stream)
        hang()

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send("BDAT 6\r\nNOOP\r\nBDAT 6 LAST\r\nRSET\r\nNOOP\r\n")
        peer.expect("250", "451", "250")


def test_the_time_that_the_client_takes_does_not_count(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, handler_timeout=SHORT)
    server.on("message", take)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
        for _ in range(8):
            clock.sleep(SHORT / 2)
            peer.line("text")
        peer.line(".")
        peer.expect("250")


def test_each_command_has_the_time_for_itself(smtp_server: MakeServer, clock: VirtualClock) -> None:
    def slow(session: Session, command: Command, proceed: Proceed) -> Reply:
        clock.sleep(0.3)
        return proceed(session, command)

    slow.verbs = ("NOOP",)  # type: ignore[attr-defined]
    server = smtp_server(start=False, handler_timeout=0.8, middleware=[slow])
    with dial(server) as peer:
        peer.expect("220")
        peer.line(*["NOOP"] * 5)
        peer.expect(*["250"] * 5)


def test_commands_between_two_chunks_do_not_prolong_the_readers_time(
    smtp_server: MakeServer, clock: VirtualClock
) -> None:
    ended = Event()
    server = smtp_server(start=False, handler_timeout=0.4)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            for _ in stream:
                clock.sleep(0.15)
        except HandlerTimeout:
            ended.set()
            raise

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        for _ in range(8):
            peer.send("BDAT 1\r\nxNOOP\r\n")
        assert ended.wait(10)


def test_an_ack_that_is_decided_elsewhere_has_ack_timeout(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, handler_timeout=SHORT, ack_timeout=30)

    @server.on("to")
    def later(session: Session, address: Address, ack: Ack) -> None:
        def decide() -> None:
            clock.sleep(3 * SHORT)
            ack.accept()

        spawn(decide)

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("250", "250")


# Those that do not listen


def ignore(*args: Any, **fields: Any) -> None:
    """Loop forever, whatever is thrown."""
    while True:
        try:
            if getcurrent() in mercy:
                return
            sleep(0.01)
        except BaseException:
            pass


#: Greenlets whose loop ends.
mercy: set[Any] = set()


@pytest.mark.parametrize("name", ["to", "message", "received", "disconnect", "quit"])
def test_a_handler_that_swallows_it_loses_its_connection(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, name: Any
) -> None:
    server = smtp_server(start=False, handler_timeout=SHORT)
    rogues: list[Any] = []

    def rogue(session: Session, **fields: Any) -> None:
        rogues.append(getcurrent())
        ignore()

    reasons: list[str] = []
    if name != "disconnect":
        server.on("disconnect", lambda session, reason: reasons.append(reason))
    if name != "message":
        server.on("message", take)
    server.on(name, lambda session, **fields: rogue(session)) if name == "received" else server.on(name, rogue)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "text", ".", "QUIT")
        peer.rest()
        while server.connections or "goes on after" not in caplog.text:
            sleep(0.01)
    assert "in ignore" in caplog.text
    if name != "disconnect":
        sleep(0)
        assert reasons == ["error"]
    mercy.update(rogues)
    sleep(0.05)
    server.stop()
    assert len(reasons) == (name != "disconnect")


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_a_connection_whose_handler_is_given_up_gets_what_it_is_owed_and_421(
    smtp_server: MakeServer, certificate: Certificate, tls: bool
) -> None:
    files: dict[str, Any] = {"certfile": certificate.certfile, "keyfile": certificate.keyfile} if tls else {}
    server = smtp_server(start=False, handler_timeout=SHORT, implicit_tls=tls, **files)
    server.on("message", take)
    rogues: list[Any] = []

    @server.on("from")
    def rogue(session: Session, address: Address, ack: Ack) -> None:
        ack.accept()
        if session.messages_accepted:
            rogues.append(getcurrent())
            ignore()

    with dial(server) as peer:
        if tls:
            peer.start_tls()
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        peer.expect("250", "250", "354")
        peer.line("text", ".", "MAIL FROM:<a@example.org>")
        peer.expect("250", "421 4.3.0")
        peer.expect_end()
    mercy.update(rogues)


@pytest.mark.parametrize("end", [hang, ignore])
def test_a_disconnect_handler_that_hangs_holds_neither_a_place_nor_the_stop(smtp_server: MakeServer, end: Any) -> None:
    server = smtp_server(start=False, max_connections=1)
    greenlets: list[Any] = []

    @server.on("disconnect")
    def hangs(session: Session, reason: str) -> None:
        greenlets.append(getcurrent())
        end()

    for _ in range(3):
        with dial(server) as peer:
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")
            peer.expect_end()
            assert not server.connections
    server.stop(0.5)
    mercy.update(greenlets)
    assert len(greenlets) == 3


@pytest.mark.parametrize("end", [hang, ignore])
def test_stop_ends_what_hangs(smtp_server: MakeServer, end: Any) -> None:
    server = smtp_server(start=False)
    greenlets: list[Any] = []

    @server.on("to")
    def hangs(session: Session, address: Address, ack: Ack) -> None:
        greenlets.append(getcurrent())
        end()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("250")
        peer.line("RCPT TO:<b@example.com>")
        peer.let_it_read()
        server.stop(0.05)
        assert not server.connections
    mercy.update(greenlets)


def test_a_disconnect_handler_may_stop_the_server(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    stopped = Event()

    @server.on("disconnect")
    def stop(session: Session, reason: str) -> None:
        server.stop()
        stopped.set()

    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
        assert stopped.wait(5)


def test_middleware_of_disconnect_that_hangs_is_ended_and_named(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    done = Event()

    def outer(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        seen.append(f"{command.verb} {reply.code}")
        if command.verb == "DISCONNECT":
            done.set()
        return reply

    def hangs(session: Session, command: Command, proceed: Proceed) -> Reply:
        proceed(session, command)
        hang()
        raise AssertionError

    outer.verbs = hangs.verbs = ("DISCONNECT",)  # type: ignore[attr-defined]
    server: SMTPServer = smtp_server(start=False, handler_timeout=SHORT, middleware=[outer, hangs])
    with dial(server) as peer:
        peer.hello()
    assert done.wait(10)
    assert seen == ["DISCONNECT 451"]
    assert "hangs ran too long: handler_timeout of 0.1 s exceeded at DISCONNECT" in caplog.text


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("wait", [False, True], ids=["pipelined", "no more"])
def test_a_handler_that_comes_back_after_it_was_given_up_handles_no_more(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, certificate: Certificate, wait: bool, tls: bool
) -> None:
    """The client has got 421, and sends the message again elsewhere."""
    files: dict[str, Any] = {"certfile": certificate.certfile, "keyfile": certificate.keyfile} if tls else {}
    server = smtp_server(start=False, handler_timeout=SHORT, implicit_tls=tls, **files)
    rogues: list[Any] = []
    handled: list[str] = []
    server.on("message", take)

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        handled.append("received")
        ack.accept()

    @server.on("to")
    def rogue(session: Session, address: Address, ack: Ack) -> None:
        rogues.append(getcurrent())
        ignore()
        ack.accept()

    with dial(server) as peer:
        if tls:
            peer.start_tls()
        peer.hello()
        rest = () if wait else ("DATA", "text", ".", "NOOP")
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", *rest)
        peer.rest()
        while server.connections or "goes on after" not in caplog.text:
            sleep(0.01)
    mercy.update(rogues)
    while not all(rogue.dead for rogue in rogues):
        sleep(0.01)
    assert handled == []
    assert "serving the connection failed" not in caplog.text
    server.stop()


def test_a_change_that_is_staged_after_the_handler_was_given_up_does_not_take_effect(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False, handler_timeout=SHORT)
    rogues: list[Any] = []
    stored: list[int] = []
    server.on("message", take)

    @server.on("received")
    def store(session: Session, ack: Ack) -> None:
        ack.accept()
        rogues.append(getcurrent())
        ignore()
        session.stage(stored.append, 1)

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "text", ".")
        peer.rest()
        while server.connections or "goes on after" not in caplog.text:
            sleep(0.01)
    mercy.update(rogues)
    while not all(rogue.dead for rogue in rogues):
        sleep(0.01)
    assert stored == []
    assert "serving the connection failed" not in caplog.text
    server.stop()


@pytest.mark.parametrize("limit", ["ack_timeout", "handler_timeout"])
def test_a_handler_that_swallows_it_has_some_seconds_before_the_next(
    smtp_server: MakeServer, clock: VirtualClock, limit: str
) -> None:
    limits: dict[str, Any] = {"ack_timeout": 1000.0, "handler_timeout": 1000.0, limit: 10.0}
    server = smtp_server(start=False, **limits)
    thrown: list[float] = []

    @server.on("to")
    def clean_up(session: Session, address: Address, ack: Ack) -> None:
        while len(thrown) < 2:
            try:
                hang()
            except HandlerTimeout:
                thrown.append(clock())
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
    assert 5.0 <= thrown[1] - thrown[0] < 7.0
