"""greensmtp: a gevent SMTP and LMTP server framework with middleware and signals.

``import greensmtp`` imports the server. The client, and other parts that not every program needs, are imported when one
of their names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from greensmtp import signals
from greensmtp.chain.chain import Middleware, Proceed
from greensmtp.errors import (
    AlreadyAcknowledged,
    ArgumentError,
    AuthenticationFailed,
    CannotConnect,
    ClientError,
    ConnectionLost,
    DataRefused,
    Disconnected,
    EnvelopeMissing,
    GreenSMTPError,
    HelloRefused,
    IncompleteMessage,
    MalformedAnswer,
    MessageRefused,
    NotOffered,
    PartiallyRefused,
    PeerProtocolError,
    PoolClosed,
    PoolTimeout,
    ProtocolError,
    RecipientsRefused,
    Refused,
    Reject,
    SenderRefused,
    TLSFailed,
    TLSRefused,
    TLSUnverified,
    TransactionReset,
)
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import (
    ChunkCommand,
    Command,
    EndOfData,
    HelloCommand,
    LookupCommand,
    PathCommand,
    QueueCommand,
)
from greensmtp.protocol.reply import Reply
from greensmtp.server.certificates import Certificate, Certificates
from greensmtp.server.limits import Limits
from greensmtp.server.server import SMTPServer
from greensmtp.session import ServerInfo, Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream

if TYPE_CHECKING:
    from greensmtp.chain.compose import compose, when
    from greensmtp.client import signals as client_signals
    from greensmtp.client.client import SMTPClient
    from greensmtp.client.connect import connect
    from greensmtp.client.pool import Pool
    from greensmtp.client.timeouts import Timeouts
    from greensmtp.protocol.send_result import SendResult
    from greensmtp.server.run import run
    from greensmtp.session.mail import Mail
    from greensmtp.thread_pool import in_thread_pool

__version__ = "0.1.0"

__all__ = [
    "Ack",
    "Address",
    "AlreadyAcknowledged",
    "ArgumentError",
    "AuthenticationFailed",
    "CannotConnect",
    "Certificate",
    "Certificates",
    "ChunkCommand",
    "ClientError",
    "Command",
    "ConnectionLost",
    "DataRefused",
    "Disconnected",
    "EndOfData",
    "EnvelopeMissing",
    "GreenSMTPError",
    "HelloCommand",
    "HelloRefused",
    "IncompleteMessage",
    "Limits",
    "LookupCommand",
    "Mail",
    "MalformedAnswer",
    "MessageRefused",
    "MessageStream",
    "Middleware",
    "NotOffered",
    "PartiallyRefused",
    "PathCommand",
    "PeerProtocolError",
    "Pool",
    "PoolClosed",
    "PoolTimeout",
    "Proceed",
    "ProtocolError",
    "QueueCommand",
    "RecipientsRefused",
    "Refused",
    "Reject",
    "Reply",
    "SMTPClient",
    "SMTPServer",
    "SendResult",
    "SenderRefused",
    "ServerInfo",
    "Session",
    "TLSFailed",
    "TLSRefused",
    "TLSUnverified",
    "Timeouts",
    "TransactionReset",
    "__version__",
    "client_signals",
    "compose",
    "connect",
    "in_thread_pool",
    "run",
    "signals",
    "when",
]

#: Name -> the module that is imported when the name is first used.
_LATER = {
    "Mail": "greensmtp.session.mail",
    "Pool": "greensmtp.client.pool",
    "SMTPClient": "greensmtp.client.client",
    "SendResult": "greensmtp.protocol.send_result",
    "Timeouts": "greensmtp.client.timeouts",
    "compose": "greensmtp.chain.compose",
    "connect": "greensmtp.client.connect",
    "in_thread_pool": "greensmtp.thread_pool",
    "run": "greensmtp.server.run",
    "when": "greensmtp.chain.compose",
}


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """Import the module of a name (PEP 562)."""
        if name == "client_signals":
            return import_module("greensmtp.client.signals")
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(_LATER[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
