"""The session: what is known of one connection, its HELO or EHLO, and its transaction."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from greensmtp._callables import handler_name
from greensmtp._compiled import mypyc_attr, weakly_referable
from greensmtp._log import logger
from greensmtp.protocol.address import NO_PARAMETERS, Address, Parameters
from greensmtp.protocol.esmtp import parse_offers
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.session.ack_state import ENDINGS
from greensmtp.session.handlers import ConnectsHandlers

if TYPE_CHECKING:
    from gevent.socket import socket

    from greensmtp.errors import ConnectionLost
    from greensmtp.protocol.proxy_header import ProxyHeader
    from greensmtp.protocol.sasl.exchange import Identity
    from greensmtp.session.ack_state import AckState
    from greensmtp.session.interfaces import Body, Collector, Connection
    from greensmtp.session.server_info import ServerInfo
    from greensmtp.session.signals import Signal
    from greensmtp.session.stream import MessageStream

#: A client's address as the socket gives it: host and port, more for IPv6; ``""`` on a unix socket.
SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str

#: Numbers the sessions of this process.
_numbers: Final = itertools.count(1)


# Looking up a name of the module is faster than a member of an Enum.
_CONNECTED, _GREETED = State.CONNECTED, State.GREETED
_SENDER, _RECIPIENTS = State.SENDER, State.RECIPIENTS

#: A staged change: a callable, and its arguments.
Change = tuple[Callable[..., object], tuple[Any, ...]]


@cache
def _process(pid: int) -> str:
    """Return a few random digits for this process: a forked child gets digits of its own."""
    return os.urandom(3).hex()


@mypyc_attr(allow_interpreted_subclasses=True)
class Session(ConnectsHandlers):
    """One connection, from ``connect`` to ``disconnect``; the sender of every signal.

    Handlers and middleware read its attributes, and keep data of their own in ``notes`` and ``transaction_notes``.
    To change it for a command, use ``stage``. Attributes with an underscore belong to the framework.
    """

    __slots__ = (
        "__weakref__",
        "_ack_state",
        "_at_end",
        "_changes",
        "_connection",
        "_emitters",
        "_hello_reply",
        "_id",
        "_idle_commands",
        "_notes",
        "_receivers",
        "_staged",
        "_tls_requested",
        "_transaction_id",
        "_transaction_notes",
        "_wrap_body",
        "errors",
        "forwarded",
        "from_",
        "greeting",
        "hostname",
        "identity",
        "message",
        "messages_accepted",
        "peer",
        "proxy",
        "server",
        "state",
        "tls",
        "to",
        "xclient",
    )

    def __init__(
        self, server: ServerInfo, connection: Connection, peer: SocketAddress, emitters: Mapping[str, Collector]
    ) -> None:
        self.server: ServerInfo = server
        self._connection = connection
        self._emitters = emitters
        #: The client's address as the socket gives it: ``("192.0.2.1", 54321)``; ``""`` on a unix socket. Behind a
        #: trusted proxy, the address that the proxy names.
        self.peer: SocketAddress = peer
        #: The PROXY header of the connection, from a proxy in ``proxy_from``; None: there was none.
        self.proxy: ProxyHeader | None = None
        #: What proxies in ``xclient_from`` have said of the client by XCLIENT: ``{"NAME": "client.example", ...}``.
        self.xclient: Mapping[str, str] | None = None
        #: What a peer in ``xforward_from`` has said of this transaction's first client by XFORWARD, for logs. It is no
        #: reason to trust the client.
        self.forwarded: Mapping[str, str] | None = None
        #: True once TLS is up; with ``proxy_tls``, also if TLS has ended at the proxy.
        self.tls: bool = False
        #: ``"helo"``, ``"ehlo"`` or ``"lhlo"``; None before the client has sent one of them.
        self.greeting: str | None = None
        #: The client's name, from HELO, EHLO or LHLO.
        self.hostname: str | None = None
        #: The authenticated user, set by the Auth middleware. It survives RSET and EHLO, but not STARTTLS.
        self.identity: Identity | None = None
        #: The reply to the EHLO or LHLO that is in force.
        self._hello_reply: Reply | None = None
        #: The reverse-path; None: no transaction; ``""``: the null sender.
        self.from_: Address | None = None
        #: The recipients accepted so far.
        self.to: list[Address] = []
        #: The body, while one is being received.
        self.message: MessageStream | None = None
        #: The number of messages accepted so far.
        self.messages_accepted: int = 0
        #: The number of 5xx replies since the last accepted message.
        self.errors: int = 0
        #: Commands that did not advance a transaction, since the last accepted message.
        self._idle_commands = 0
        #: Where the connection stands in the SMTP dialogue.
        self.state: State = State.CONNECTED
        #: The ack that receivers are deciding; the deadline monitor checks it.
        self._ack_state: AckState | None = None
        #: True if STARTTLS was accepted: the handshake follows the reply.
        self._tls_requested = False
        #: The changes that take effect if the reply to the current command is positive.
        self._staged: tuple[Change, ...] = ()
        #: Counts changes of the hello and the transaction.
        self._changes = 0
        #: None until a handler asks for them.
        self._transaction_notes: dict[Any, Any] | None = None
        #: None until it is asked for.
        self._transaction_id: str | None = None
        #: What to call when the transaction is over.
        self._at_end: tuple[Callable[[], object], ...] = ()
        #: Replaces the next body; see ``wrap_body``.
        self._wrap_body: Callable[[Body], Body] | None = None
        self._id: str | None = None
        self._notes: dict[Any, Any] | None = None
        self._receivers: tuple[tuple[Signal, Callable[..., Any]], ...] = ()

    @property
    def id(self) -> str:
        """A name for logs: process digits and a number, practically unique among all processes."""
        name = self._id
        if name is None:
            name = self._id = f"{_process(os.getpid())}-{next(_numbers):x}"
        return name

    @property
    def transaction_id(self) -> str:
        """The transaction's ID: ``6447ef957f640-5c1f0a-1f``, in log lines, Received, and ``queued as`` of the reply.

        It is the time in microseconds and the session's ID. So it sorts by time, and no other transaction has it on any
        machine. It is an atom and a file name. It lasts as long as ``transaction_notes``, and is made when it is first
        read.
        """
        name = self._transaction_id
        if name is None:
            name = self._transaction_id = "%x-%s" % (time_ns() // 1000, self._id or self.id)  # noqa: UP031 - faster
        return name

    @property
    def log_id(self) -> str:
        """What to begin a log line with: ``transaction_id`` within a transaction, else ``id``, which it contains."""
        return self.id if self.from_ is None and self._transaction_id is None else self.transaction_id

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
        """A dict for data of handlers and middleware, for as long as the connection lasts."""
        notes = self._notes
        if notes is None:
            notes = self._notes = {}
        return notes

    @property
    def transaction_notes(self) -> dict[Any, Any]:
        """A dict for data of handlers and middleware, for as long as the transaction lasts.

        It begins with MAIL, whose handlers may use it already, and ends with the reply to the message, RSET, a new
        HELO or EHLO, or STARTTLS.
        """
        notes = self._transaction_notes
        if notes is None:
            notes = self._transaction_notes = {}
        return notes

    def at_transaction_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, when ``transaction_notes`` end: to undo what a handler of MAIL or RCPT has begun.

        An exception of it is logged. (``MessageStream.at_end`` is for what belongs to one message.)
        """
        self._at_end = (*self._at_end, callback)

    @property
    def tls_version(self) -> str | None:
        """``"TLSv1.3"``, that of the TLS that has ended at the proxy too; None without TLS, or if it is not known."""
        return self._tls_fact("version", lambda socket: socket.version())

    @property
    def tls_cipher(self) -> str | None:
        """The name of the cipher, that of the TLS that has ended at the proxy too; None as for ``tls_version``."""
        return self._tls_fact("cipher", lambda socket: (socket.cipher() or (None,))[0])

    @property
    def client_certificate(self) -> Mapping[str, Any] | None:
        """The certificate that the client has presented and an authority of ``client_ca`` has signed; else None.

        As ``ssl.SSLSocket.getpeercert`` returns it: ``subject``, ``subjectAltName`` and so on.
        """
        socket = self._connection.socket
        return (socket.getpeercert() or None) if self.tls and hasattr(socket, "getpeercert") else None

    def _tls_fact(self, name: str, of_socket: Callable[[Any], str | None]) -> str | None:
        if not self.tls:
            return None
        socket = self._connection.socket
        if hasattr(socket, "cipher"):
            return of_socket(socket)
        ssl = None if self.proxy is None else self.proxy.ssl
        return None if ssl is None else getattr(ssl, name)

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
        """True if this transaction may have addresses and header fields in UTF-8 (RFC 6531)."""
        return "SMTPUTF8" in self.from_ext

    @property
    def extensions(self) -> frozenset[str]:
        """The extensions that the client may use: the keywords in the reply to its EHLO or LHLO, in upper case.

        Empty before that, after HELO, and after STARTTLS, until the client says EHLO again.
        """
        return frozenset() if self._hello_reply is None else frozenset(parse_offers(self._hello_reply))

    @property
    def protocol(self) -> str:
        """The protocol as the ``with`` clause of Received names it: ``ESMTPS``, ``LMTP`` (RFC 3848, RFC 6531)."""
        if self.greeting == "helo":
            return "SMTP"
        name = "LMTP" if self.server.lmtp else "SMTP" if self.smtputf8 else "ESMTP"
        return ("UTF8" if self.smtputf8 else "") + name + "S" * self.tls + "A" * (self.identity is not None)

    # ``on`` is inherited: its handlers are called for this connection only, and are disconnected at its end.

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
        """Disconnect what ``on`` connected, at the end: blinker would keep the handlers, and they the session."""
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)
        self._receivers = ()

    def ask(self, name: str, /, **fields: Any) -> Reply | None:
        """Emit a signal with an ack, and return the receivers' decision as a reply; a receiver that fails is a 451.

        For middleware that owns an extension: Auth calls ``session.ask("auth", identity=...)``.
        """
        return self._emitters[name].collect(self, None, **fields)

    def challenge(self, text: str = "", code: int = 334) -> bytes:
        """Send a 3xx reply, and return the line that the client answers, without its CRLF (RFC 4954 section 4).

        :raises MalformedAnswer: the answer is longer than ``max_auth_line_length``, or holds a bare CR or LF.
        :raises ConnectionLost: the client is gone.
        :raises RuntimeError: the caller is not in the connection's own greenlet, where handlers are called.
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
        """Call ``change(*arguments)`` if the reply to the current command is positive; drop it otherwise.

        Whatever a command changes is staged, in the dispatcher and in middleware, such as
        ``session.stage(setattr, session, "identity", identity)``. The calls are made in order when the whole stack has
        answered, in the connection's greenlet, before the next command is read. If one raises a
        Reject, that is the reply; anything else is logged, and the client gets 451. If one returns a Reply with
        250, it replaces the usual ``queued as ID``. A change that is staged after its command has been answered
        is dropped.
        """
        self._staged = (*self._staged, (change, arguments))

    def _hello(self, greeting: str, hostname: str) -> None:
        """Take the arguments of HELO, EHLO or LHLO, which end the transaction (RFC 5321 section 4.1.4)."""
        self.greeting = greeting
        self.hostname = hostname
        self._hello_reply = None
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
        self.from_ = self._transaction_notes = self.forwarded = None
        if self.to:
            self.to = []
        if self.message is not None:
            self.message.end()
            self.message = None
        if self._at_end:
            self._end_transaction()
        self._transaction_id = None  # last: what is called at the end of the message may log it
        self.state = _CONNECTED if self.greeting is None else _GREETED

    def _end_transaction(self) -> None:
        callbacks, self._at_end = self._at_end, ()
        for callback in callbacks:
            try:
                callback()
            except ENDINGS:
                raise
            except BaseException:
                logger.exception("%s: %s raised at the end of a transaction", self.log_id, handler_name(callback))

    def _reset_all(self) -> None:
        """Return to the state before EHLO, after STARTTLS (RFC 3207 section 4.2)."""
        self.greeting = self.hostname = self.identity = self._hello_reply = None
        self.reset()

    def _begin_again(self, peer: SocketAddress, xclient: Mapping[str, str]) -> None:
        """Return to the state before the banner, after XCLIENT, with another client."""
        self._reset_all()
        self.peer, self.xclient = peer, xclient
        self.errors = self._idle_commands = self.messages_accepted = 0

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.peer!r} {self.state.name.lower()}>"


#: The class of the sessions that handlers get. It allows weak references, which blinker needs.
ServedSession = weakly_referable(Session)
