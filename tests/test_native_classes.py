"""What programs do with the classes that the compiled build makes native: copy, derive from, patch, refer weakly.

Both builds run it (``make test``, ``make test-compiled``), and must not differ here.
"""

from __future__ import annotations

import copy
import logging
import pickle
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greensmtp import (
    Ack,
    Address,
    ChunkCommand,
    Command,
    EndOfData,
    HelloCommand,
    LookupCommand,
    MessageStream,
    PathCommand,
    QueueCommand,
    Reply,
    Session,
)
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Logging
from greensmtp.protocol.command import parse_command
from greensmtp.protocol.verb_arguments import Lookup, QueueRequest
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

LINES = [
    b"NOOP hello",
    b"EHLO client.example",
    b"MAIL FROM:<a@example.org> SIZE=5",
    b"RCPT TO:<b@example.com>",
    b"RCPT TO:<b",
    b"BDAT 5 LAST",
    b"VRFY b",
    b"ETRN example.com",
]
COMMANDS = [*map(parse_command, LINES), EndOfData(Address.parse("b@example.com"))]

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def facts(command: Command) -> dict[str, object]:
    """Return all attributes; of a reply, what it says."""
    found = {name: getattr(command, name) for name in dir(command) if not name.startswith("_")}
    return {name: str(value) if isinstance(value, Reply) else value for name, value in found.items()}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy])
def test_a_command_can_be_copied(command: Command, again: Callable[[Command], Command]) -> None:
    other = again(command)
    assert other is not command
    assert type(other) is type(command)
    assert facts(other) == facts(command)
    other.argument = "changed"
    assert command.argument != "changed"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_can_be_pickled(command: Command, protocol: int) -> None:
    other = pickle.loads(pickle.dumps(command, protocol))
    assert type(other) is type(command)
    assert facts(other) == facts(command)


ADDRESS = Address.parse("a@example.org")

