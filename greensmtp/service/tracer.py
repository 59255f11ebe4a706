"""The dialogues of some clients of one process for `greensmtp trace`, without secrets and without message content.

How it works. The tracer is an observer of the servers (``Routes.observe``), and a tap on each connection that a client
of the control socket has asked for (``server/tap.py``).

Rules of this file:

- Commands are shown as the middleware chain gets them, parsed, and with the redaction of Logging. So no part of a body
  and no password is ever shown as a command.
- Replies are read from the bytes that are sent. So replies that no middleware sees are included, and each has the time
  at which it was sent.
- While no client traces, there are no observers and no taps, and there is no cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from greensmtp._hostport import join
from greensmtp._log import logger
from greensmtp.chain.chain import Proceed
from greensmtp.middleware.logging.redaction import note_secrets, shown_command
from greensmtp.networks import IPNetwork, client_address, read_network
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    UNKNOWN,
    ChunkCommand,
    Command,
    EndOfData,
)
from greensmtp.protocol.log_text import printable, shown
from greensmtp.protocol.reply import Reply
from greensmtp.server.handler import ConnectionHandler
from greensmtp.server.server import SMTPServer
from greensmtp.server.tap import Tap
from greensmtp.session import Session

#: A line of a dialogue, as a JSON object.
Event = dict[str, Any]

#: Maximum number of characters shown of one line: the limit of a reply line (RFC 5321 section 4.5.3.1.5).
WIDTH = 512


class Wanted:
    """The clients to follow: those that match all given conditions.

    :param peer: an address, a network, or ``unix``.
    :param sender: the reverse-path; ``@example.com`` for all of a domain.
    :param session: the ID of a session, or of one of its transactions.
    :raises ValueError: ``peer`` is not a network.
    """

    def __init__(self, peer: str | None = None, sender: str | None = None, session: str | None = None) -> None:
        self._network: IPNetwork | str | None = peer if peer in (None, "unix") else read_network(str(peer))
        self._sender = None if sender is None else sender.strip("<>").lower()
        self._session = session

    def takes(self, session: Session, sender: str | None) -> bool:
        """Return True if a session is to be followed.

        :param sender: the reverse-path of its transaction, or of the MAIL that it begins with; None: there is none.
        """
        if self._session is not None and not (self._session == session.id or self._session.endswith(f"-{session.id}")):
            return False
        if self._sender is not None:
            if sender is None:
                return False
            its = sender.lower()
            if its != self._sender and not (self._sender.startswith("@") and its.endswith(self._sender)):
                return False
        return self._network is None or self._contains(session)

    def _contains(self, session: Session) -> bool:
        try:
            address = client_address(session)
        except ValueError:
            return False
        if address is None or isinstance(self._network, str):
            return address is None and self._network == "unix"
        return self._network is not None and address in self._network


class Watcher(Protocol):
    """The recipient of a trace, and the clients that it follows."""

    wanted: Wanted

    def put(self, event: Event) -> None:
        """Take an event; it must not wait and must not raise."""


class Tracer:
    """An observer that follows the clients of all watchers."""

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []
        self._followed: WeakKeyDictionary[Session, _Followed] = WeakKeyDictionary()

    def join(self, watcher: Watcher, servers: Iterable[SMTPServer]) -> None:
        """Add a watcher, and follow the open connections that match."""
        self.watchers.append(watcher)
        for server in servers:
            for handler in [*server.connections]:
                # A connection that has not begun is followed when its first command arrives.
                if handler.transport.greenlet is not None:
                    self._follow(handler.session, handler.session.from_, [watcher], is_new=False)

    def leave(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        self.watchers.remove(watcher)
        for followed in [*self._followed.values()]:
            followed.watchers = [each for each in followed.watchers if each is not watcher]
            if not followed.watchers:
                self._drop(followed)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Send a command to the clients that trace its session."""
        verb = command.verb
        followed = self._followed.get(session)
        if followed is None or len(followed.watchers) < len(self.watchers):
            sender = getattr(command, "address", None) if verb == "MAIL" else session.from_
            followed = self._follow(session, sender, self.watchers, is_new=verb in (ACCEPT, CONNECT)) or followed
        if followed is None:
            return proceed(session, command)
        try:
            followed.say_command(session, command)
        except Exception:  # a trace must not harm the connection
            logger.exception("%s: it cannot be traced any longer", session.id)
            self._drop(followed)
        reply = proceed(session, command)
        followed.note_reply(session, command, reply)
        if verb == DISCONNECT:
            self._drop(followed)
        return reply

    def _follow(
        self, session: Session, sender: str | None, watchers: Iterable[Watcher], *, is_new: bool
    ) -> _Followed | None:
        followed = self._followed.get(session)
        known = [] if followed is None else followed.watchers
        more = [each for each in watchers if each not in known and each.wanted.takes(session, sender)]
        if not more:
            return None
        handler = session._connection
        assert isinstance(handler, ConnectionHandler)
        if followed is None:
            followed = self._followed[session] = _Followed(session, handler, is_new=is_new)
        followed.add(session, more, is_new=is_new)
        return followed

    def _drop(self, followed: _Followed) -> None:
        for session, each in [*self._followed.items()]:
            if each is followed:
                del self._followed[session]
        followed.end()


