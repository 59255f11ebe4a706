"""greensmtp: a gevent SMTP and LMTP server framework with middleware and signals."""

from greensmtp import client_signals, signals
from greensmtp.ack import Ack
from greensmtp.chain import Middleware, Proceed
from greensmtp.client import SMTPClient
from greensmtp.connecting import connect
from greensmtp.deadlines import Timeouts
from greensmtp.errors import (
    AlreadyAcknowledged,
    AuthenticationFailed,
    CannotConnect,
    ClientError,
    ConnectionLost,
    DataRefused,
    Disconnected,
    GreenSMTPError,
    HelloRefused,
    IncompleteMessage,
    MessageRefused,
    NotOffered,
    PartiallyRefused,
    PeerProtocolError,
    PoolClosed,
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
from greensmtp.limits import Limits
from greensmtp.outgoing import Sent
from greensmtp.pool import Pool
from greensmtp.protocol.addresses import Address
from greensmtp.protocol.commands import Command
from greensmtp.protocol.replies import Reply
from greensmtp.server import SMTPServer
from greensmtp.session import Session
from greensmtp.stream import MessageStream

__version__ = "0.1.0"

__all__ = [
    "Ack",
    "Address",
    "AlreadyAcknowledged",
    "AuthenticationFailed",
    "CannotConnect",
    "ClientError",
    "Command",
    "ConnectionLost",
    "DataRefused",
    "Disconnected",
    "GreenSMTPError",
    "HelloRefused",
    "IncompleteMessage",
    "Limits",
    "MessageRefused",
    "MessageStream",
    "Middleware",
    "NotOffered",
    "PartiallyRefused",
    "PeerProtocolError",
    "Pool",
    "PoolClosed",
    "Proceed",
    "ProtocolError",
    "RecipientsRefused",
    "Refused",
    "Reject",
    "Reply",
    "SMTPClient",
    "SMTPServer",
    "SenderRefused",
    "Sent",
    "Session",
    "TLSFailed",
    "TLSRefused",
    "TLSUnverified",
    "Timeouts",
    "TransactionReset",
    "__version__",
    "client_signals",
    "connect",
    "signals",
]
