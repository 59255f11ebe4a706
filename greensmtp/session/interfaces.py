"""What a session needs of the objects around it, as protocols: the session room imports no server.

``Connection`` is implemented by ``server.handler.ConnectionHandler``, ``Collector`` by ``Emitter``, ``Body`` by
``server.body``, ``MessageOwner`` by ``Session``. ``ServerInfo``, which the server implements, is in ``server_info``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gevent.socket import socket

    from greensmtp.errors import ConnectionLost
    from greensmtp.protocol.command import ChunkCommand
    from greensmtp.protocol.reply import Reply


class Body(Protocol):
    """A message body as DATA or BDAT frames it on the connection."""

    #: True once the end has been read.
    complete: bool

    def open(self, reply: Reply) -> None:
        """Let the client send the body: for DATA, send this reply."""

    def read_chunk(self) -> bytes:
        """Return the next bytes of the body, as many as there are; ``b""`` only when it is complete.

        :raises IncompleteMessage: the end will never come.
        """


class BodyCheck(Protocol):
    """Looks at every chunk, and returns the refusal when the body breaks a rule; ``last``: the body ends with it."""

    def __call__(self, chunk: bytes, last: bool) -> Reply | None: ...


class Writable(Protocol):
    """Anything with ``write(bytes)``."""

    def write(self, data: bytes, /) -> Any: ...


class MessageOwner(Protocol):
    """What a message stream needs of its session."""

    @property
    def log_id(self) -> str:
        """The transaction's name in logs."""

    @property
    def smtputf8(self) -> bool:
        """True if header fields may hold UTF-8 (RFC 6531)."""


class Connection(Protocol):
    """The connection beneath a session."""

    @property
    def socket(self) -> socket:
        """The gevent socket."""

    @property
    def close_error(self) -> ConnectionLost | None:
        """The error that ended the connection."""

    def flush(self) -> None:
        """Send the replies that are waiting."""

    def take_place(self) -> Reply:
        """Take one of the server's ``max_connections``; return a refusal if there is none."""

    def challenge(self, reply: Reply) -> bytes:
        """Send a reply, and return the line that answers it."""

    def data_body(self) -> Body:
        """Return the body that follows DATA."""

    def chunked_body(self, command: ChunkCommand) -> Body:
        """Return the body that begins with this BDAT."""


class Collector(Protocol):
    """One signal of a server: ``Emitter``, which imports ``Session``."""

    def emit(self, session: Any, **fields: Any) -> None:
        """Call the receivers of a signal without an ack."""

    def collect(self, session: Any, on_accept: Callable[[Reply], None] | None = None, /, **fields: Any) -> Reply | None:
        """Have the receivers of a signal with an ack decide, and return their decision as a reply."""