class _Followed:
    """A connection whose dialogue is shown."""

    def __init__(self, session: Session, handler: ConnectionHandler, *, is_new: bool) -> None:
        self.watchers: list[Watcher] = []
        self._transport = handler.transport
        self._id, self._peer = session.id, _peer(session)
        #: A password may follow a refused AUTH that was not seen.
        self._guarded = not is_new
        self._challenged = False
        #: The bytes received so far; and those at which the body began that has not ended.
        self._received = 0
        self._body: int | None = self._received if session.message is not None else None
        self._tap = Tap(self._note_received, self._say_replies)

    def add(self, session: Session, watchers: list[Watcher], *, is_new: bool) -> None:
        """Add watchers, and send them a summary of the session so far."""
        self._tap.put_on(self._transport)
        text = "connected" if is_new else "connected before; " + _standing(session)
        for each in watchers:
            each.put(self._event("begin", text))
        self.watchers = [*self.watchers, *watchers]

    def end(self) -> None:
        """Stop following the connection."""
        self.watchers = []
        self._tap.take_off(self._transport)

    def say_command(self, session: Session, command: Command) -> None:
        """Show a command, before it is handled."""
        self._tap.put_on(self._transport)  # STARTTLS may have removed it
        verb = command.verb
        if verb in (ACCEPT, CONNECT):
            if verb == CONNECT and session.tls:
                self._put("note", f"TLS is up: {_tls(session)}")
        elif isinstance(command, EndOfData):
            if command.recipient is None or command.recipient is session.to[0]:
                self._put("client", f"({_size(session)} bytes of a message)")
        elif verb == DISCONNECT:
            if self._body is not None:
                self._put("client", f"(a message that has not ended; {self._received - self._body} bytes came)")
            self._put("end", command.argument)
        else:
            shown_verb, argument = shown_command(session, command, guarded=self._guarded)
            if verb == UNKNOWN and command.error is not None and not argument:
                argument = "(a malformed line)"
            self._put("client", f"{shown_verb} {argument}".rstrip(" "))
            if verb == "DATA" or isinstance(command, ChunkCommand):
                self._body = self._received if self._body is None else self._body

    def note_reply(self, session: Session, command: Command, reply: Reply) -> None:
        """Update the state from the chain's reply. The sent reply is shown by the tap."""
        note_secrets(session, command, reply)
        if command.verb == END_OF_DATA or reply.code >= 400:
            self._body = None

    def _note_received(self, size: int) -> None:
        self._received += size
        if self._challenged:
            self._challenged = False
            self._put("client", "***")

    def _say_replies(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").split("\r\n")[:-1]:
            if line.startswith("334"):  # a challenge of AUTH
                self._challenged = True
                line = "334 ***"  # noqa: PLW2901
            self._put("server", shown(line, WIDTH))

    def _put(self, kind: str, text: str) -> None:
        event = self._event(kind, text)
        for each in self.watchers:
            each.put(event)

    def _event(self, kind: str, text: str) -> Event:
        return {"time": time.time(), "session": self._id, "peer": self._peer, "event": kind, "text": printable(text)}


def _peer(session: Session) -> str:
    peer = session.peer
    return shown(join(peer[0], peer[1])) if isinstance(peer, tuple) else "unix"


def _tls(session: Session) -> str:
    return shown(f"{session.tls_version or 'TLS'} {session.tls_cipher or ''}".rstrip())


def _size(session: Session) -> int:
    return 0 if session.message is None else session.message.size


def _standing(session: Session) -> str:
    """Return a summary of a session that was not followed from its beginning."""
    facts: list[tuple[str, Callable[[], object]]] = [
        ("hello", lambda: session.hostname),
        ("tls", lambda: _tls(session) if session.tls else None),
        ("identity", lambda: session.identity),
        ("from", lambda: None if session.from_ is None else f"<{session.from_}>"),
        ("recipients", lambda: len(session.to) or None),
        ("messages", lambda: session.messages_accepted or None),
    ]
    parts = [f"{name}={shown(value)}" for name, read in facts if (value := read()) is not None]
    return " ".join(parts) or "has said nothing"
