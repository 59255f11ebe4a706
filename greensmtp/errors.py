"""What can go wrong: every exception that greensmtp raises at its users."""

from __future__ import annotations


class GreenSMTPError(Exception):
    """The base of all of them."""


class Reject(GreenSMTPError):
    """Raise it in a signal handler or a middleware: this is the reply.

    ``code`` is a 4xx or 5xx reply code; ``message`` the text, which may begin with an enhanced status code
    (``"5.7.1 relaying denied"``) and may have several lines.
    """

    def __init__(self, code: int = 550, message: str | None = None) -> None:
        if not 400 <= int(code) <= 599:
            raise ValueError(f"Reject takes a 4xx or 5xx reply code, not {code!r}")
        super().__init__(code, message)
        self.code = int(code)
        self.message = message

    def __str__(self) -> str:
        return f"{self.code} {self.message}" if self.message else str(self.code)


class AlreadyAcknowledged(GreenSMTPError):
    """This ack has been decided already, or its command has been answered without it."""


class ProtocolError(GreenSMTPError):
    """Bytes or text that the protocol's grammar does not allow, given by us or by the peer."""


class IncompleteMessage(GreenSMTPError, OSError):
    """This body will never be whole; what has been read of it must not be kept as a message."""


class ConnectionLost(IncompleteMessage, ConnectionError):
    """The peer is gone. ``reason`` says how: ``closed``, ``reset``, ``timeout``, ``slow``, ``shutdown``."""

    def __init__(self, reason: str = "closed") -> None:
        super().__init__(f"connection lost: {reason}")
        self.reason = reason


class TransactionReset(IncompleteMessage):
    """The peer gave the transaction up between two chunks of a body (RSET after BDAT, RFC 3030 section 2)."""


class MessageRefused(IncompleteMessage):
    """The server refuses the rest of this body: it is too large, or its lines are not well formed.

    The reply has been settled (``code``, ``message``); whatever the receiver does, it is what the peer gets.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message
