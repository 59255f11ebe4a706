"""The session: all that is known of one connection, its greeting and its transaction."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from greensmtp.protocol.address import NO_PARAMETERS, Address, Parameters
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.session.handlers import ConnectsHandlers

if TYPE_CHECKING:
    from gevent.socket import socket

    from greensmtp.errors import ConnectionLost
    from greensmtp.protocol.sasl.exchange import Identity
    from greensmtp.session.ack import AckState
    from greensmtp.session.interfaces import Body, Collector, Connection
    from greensmtp.session.server_info import ServerInfo
    from greensmtp.session.signals import Signal
    from greensmtp.session.stream import MessageStream

#: A client's address as the socket gives it: host and port, more for IPv6; ``""`` on a unix socket.
SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str

#: What tells a session from the others of its process.
_numbers = itertools.count(1)


# An Enum's member costs a good deal more to look up than a name of the module.
_CONNECTED, _GREETED = State.CONNECTED, State.GREETED
_SENDER, _RECIPIENTS = State.SENDER, State.RECIPIENTS

#: A callable, and its arguments.
Change = tuple[Callable[..., object], tuple[Any, ...]]


@cache
def _process(pid: int) -> str:
    """A few random digits, to tell a process's sessions from another's; one that is forked off has its own."""
    return os.urandom(3).hex()


class Session(ConnectsHandlers):
    """One connection, from ``connect`` to ``disconnect``; the sender of every signal.

    Handlers and middleware read it, keep what they like in ``notes``, and change the rest only where they mean to
    own it.
    """

    __slots__ = (
        "__weakref__",
        "_ack_state",
        "_changes",
        "_connection",
        "_emitters",
        "_id",
        "_idle_commands",
        "_notes",
        "_receivers",
        "_staged",
        "_tls_requested",
        "_transaction_notes",
        "_wrap_body",
        "errors",
        "from_",
        "greeting",
        "hostname",
        "identity",
        "message",
        "messages_accepted",
        "peer",
        "server",
        "state",
        "tls",
        "to",
    )

    def __init__(
        self, server: ServerInfo, connection: Connection, peer: SocketAddress, emitters: Mapping[str, Collector]
    ) -> None:
        self.server = server
        self._connection = connection
        self._emitters = emitters
        #: The client's address as the socket gives it: ``("192.0.2.1", 54321)``; ``""`` on a unix socket.
        self.peer: SocketAddress = peer
        #: TLS is up.
        self.tls = False
        #: ``"helo"``, ``"ehlo"`` or ``"lhlo"``; None before the client has greeted.
        self.greeting: str | None = None
        #: The name the client gave itself.
        self.hostname: str | None = None
        #: Who has authenticated; set by the Auth middleware, kept over RSET and EHLO, gone after STARTTLS.
        self.identity: Identity | None = None
        #: The reverse path; None: no transaction; ``""``: the null sender.
        self.from_: Address | None = None
        #: The recipients accepted so far.
        self.to: list[Address] = []
        #: The body, while one is being received.
        self.message: MessageStream | None = None
        #: How many messages have been accepted.
        self.messages_accepted = 0
        #: 5xx replies, and commands that brought no message nearer, since the last accepted message.
        self.errors = 0
        self._idle_commands = 0
        #: Where the connection stands in the SMTP dialogue.
        self.state = State.CONNECTED
        #: What receivers are deciding just now; the server's sweep sees to it that they do.
        self._ack_state: AckState | None = None
        #: STARTTLS has been agreed to; the handshake follows the reply.
        self._tls_requested = False
        #: What takes effect once the client is told that its command has worked: callables and their arguments.
        self._staged: tuple[Change, ...] = ()
        #: How often the greeting or the transaction has changed.
        self._changes = 0
        #: The transaction's notes, where there are any.
        self._transaction_notes: dict[Any, Any] | None = None
        #: What a middleware has asked to stand between the connection and the next body.
        self._wrap_body: Callable[[Body], Body] | None = None
        self._id: str | None = None
        self._notes: dict[Any, Any] | None = None
        self._receivers: tuple[tuple[Signal, Callable[..., Any]], ...] = ()

    @property
    def id(self) -> str:
        """A name for logs, unique enough among all processes."""
        name = self._id
        if name is None:
            name = self._id = f"{_process(os.getpid())}-{next(_numbers):x}"
        return name

    @property
    def socket(self) -> socket:
        """The gevent socket; after STARTTLS, the TLS one."""
        return self._connection.socket

    @property
    def close_error(self) -> ConnectionLost | None:
        """The error that ended the connection, or None while it lasts.

        Middleware that catches every exception raises this one again: no client is left to reply to.
        """
        return self._connection.close_error

    @property
    def notes(self) -> dict[Any, Any]:
        """A place for handlers and middleware to keep things, as long as the connection lasts."""
        notes = self._notes
        if notes is None:
            notes = self._notes = {}
        return notes

    @property
    def transaction_notes(self) -> dict[Any, Any]:
        """A place for handlers and middleware to keep things, as long as the transaction lasts: from MAIL, whose own
        handlers may begin it, to the reply to the message, RSET, a new greeting or STARTTLS."""
        notes = self._transaction_notes
        if notes is None:
            notes = self._transaction_notes = {}
        return notes

    @property
    def peer_host(self) -> str | None:
        """The client's IP address, or None on a unix socket."""
        return self.peer[0] if isinstance(self.peer, tuple) else None

    @property
    def from_ext(self) -> Parameters:
        """The parameters of MAIL: ``{"SIZE": "1000"}``."""
        return NO_PARAMETERS if self.from_ is None else self.from_.parameters

    @property
    def to_ext(self) -> list[Parameters]:
        """The parameters of each RCPT, in the order of ``to``."""
        return [address.parameters for address in self.to]

    @property
    def smtputf8(self) -> bool:
        """This transaction may have addresses and headers beyond ASCII (RFC 6531)."""
        return "SMTPUTF8" in self.from_ext

    @property
    def protocol(self) -> str:
        """How this mail came, as ``Received: ... with`` says it: ``ESMTPS``, ``LMTP`` (RFC 3848, RFC 6531)."""
        if self.greeting == "helo":
            return "SMTP"
        name = "LMTP" if self.server.lmtp else "SMTP" if self.smtputf8 else "ESMTP"
        return ("UTF8" if self.smtputf8 else "") + name + "S" * self.tls + "A" * (self.identity is not None)

    # ``on`` is as a server's, for this connection alone, and no longer than it lasts.

    def _check_signal(self, name: str) -> None:
        self.server.signals.named(name)

    def _connect_handler(self, name: str, handler: Any) -> Any:
        signals = self.server.signals
        signal = signals.named(name)
        signals.check(name, handler)
        # A receiver of its own, to be disconnected whatever other signals and sessions this handler is connected to.
        receiver = partial(handler)
        signal.connect(receiver, sender=self, weak=False)
        self._receivers = (*self._receivers, (signal, receiver))
        return handler

    def _disconnect_receivers(self) -> None:
        """The connection is over, and with it what ``on`` connected: blinker would keep that, and the session by it."""
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)
        self._receivers = ()

    def ask(self, name: str, /, **fields: Any) -> Reply | None:
        """Emit a signal with an ack, and give the receivers' decision as a reply; a raised error is a 451.

        For middleware that owns an extension: Auth asks ``session.ask("auth", identity=...)``.
        """
        return self._emitters[name].collect(self, None, **fields)

    def challenge(self, text: str = "", code: int = 334) -> bytes:
        """Send a 3xx reply and give the line that the client answers, without its CRLF (RFC 4954 section 4).

        :raises MalformedAnswer: the answer is longer than ``max_auth_line_length``, or holds a bare CR or LF.
        :raises ConnectionLost: the client is gone.
        :raises RuntimeError: this is another greenlet than the connection's own, in which handlers are called.
        """
        return self._connection.challenge(Reply(code, text))

    def flush(self) -> None:
        """Send the replies that are waiting, before something that takes long. Call it in the connection's greenlet.

        :raises ConnectionLost: the client is gone.
        """
        self._connection.flush()

    @contextmanager
    def wrap_body(self, wrap: Callable[[Body], Body]) -> Iterator[None]:
        """Within the block, read a message that begins from ``wrap(body)``: a context manager."""
        outer = self._wrap_body
        self._wrap_body = wrap if outer is None else lambda body: wrap(outer(body))
        try:
            yield
        finally:
            self._wrap_body = outer

    # What a command changes

    def stage(self, change: Callable[..., object], *arguments: Any) -> None:
        """Call ``change(*arguments)`` if the client is told that the command has worked; forget it otherwise.

        Whatever a command changes is staged, in the dispatcher and in middleware: ``session.identity``, say, with
        ``session.stage(setattr, session, "identity", identity)``. The calls are made in this order when the whole stack
        has answered, in the connection's greenlet, before the next command is read. What one raises is logged, and
        the client gets 451; a Reject is the reply. What is staged too late, when the command has been answered, is
        forgotten.
        """
        self._staged = (*self._staged, (change, arguments))

    def _greet(self, greeting: str, hostname: str) -> None:
        """Take a greeting. It ends the transaction (RFC 5321 section 4.1.4)."""
        self.greeting = greeting
        self.hostname = hostname
        self.reset()

    def _begin(self, sender: Address) -> None:
        """Begin a transaction."""
        self._changes += 1
        self.from_ = sender
        self.state = _SENDER

    def _add_recipient(self, recipient: Address) -> None:
        """Add a recipient to the transaction."""
        self._changes += 1
        self.to.append(recipient)
        self.state = _RECIPIENTS

    def reset(self) -> None:
        """Forget the transaction: sender, recipients, their parameters, the body (RFC 5321 section 4.1.1.5)."""
        self._changes += 1
        self.from_ = self._transaction_notes = None
        if self.to:
            self.to = []
        if self.message is not None:
            self.message.end()
            self.message = None
        self.state = _CONNECTED if self.greeting is None else _GREETED

    def _reset_all(self) -> None:
        """Back to the state before the greeting, as STARTTLS demands (RFC 3207 section 4.2)."""
        self.greeting = self.hostname = self.identity = None
        self.reset()

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.peer!r} {self.state.name.lower()}>"
