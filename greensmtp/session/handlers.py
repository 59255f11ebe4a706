"""The types of signal handlers, and ``on``, which connects them.

A handler is called with the session as its only positional argument, then by keyword: a parameter's name is what
counts, not its place. The protocols say so to a type checker. The session is ``Any`` in them, because ``Session`` has
its own ``on``.

To add a signal: its name in ``signals.FIELDS``, its replies in ``ack_rules.RULES`` if it has an ack, and its overloads
here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from greensmtp._compiled import mypyc_attr

if TYPE_CHECKING:
    from greensmtp.protocol.address import Address
    from greensmtp.protocol.command import Command, HelloCommand, LookupCommand, QueueCommand
    from greensmtp.protocol.reply import Reply
    from greensmtp.protocol.sasl.exchange import Identity
    from greensmtp.session.ack import Ack
    from greensmtp.session.stream import MessageStream


class ConnectHandler(Protocol):
    """``connect``: decide whether to serve a client."""

    def __call__(self, session: Any, /, *, ack: Ack) -> Reply | None: ...


class CommandHandler(Protocol):
    """``command``: see every command, and refuse or replace it."""

    def __call__(self, session: Any, /, *, command: Command, ack: Ack) -> Reply | None: ...


class HelloHandler(Protocol):
    """``greeting``: decide on HELO, EHLO or LHLO."""

    def __call__(self, session: Any, /, *, greeting: HelloCommand, ack: Ack) -> Reply | None: ...


class AuthHandler(Protocol):
    """``auth``: decide on credentials that have been verified."""

    def __call__(self, session: Any, /, *, identity: Identity, ack: Ack) -> Reply | None: ...


class AddressHandler(Protocol):
    """``from`` and ``to``: decide on a sender or a recipient."""

    def __call__(self, session: Any, /, *, address: Address, ack: Ack) -> Reply | None: ...


class MessageHandler(Protocol):
    """``message``: decide whether a body may flow, and read it."""

    def __call__(self, session: Any, /, *, stream: MessageStream, ack: Ack) -> Reply | None: ...


class ReceivedHandler(Protocol):
    """``received`` of an SMTP server: decide on a whole message."""

    def __call__(self, session: Any, /, *, ack: Ack) -> Reply | None: ...


class LMTPReceivedHandler(Protocol):
    """``received`` of an LMTP server: decide on a whole message for one recipient."""

    def __call__(self, session: Any, /, *, recipient: Address, ack: Ack) -> Reply | None: ...


class LookupHandler(Protocol):
    """``vrfy`` and ``expn``: look up a user or a list."""

    def __call__(self, session: Any, /, *, command: LookupCommand, ack: Ack) -> Reply | None: ...


class QueueHandler(Protocol):
    """``etrn``: start a queue."""

    def __call__(self, session: Any, /, *, command: QueueCommand, ack: Ack) -> Reply | None: ...


class SessionHandler(Protocol):
    """``reset``, ``quit`` and ``tls``: take note."""

    def __call__(self, session: Any, /) -> None: ...


class DisconnectHandler(Protocol):
    """``disconnect``: take note that the connection is over, and why."""

    def __call__(self, session: Any, /, *, reason: str) -> None: ...


_Connect = TypeVar("_Connect", bound=ConnectHandler)
_Command = TypeVar("_Command", bound=CommandHandler)
_Hello = TypeVar("_Hello", bound=HelloHandler)
_Auth = TypeVar("_Auth", bound=AuthHandler)
_Address = TypeVar("_Address", bound=AddressHandler)
_Message = TypeVar("_Message", bound=MessageHandler)
_Received = TypeVar("_Received", bound=ReceivedHandler | LMTPReceivedHandler)
_Lookup = TypeVar("_Lookup", bound=LookupHandler)
_Queue = TypeVar("_Queue", bound=QueueHandler)
_Session = TypeVar("_Session", bound=SessionHandler)
_Disconnect = TypeVar("_Disconnect", bound=DisconnectHandler)


@mypyc_attr(allow_interpreted_subclasses=True)
class ConnectsHandlers:
    """Whatever has an ``on``: a session, a server, the signals of a server or of the process."""

    __slots__ = ()

    @overload
    def on(self, name: Literal["connect"], handler: _Connect) -> _Connect: ...
    @overload
    def on(self, name: Literal["connect"]) -> Callable[[_Connect], _Connect]: ...
    @overload
    def on(self, name: Literal["command"], handler: _Command) -> _Command: ...
    @overload
    def on(self, name: Literal["command"]) -> Callable[[_Command], _Command]: ...
    @overload
    def on(self, name: Literal["greeting"], handler: _Hello) -> _Hello: ...
    @overload
    def on(self, name: Literal["greeting"]) -> Callable[[_Hello], _Hello]: ...
    @overload
    def on(self, name: Literal["auth"], handler: _Auth) -> _Auth: ...
    @overload
    def on(self, name: Literal["auth"]) -> Callable[[_Auth], _Auth]: ...
    @overload
    def on(self, name: Literal["from", "from_", "to"], handler: _Address) -> _Address: ...
    @overload
    def on(self, name: Literal["from", "from_", "to"]) -> Callable[[_Address], _Address]: ...
    @overload
    def on(self, name: Literal["message"], handler: _Message) -> _Message: ...
    @overload
    def on(self, name: Literal["message"]) -> Callable[[_Message], _Message]: ...
    @overload
    def on(self, name: Literal["received"], handler: _Received) -> _Received: ...
    @overload
    def on(self, name: Literal["received"]) -> Callable[[_Received], _Received]: ...
    @overload
    def on(self, name: Literal["vrfy", "expn"], handler: _Lookup) -> _Lookup: ...
    @overload
    def on(self, name: Literal["vrfy", "expn"]) -> Callable[[_Lookup], _Lookup]: ...
    @overload
    def on(self, name: Literal["etrn"], handler: _Queue) -> _Queue: ...
    @overload
    def on(self, name: Literal["etrn"]) -> Callable[[_Queue], _Queue]: ...
    @overload
    def on(self, name: Literal["reset", "quit", "tls"], handler: _Session) -> _Session: ...
    @overload
    def on(self, name: Literal["reset", "quit", "tls"]) -> Callable[[_Session], _Session]: ...
    @overload
    def on(self, name: Literal["disconnect"], handler: _Disconnect) -> _Disconnect: ...
    @overload
    def on(self, name: Literal["disconnect"]) -> Callable[[_Disconnect], _Disconnect]: ...

    def on(self, name: str, handler: Any = None) -> Any:
        """Connect a handler to a signal, and hold it: ``on("to", handler)``, or ``@on("to")`` before a function.

        :raises ValueError: there is no such signal.
        :raises TypeError: the handler cannot be called with the arguments of this signal.
        """
        if handler is None:
            self._check_signal(name)
            return lambda function: self._connect_handler(name, function)
        return self._connect_handler(name, handler)

    def _check_signal(self, name: str) -> None:
        """Raise ValueError if there is no such signal."""
        raise NotImplementedError

    def _connect_handler(self, name: str, handler: Any) -> Any:
        """Connect a handler, and return it."""
        raise NotImplementedError
