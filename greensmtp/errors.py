"""What can go wrong: every exception that greensmtp raises at its users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greensmtp.outgoing import Sent
    from greensmtp.protocol.replies import Reply


class GreenSMTPError(Exception):
    """The base of all of them. They can be pickled, for those who work with several processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own calls the class with ``args``, which is the text, and not what every class takes.
        return _unpickled, (type(self), self.args), self.__dict__


def _unpickled(kind: type[GreenSMTPError], args: tuple[Any, ...]) -> GreenSMTPError:
    error = kind.__new__(kind)
    error.args = args
    return error


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
    """The peer is gone. ``reason`` says how: ``closed``, ``reset``, ``timeout``, ``slow``, ``displaced``,
    ``shutdown``."""

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


# The client's


class ClientError(GreenSMTPError):
    """The base of what the client raises about its peer.

    What a program wants to know of each: is it worth another try later (``transient``), and can another try
    make a second copy of the message (``may_retry`` is false then)?
    """

    #: Another try, later, may succeed.
    transient: bool = False
    #: Nobody can have taken the message: it may be sent again, now and to another host, without a duplicate.
    may_retry: bool = True
    #: The reply that says so, where there is one.
    reply: Reply | None = None

    def _take_reply(self, reply: Reply | None) -> None:
        self.reply = reply
        if reply is not None:
            self.transient = reply.is_transient_failure


class CannotConnect(ClientError, ConnectionError):
    """No connection, no banner, or a banner that refuses service (then with its ``reply``)."""

    transient = True

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self._take_reply(reply)


class TLSFailed(ClientError, ConnectionError):
    """The connection could not be made secure. ``TLSRefused`` and ``TLSUnverified`` say why; else the handshake
    itself failed."""

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self._take_reply(reply)


class TLSRefused(TLSFailed):
    """The peer does not offer STARTTLS, or refuses it, and ``starttls="require"`` was asked for."""


class TLSUnverified(TLSFailed):
    """The peer is not who it should be: its certificate does not verify, or a handler of ``secure`` rejects it."""


class AuthenticationFailed(ClientError):
    """The peer refuses the credentials (with its ``reply``), cannot prove itself, or no mechanism is fit."""

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self._take_reply(reply)


class NotOffered(ClientError):
    """The message needs an extension that the peer does not offer; ``extension`` is its keyword."""

    def __init__(self, extension: str, why: str) -> None:
        super().__init__(f"{why}, and the peer does not offer {extension}")
        self.extension = extension


class Refused(ClientError):
    """The peer refused a command that sending needs; ``reply`` is what it said.

    ``recipients`` has each recipient's own reply, as far as they were asked about.
    """

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply] | None = None) -> None:
        super().__init__(f"{what}: {reply}")
        self._take_reply(reply)
        self.recipients = dict(recipients or {})


class HelloRefused(Refused):
    """The peer refused EHLO and HELO, or LHLO."""


class SenderRefused(Refused):
    """MAIL was refused."""


class RecipientsRefused(Refused):
    """Nobody is left to send to; ``transient`` where one of them may be taken later."""

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply] | None = None) -> None:
        super().__init__(what, reply, recipients)
        self.transient = any(reply.is_transient_failure for reply in self.recipients.values())


class DataRefused(Refused):
    """DATA, or the message itself, was refused. (LMTP: for all recipients; ``transient`` where one of them may have
    it later.)"""


class PartiallyRefused(Refused):
    """With ``raise_on_partial``: the message was sent, but not to all. ``result`` is what ``send`` would return."""

    may_retry = False

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply], result: Sent) -> None:
        super().__init__(what, reply, recipients)
        self.result = result


class Disconnected(ClientError, ConnectionLost):
    """The peer is gone. ``after_content``: the whole message had been sent, and its reply had not come.

    In LMTP some recipients' replies may have come before: they are in ``recipients``, and the message is theirs where
    they agree; nothing is known of the others.
    """

    transient = True
    #: The replies to what was said last, as far as they came.
    replies: tuple[Reply, ...] = ()

    def __init__(self, reason: str, *, after_content: bool = False, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.after_content = after_content
        self.may_retry = not after_content
        #: What it said last before it went: ``421`` most often.
        self.reply = reply
        #: LMTP: what each recipient's message was answered, as far as that came.
        self.recipients: dict[str, Reply] = {}


class PeerProtocolError(ClientError, ProtocolError):
    """The peer does not keep to the protocol; the connection has been closed, since nothing it says can be trusted."""

    def __init__(self, text: str, *, after_content: bool = False) -> None:
        super().__init__(text)
        self.after_content = after_content
        self.may_retry = not after_content


class PoolClosed(GreenSMTPError, RuntimeError):
    """This pool has been closed."""
