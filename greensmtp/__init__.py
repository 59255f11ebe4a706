"""greensmtp: a gevent SMTP and LMTP server framework with middleware and signals."""

from greensmtp import signals
from greensmtp.ack import Ack
from greensmtp.chain import Middleware, Proceed
from greensmtp.errors import (
    AlreadyAcknowledged,
    ConnectionLost,
    GreenSMTPError,
    IncompleteMessage,
    MessageRefused,
    ProtocolError,
    Reject,
    TransactionReset,
)
from greensmtp.limits import Limits
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
    "Command",
    "ConnectionLost",
    "GreenSMTPError",
    "IncompleteMessage",
    "Limits",
    "MessageRefused",
    "MessageStream",
    "Middleware",
    "Proceed",
    "ProtocolError",
    "Reject",
    "Reply",
    "SMTPServer",
    "Session",
    "TransactionReset",
    "__version__",
    "signals",
]
