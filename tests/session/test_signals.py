"""Signals: which handlers are called, in which order, with which fields."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, cast

import pytest

from greensmtp import Ack, Address, Command, MessageStream, Reply, Session, SMTPServer, signals
from greensmtp.chain.chain import Proceed
from greensmtp.session.signals import shared
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate

# Which handlers are called


def test_the_global_signals_hear_every_server(smtp_server: MakeServer) -> None:
    servers = [smtp_server(start=False, hostname=name) for name in ("one.example", "two.example")]
    heard: list[str] = []

    def note(session: Session) -> None:
        heard.append(session.server.hostname)

    with signals.reset.connected_to(note):
        for server in servers:
            with dial(server) as peer:
                peer.expect("220")
                peer.line("RSET")
                peer.expect("250")
    assert heard == ["one.example", "two.example"]


def test_a_servers_signals_hear_that_server_alone(smtp_server: MakeServer) -> None:
    mine, other = smtp_server(start=False), smtp_server(start=False)
    heard: list[SMTPServer] = []
    mine.on("reset", lambda session: heard.append(session.server))
    for server in (other, mine):
        with dial(server) as peer:
            peer.expect("220")
            peer.line("RSET")
            peer.expect("250")
    assert heard == [mine]


@pytest.mark.parametrize("how", ["session.on", "server's signal", "global signal"])
def test_one_connection_can_be_heard_alone(smtp_server: MakeServer, how: str) -> None:
    server = smtp_server(start=False)
    heard: list[Session] = []
    sessions: list[Session] = []

    def note(session: Session) -> None:
        heard.append(session)

    @server.on("connect")
    def first_only(session: Session, ack: Ack) -> None:
        sessions.append(session)
        if len(sessions) == 1:
            if how == "session.on":
                session.on("reset", note)
            elif how == "server's signal":
                server.signals.reset.connect(note, sender=session, weak=False)
            else:
                signals.reset.connect(note, sender=session, weak=False)
        ack.accept()

    with dial(server) as first, dial(server) as second:
        for peer in (first, second):
            peer.expect("220")
            peer.line("RSET")
            peer.expect("250")
    assert heard == [sessions[0]]
    signals.reset.disconnect(note)


def test_blinkers_own_connect_is_weak(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    class Greylist:
        def refuse(self, session: Session, address: Address, ack: Ack) -> None:
            ack.reject(450, "4.7.1 later")

    greylist = Greylist()
    server.signals.from_.connect(greylist.refuse)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("450")
        del greylist
        gc.collect()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("250")


def test_what_a_session_connected_goes_with_it(smtp_server: MakeServer) -> None:
    """Otherwise a closure over the session would keep the session alive."""
    server = smtp_server(start=False)
    sessions: list[weakref.ref[Session]] = []
    told: list[str] = []

    def shared_by_all(session: Session) -> None:
        told.append("quit")

    server.on("quit", shared_by_all)

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        sessions.append(weakref.ref(session))
        session.on("quit", shared_by_all)

        @session.on("disconnect")
        def over(session_again: Session, reason: str) -> None:
            told.append(f"{session is session_again} {reason}")

        ack.accept()

    for _ in range(3):
        with dial(server) as peer:
            peer.expect("220")
            peer.line("QUIT")
            peer.expect("221")
            peer.expect_end()
            peer.let_it_read()
    gc.collect()
    assert [session() for session in sessions] == [None] * 3
    assert told == ["quit", "quit", "True quit"] * 3
    assert list(server.signals.quit.receivers.values()) == [shared_by_all]
    assert not server.signals.disconnect.receivers


def test_on_is_strong(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("from", lambda session, address, ack: ack.reject())
    gc.collect()
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("550")


@pytest.mark.parametrize("name", ["from", "from_"])
def test_on_is_a_decorator_and_a_call(smtp_server: MakeServer, name: Any) -> None:
    server = smtp_server(start=False)
    heard: list[str] = []

    @server.on(name)
    def decorated(session: Session, address: Address, ack: Ack) -> None:
        heard.append("decorated")

    def called(session: Session, address: Address, ack: Ack) -> None:
        heard.append("called")
        ack.accept()

    assert server.on(name, called) is called
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
    assert heard == ["decorated", "called"]


def test_handlers_can_come_and_go_while_the_server_runs(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    def refuse(session: Session, address: Address, ack: Ack) -> None:
        ack.reject()

    with dial(server) as peer:
        peer.hello()
        for connect, code in ((None, "250"), (True, "550"), (False, "250")):
            if connect is True:
                server.on("from", refuse)
            elif connect is False:
                server.signals.from_.disconnect(refuse)
            peer.line("MAIL FROM:<a@example.org>", "RSET")
            peer.expect(code, "250")


def test_a_muted_signal_is_not_heard(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("from", lambda session, address, ack: ack.reject())
    with dial(server) as peer:
        peer.hello()
        with server.signals.from_.muted():
            peer.line("MAIL FROM:<a@example.org>", "RSET")
            peer.expect("250", "250")
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("550")


def test_receivers_are_called_in_the_order_of_connecting_global_ones_first(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    heard: list[int] = []

    def note(number: int, session: Session) -> None:
        heard.append(number)

    own = [partial(note, number) for number in range(20, 40)]
    everybody = [partial(note, number) for number in range(20)]
    for handler in own:
        server.on("reset", handler)
    for handler in everybody:
        signals.reset.connect(handler)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("RSET")
        peer.expect("250")
    for handler in everybody:
        signals.reset.disconnect(handler)
    assert heard == list(range(40))


# Callables that are refused


@pytest.mark.parametrize(
    ("name", "hint"), [("recieved", "'received'"), ("conect", "'connect'"), ("rcpt", "to"), ("", "connect")]
)
def test_an_unknown_name_raises_and_tells_the_known_ones(smtp_server: MakeServer, name: Any, hint: str) -> None:
    server = smtp_server(start=False)
    with pytest.raises(ValueError, match=hint) as raised:
        server.on(name, print)
    assert "disconnect" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "handler", "shape"),
    [
        ("to", lambda session: None, r"\(session, address, ack\)"),
        ("to", lambda session, adress, ack: None, r"\(session, address, ack\)"),
        ("to", lambda address, ack: None, r"\(session, address, ack\)"),
        ("to", lambda: None, r"\(session, address, ack\)"),
        ("reset", lambda session, ack: None, r"\(session\)"),
        ("message", lambda session, stream, ack, extra: None, r"\(session, stream, ack\)"),
        ("disconnect", lambda session: None, r"\(session, reason\)"),
        ("received", lambda session, recipient: None, r"\(session, ack\)"),
        ("to", 42, "callable"),
    ],
)
def test_a_handler_of_the_wrong_shape_is_refused_with_the_right_one(
    smtp_server: MakeServer, name: Any, handler: Any, shape: str
) -> None:
    with pytest.raises(TypeError, match=shape):
        smtp_server(start=False).on(name, handler)


@pytest.mark.parametrize(
    "handler",
    [
        lambda session, address, ack: ack.accept(),
        lambda session, ack, address: ack.accept(),
        lambda session, **fields: fields["ack"].accept(),
        lambda *positional, **fields: fields["ack"].accept(),
        lambda session, ack, address, extra=None: ack.accept(),
        partial(lambda extra, session, address, ack: ack.accept(), None),
    ],
)
def test_a_handler_may_have_any_shape_that_fits(smtp_server: MakeServer, handler: Callable[..., None]) -> None:
    server = smtp_server(start=False)
    server.on("to", handler)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()


# Arguments of handlers

FIELDS = {
    "connect": {"ack"},
    "command": {"command", "ack"},
    "greeting": {"greeting", "ack"},
    "auth": {"identity", "ack"},
    "from": {"address", "ack"},
    "to": {"address", "ack"},
    "message": {"stream", "ack"},
    "received": {"ack"},
    "reset": set(),
    "quit": set(),
    "tls": set(),
    "disconnect": {"reason"},
}


def test_every_signal_gives_the_session_and_its_fields(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    given: dict[str, set[str]] = {}

    def note(name: str, session: Session, **fields: Any) -> None:
        assert isinstance(session, Session)
        given[name] = set(fields)
        if name != "command" and "ack" in fields:
            fields["ack"].accept()

    def auth(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "AUTH":
            return proceed(session, command)
        return session.ask("auth", identity="jo") or Reply(535)

    server.use(auth)
    for name in FIELDS:
        server.on(cast(Any, name), partial(note, name))
    with dial(server) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example", "AUTH PLAIN secret")
        peer.expect("250", "235")
        assert peer.deliver().startswith("250")
        peer.line("RSET", "QUIT")
        peer.expect("250", "221")
        peer.expect_end()
    assert given == FIELDS


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_handler_of_received_must_fit_the_servers_protocol(smtp_server: MakeServer, lmtp: bool) -> None:
    def smtp_only(session: Session, ack: Ack) -> None: ...
    def lmtp_only(session: Session, ack: Ack, recipient: Address) -> None: ...
    def either(session: Session, ack: Ack, recipient: Address | None = None) -> None: ...

    server = smtp_server(start=False, lmtp=lmtp)
    server.on("received", either)
    server.on("received", lmtp_only if lmtp else smtp_only)
    with pytest.raises(TypeError, match=r"a handler of 'received' is called as .*ack\)"):
        server.on("received", smtp_only if lmtp else lmtp_only)


async def asynchronous(session: Session, **fields: Any) -> None: ...


async def asynchronous_generator(session: Session, **fields: Any) -> Any:
    yield


def generator(session: Session, **fields: Any) -> Any:
    yield


class Methods:
    async def __call__(self, session: Session, **fields: Any) -> None: ...

    async def method(self, session: Session, **fields: Any) -> None: ...


CONNECTING: dict[str, Callable[[Session, Any], Any]] = {
    "server.on": lambda session, handler: session.server.signals.on("disconnect", handler),
    "decorator": lambda session, handler: session.server.signals.on("disconnect")(handler),
    "session.on": lambda session, handler: session.on("disconnect", handler),
    "server's signal": lambda session, handler: session.server.signals.disconnect.connect(handler),
    "global signal": lambda session, handler: signals.disconnect.connect(handler),
}


@pytest.mark.parametrize("how", CONNECTING)
@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (asynchronous, "asynchronous is an async def, which is never awaited: write def, and wait with gevent"),
        (asynchronous_generator, "asynchronous_generator is an async def"),
        (generator, "generator has a yield in it, so that calling it runs nothing: decide with the ack"),
        (Methods(), "Methods is an async def"),
        (Methods().method, "Methods.method is an async def"),
        (partial(asynchronous, extra=1), "asynchronous is an async def"),
    ],
)
def test_a_handler_that_would_never_run_is_refused(
    smtp_server: MakeServer, handler: Callable[..., Any], why: str, how: str
) -> None:
    server = smtp_server(start=False)
    refused: list[str] = []

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        with pytest.raises(TypeError) as raised:
            CONNECTING[how](session, handler)
        refused.append(str(raised.value))
        ack.accept()

    with dial(server) as peer:
        peer.expect("220")
    assert why in refused[0]
    assert not server.signals.disconnect.receivers
    assert not signals.disconnect.receivers


def test_a_handler_may_be_made_of_what_does_not_run_by_itself(smtp_server: MakeServer) -> None:
    heard: list[str] = []

    class Handler:
        def __call__(self, session: Session, reason: str) -> None:
            heard.append(reason)

        async def other(self) -> None: ...

    @wraps(asynchronous)
    def bridged(session: Session, reason: str) -> None:
        heard.append(reason)

    server = smtp_server(start=False)
    server.on("disconnect", Handler())
    server.signals.disconnect.connect(bridged, weak=False)
    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
        peer.let_it_read()
    assert heard == ["quit", "quit"]


def test_lmtp_gives_received_once_for_each_recipient(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, lmtp=True)
    seen: list[tuple[Address, bytes]] = []

    @server.on("message")
    def read(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        session.notes["body"] = stream.read()

    @server.on("received")
    def each(session: Session, recipient: Address, ack: Ack) -> None:
        seen.append((recipient, session.notes["body"]))
        if recipient.local_part == "full":
            ack.reject(452, "4.2.2 mailbox full")
        else:
            ack.accept(250, f"2.1.5 for {recipient}")

    with dial(server) as peer:
        peer.hello(verb="LHLO")
        first = peer.deliver(b"x\r\n", to=["a@example.com", "full@example.com", "c@example.com"])
        assert first == "250 2.1.5 for a@example.com"
        peer.expect("452 4.2.2 mailbox full", "250 2.1.5 for c@example.com")
    assert seen == [(f"{name}@example.com", b"x\r\n") for name in ("a", "full", "c")]


# The command signal

GREETINGS = ["HELO", "EHLO", "LHLO"]
VERBS = [*GREETINGS, "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "STARTTLS", "AUTH", "ETRN", "QUIT"]


@pytest.mark.parametrize("verb", [*VERBS, "XYZZY", "BDAT"])
def test_command_can_refuse_every_verb(smtp_server: MakeServer, certificate: Certificate, verb: str) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)

    @server.on("command")
    def refuse(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == verb:
            ack.reject(450, f"4.0.0 no {command.argument}")

    with dial(server) as peer:
        peer.expect("220")
        peer.line(f"{verb.lower()} 4")
        peer.expect("450 4.0.0 no 4")
        if verb == "BDAT":
            peer.send("RSET")  # its four bytes are still the chunk
        peer.line("NOPE")
        peer.expect("500")


@pytest.mark.parametrize("verb", [*VERBS, "XYZZY"])
def test_command_can_answer_every_verb(smtp_server: MakeServer, certificate: Certificate, verb: str) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    heard: list[str] = []
    for name in ("greeting", "from", "to", "message"):
        server.on(cast(Any, name), lambda session, name=name, **fields: heard.append(name))
    for name in ("reset", "quit"):
        server.on(cast(Any, name), lambda session, name=name: heard.append(name))

    @server.on("command")
    def answer(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == verb:
            ack.replace(250, "2.0.0 mine")

    with dial(server) as peer:
        peer.expect("220")
        peer.line(verb, "NOPE")
        peer.expect("250 2.0.0 mine", "500")
    assert heard == []


def test_commands_ack_need_not_be_decided_and_is_over_then(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False)
    acks: list[Ack] = []
    server.on("command", lambda session, command, ack: acks.append(ack))
    with dial(server) as peer:
        peer.hello()
        peer.line("NOOP")
        peer.expect("250")
    assert [ack.decided for ack in acks] == [True, True]
    assert not caplog.records


def test_quit_answered_by_a_handler_with_221_still_ends_the_connection(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("command")
    def answer(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "QUIT":
            ack.replace(221, "2.0.0 so long")

    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221 2.0.0 so long")
        peer.expect_end()


# Signals without an ack


@pytest.mark.parametrize(("name", "line"), [("reset", "RSET"), ("quit", "QUIT")])
def test_what_a_handler_without_an_ack_raises_is_logged_and_changes_nothing(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, name: Any, line: str
) -> None:
    server = smtp_server(start=False)
    heard: list[str] = []

    @server.on(name)
    def clumsy(session: Session) -> None:
        raise LookupError("the client must not read this")

    server.on(name, lambda session: heard.append(name))
    with dial(server) as peer:
        peer.expect("220")
        peer.line(line)
        assert "LookupError" not in peer.expect("2")
    assert heard == [name]
    (record,) = caplog.records
    assert "clumsy" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("process_wide", [False, True], ids=["the server's", "process-wide"])
@pytest.mark.parametrize("name", ["from", "reset"])
def test_handlers_can_come_and_go_beside_one_that_is_heard(
    smtp_server: MakeServer, name: Any, process_wide: bool
) -> None:
    server = smtp_server(start=False)
    heard: list[str] = []

    def stays(session: Session, **fields: Any) -> None:
        heard.append("stays")

    def comes(session: Session, **fields: Any) -> None:
        heard.append("comes")

    server.on(name, lambda session, **fields: fields["ack"].accept() if fields else None)
    server.on(name, stays)
    with dial(server) as peer:
        peer.hello()

        def emit() -> list[str]:
            heard.clear()
            peer.line("MAIL FROM:<a@example.org>", "RSET")
            peer.expect("250", "250")
            return list(heard)

        where = shared if process_wide else server.signals
        try:
            where.on(name, comes)
            assert sorted(emit()) == sorted(emit()) == ["comes", "stays"]
            where.named(name).disconnect(comes)
            assert emit() == emit() == ["stays"]
            where.on(name, comes)
            assert sorted(emit()) == ["comes", "stays"]
            (connection,) = server.connections
            connection.session.on(name, lambda session, **fields: heard.append("session's"))
            assert sorted(emit()) == ["comes", "session's", "stays"]
        finally:
            where.named(name).disconnect(comes)


def test_a_process_wide_handler_of_received_may_be_for_either_protocol() -> None:
    def of_smtp(session: Session, ack: Ack) -> None: ...
    def of_lmtp(session: Session, ack: Ack, recipient: Address) -> None: ...
    def of_neither(session: Session, recipient: Address) -> None: ...

    shared.check("received", of_smtp)
    shared.check("received", of_lmtp)
    with pytest.raises(TypeError, match=r"a handler of 'received' is called as .*\(session, ack\)"):
        shared.check("received", of_neither)