#: Each class of commands, and the arguments to make one.
KINDS: dict[type[Command], tuple[Any, ...]] = {
    Command: ("NOOP",),
    HelloCommand: ("NOOP", "", "client.example"),
    PathCommand: ("NOOP", "", ADDRESS),
    ChunkCommand: ("NOOP", "", 5, True),
    LookupCommand: ("NOOP", "", Lookup("b", None)),
    QueueCommand: ("NOOP", "", QueueRequest("domain", "example.com")),
    EndOfData: (ADDRESS,),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_program_can_derive_from_commands(
    kind: Any, smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Mine(kind):  # type: ignore[misc]
        """It has an attribute more, and a property of its own, which the server's log shows."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.verb = "NOOP"
            self.reason = "mine"

        @property
        def shown_verb(self) -> str:
            return f"NOOP ({self.reason})"

    def outer(session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, Mine(*KINDS[kind]) if command.verb == "NOOP" else command)

    def inner(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "NOOP":
            assert isinstance(command, Mine)
            raise ValueError(command.reason)
        return proceed(session, command)

    with dial(smtp_server(middleware=[outer, inner])) as peer:
        peer.hello()
        peer.line("NOOP")
        assert peer.reply().startswith("451")
    assert "raised at NOOP (mine); replying 451" in caplog.text


def test_a_program_can_derive_from_logging(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    class Counting(Logging):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
            self.seen.append(command.verb)
            return super().__call__(session, command, proceed)

    counting = Counting()
    with dial(smtp_server(middleware=[counting])) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.reply()
        peer.line("QUIT")
        peer.rest()
    gevent.idle()
    assert counting.seen == ["ACCEPT", "CONNECT", "EHLO", "MAIL", "QUIT", "DISCONNECT"]
    assert "from=<a@example.org>" in caplog.text


def test_session_stream_and_ack_can_be_referred_to_weakly(smtp_server: MakeServer) -> None:
    """And end with the connection, also as keys: a program that forgets them keeps nothing."""
    server = smtp_server()
    kept: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        kept[session], kept[stream], kept[ack] = "session", "stream", "ack"
        ack.accept()
        stream.read()

    with dial(server) as peer:
        peer.hello()
        peer.envelope("a@example.org", ["b@example.com"])
        peer.line("DATA")
        peer.reply()
        peer.send(b"Subject: x\r\n\r\n.\r\n")
        assert peer.reply().startswith("250")
        assert set(kept.values()) == {"session"}
        peer.line("QUIT")
        peer.rest()
    gevent.idle()
    assert not kept


def test_a_test_can_patch_methods_of_the_session(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself calls the patched ones, too."""
    called: list[str] = []
    for name in ("stage", "reset"):
        original = getattr(Session, name)

        def patched(*arguments: Any, _name: str = name, _original: Any = original) -> Any:
            called.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(Session, name, patched)
    with dial(smtp_server()) as peer:
        peer.hello()
        called.clear()
        peer.line("RSET")
        peer.reply()
    assert called[:2] == ["stage", "reset"]


def test_a_session_takes_attributes_that_a_program_sets(smtp_server: MakeServer) -> None:
    server = smtp_server()
    seen: list[object] = []

    @server.on("greeting")
    def note(session: Session, greeting: HelloCommand, ack: Ack) -> None:
        session.identity = SimpleNamespace(authcid="me")  # type: ignore[assignment]
        session.errors += 1
        seen.extend((session.identity.authcid, session.errors))  # type: ignore[union-attr]
        with pytest.raises(AttributeError):
            session.no_such_attribute = 1  # type: ignore[attr-defined]
        ack.accept()

    with dial(server) as peer:
        peer.hello()
    assert seen == ["me", 1]


def test_exceptions_of_one_connection_are_not_seen_by_another(smtp_server: MakeServer) -> None:
    """A handler that waits while it handles an exception finds it unchanged, whatever else was raised meanwhile."""
    server = smtp_server()
    waits, goes_on = Event(), Event()
    found: dict[str, object] = {}

    @server.on("from")
    def decide(session: Session, address: Address, ack: Ack) -> None:
        found[address.local_part] = sys.exc_info()[0]
        if address.local_part == "waits":
            try:
                raise KeyError("first")
            except KeyError:
                waits.set()
                assert goes_on.wait(10)
                found["after the wait"] = sys.exc_info()[0]
        elif address.local_part == "raises":
            raise ValueError("second")
        try:
            raise OSError("third")
        except OSError as error:
            found[f"context of {address.local_part}"] = error.__context__
        ack.accept()

    with dial(server) as one, dial(server) as other:
        for peer in (one, other):
            peer.hello()
        one.line("MAIL FROM:<waits@example.org>")
        assert waits.wait(10)
        other.line("MAIL FROM:<raises@example.org>")
        assert other.reply().startswith("451")
        other.line("MAIL FROM:<later@example.org>")
        assert other.reply().startswith("250")
        goes_on.set()
        assert one.reply().startswith("250")
    assert found == {
        "waits": None,
        "raises": None,
        "later": None,
        "context of later": None,
        "after the wait": KeyError,
        "context of waits": None,
    }


def test_what_a_handler_held_is_freed_when_it_has_raised(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server keeps no exception, whose traceback keeps the handler's variables, while it waits for the client."""
    monkeypatch.setattr(logging.getLogger("greensmtp"), "disabled", True)  # pytest keeps what is logged

    class Held:
        pass

    kept: list[weakref.ref[Held]] = []

    def fail(session: Session, address: Address, ack: Ack) -> None:
        held = Held()
        kept.append(weakref.ref(held))
        raise ValueError(held)

    def fail_too(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "NOOP":
            held = Held()
            kept.append(weakref.ref(held))
            raise ValueError(held)
        return proceed(session, command)

    server = smtp_server(middleware=[fail_too])
    server.on("from")(fail)
    with dial(server) as peer:
        peer.hello()
        for line in ("MAIL FROM:<a@example.org>", "NOOP"):
            peer.line(line)
            assert peer.reply().startswith("451")
        assert [ref() for ref in kept] == [None, None]
