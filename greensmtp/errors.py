"""Every exception that greensmtp raises to its users."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from greensmtp.protocol.errors import GreenSMTPError as GreenSMTPError
from greensmtp.protocol.errors import ProtocolError as ProtocolError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import SendResult

#: A reply code at the beginning of a text. It is an argument of its own.
_REPLY_CODE = re.compile(r"[2-5][0-9]{2}[ -]")


class Reject(GreenSMTPError):
    """Raised by a signal handler or a middleware: it becomes the reply.

    ``Reject(550, "5.7.1 relaying denied")``; ``Reject("5.7.1 relaying denied")``, whose code is 550; or
    ``Reject(reply)`` with a 4xx or 5xx ``Reply``, for example of a next hop: its enhanced status code is kept, and 421
    becomes 451, since 421 closes the connection.

    :param code: a 4xx or 5xx reply code, a Reply, or the text alone.
    :param message: the text, which may begin with an enhanced status code; several lines as one str with newlines, or
        as an iterable of str.
    :raises ValueError: the code is not 4xx or 5xx, or the enhanced status code belongs to another class.
    :raises TypeError: the message is not a str or an iterable of str.
    """

    code: int
    #: The text as given; for a Reply, its enhanced status code and its text.
    message: str | None
    #: The Reply, if one was given.
    reply: Reply | None

    def __init__(self, code: int | str | Reply = 550, message: str | Iterable[str] | None = None) -> None:
        self.reply = None
        if isinstance(code, str) and message is None and not code.strip().isdigit():
            if _REPLY_CODE.match(code):
                raise ValueError(
                    f"Reject takes code and text as two arguments, like Reject(550, '5.7.1 no'), not {code!r}"
                )
            message, code = code, 550
        if isinstance(code, Reply):
            if message is not None:
                raise TypeError("Reject takes a Reply or a message, not both: the Reply has its own text")
            if code.code < 400:
                raise ValueError(f"Reject takes a 4xx or 5xx reply, not {code!s}")
            self.reply = code.handed_on()
            self.code, self.message = self.reply.code, f"{self.reply.enhanced or ''} {self.reply.text}".strip()
        elif not isinstance(code, int | str):
            raise ValueError(f"Reject takes a reply code like 550, a text or a Reply, not {code!r}")
        else:
            self.code, self.message = _rejecting(code), None if message is None else _text(message)
            if self.message is not None:
                _check_text(self.code, self.message)
        super().__init__(self.code, self.message)

    def __str__(self) -> str:
        return f"{self.code} {self.message}" if self.message else str(self.code)


def _rejecting(code: int | str) -> int:
    try:
        number = int(code)
    except ValueError:
        number = 0
    if not 400 <= number <= 599:
        raise ValueError(f"Reject takes a 4xx or 5xx reply code, not {code!r}")
    return number


def _text(message: str | Iterable[str]) -> str:
    if isinstance(message, str):
        return message
    try:
        return "\n".join(message)
    except TypeError:
        raise TypeError(f"message must be a str, or an iterable of str, not {message!r}") from None


def _check_text(code: int, text: str) -> None:
    """Raise ValueError where the enhanced status code is of another class than the reply code."""
    try:
        Reply(code, text)
    except ProtocolError as error:
        raise ValueError(str(error)) from None


def reply_of(reject: Reject, usual: str = "Refused") -> Reply:
    """Return the reply that a Reject stands for.

    :param usual: the text of the reply where the Reject has none.
    """
    return reject.reply or Reply(reject.code, reject.message or usual)


class AlreadyAcknowledged(GreenSMTPError):
    """The ack was decided already, or its command was answered without it."""


class IncompleteMessage(GreenSMTPError, OSError):
    """The body will never be whole: what was read of it must not be kept as a message."""


class ConnectionLost(IncompleteMessage, ConnectionError):
    """The connection is over. ``reason`` is ``closed``, ``reset``, ``timeout``, ``slow``, ``displaced`` or
    ``shutdown``."""

    def __init__(self, reason: str = "closed") -> None:
        super().__init__(f"connection lost: {reason}")
        self.reason = reason


class TransactionReset(IncompleteMessage):
    """The client ended the transaction between two chunks of a body (RSET after BDAT, RFC 3030 section 2)."""


class MessageRefused(IncompleteMessage):
    """The server refuses the rest of this body: it is too large, or its lines are malformed.

    The reply is settled (``code``, ``message``): a handler cannot change it.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


# The client's


class ClientError(GreenSMTPError):
    """The base of the errors that the client raises about its server.

    ``transient`` tells whether another attempt may succeed later; ``safe_to_retry``, whether it cannot deliver a second
    copy of the message.
    """

    #: Another attempt may succeed later.
    transient: bool = False
    #: No server has taken the message: it can be sent again, also to another host, without a duplicate.
    safe_to_retry: bool = True
    #: The server's reply, if there is one.
    reply: Reply | None = None

    def _take_reply(self, reply: Reply | None) -> None:
        self.reply = reply
        if reply is not None:
            self.transient = reply.is_transient_failure


class CannotConnect(ClientError, ConnectionError):
    """No connection, no banner, or a banner that refuses service; then ``reply`` is that banner."""

    transient = True

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self._take_reply(reply)


class TLSFailed(ClientError, ConnectionError):
    """TLS could not be started. If it is neither ``TLSRefused`` nor ``TLSUnverified``, the handshake failed."""

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self._take_reply(reply)


class TLSRefused(TLSFailed):
    """The server does not offer STARTTLS, or refuses it, and ``starttls="require"`` was given."""


class TLSUnverified(TLSFailed):
    """The server's certificate does not verify, or a handler of ``secure`` rejects the server."""


class AuthenticationFailed(ClientError):
    """The server refuses the credentials (see ``reply``) or cannot prove itself, or no mechanism is usable."""

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self._take_reply(reply)


class NotOffered(ClientError):
    """The message needs an extension that the server does not offer; ``extension`` is its keyword."""

    def __init__(self, extension: str, why: str) -> None:
        super().__init__(f"{why}, and the server does not offer {extension}")
        self.extension = extension


class Refused(ClientError):
    """The server refused a command that sending needs, with ``reply``.

    ``recipients`` has the reply for each recipient that was sent so far.
    """

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply] | None = None) -> None:
        super().__init__(f"{what}: {reply}")
        self._take_reply(reply)
        self.recipients = dict(recipients or {})


class HelloRefused(Refused):
    """The server refused EHLO and HELO, or LHLO."""


class SenderRefused(Refused):
    """MAIL was refused."""


class RecipientsRefused(Refused):
    """All recipients were rejected; ``transient`` if one of them may be accepted later."""

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply] | None = None) -> None:
        super().__init__(what, reply, recipients)
        self.transient = any(reply.is_transient_failure for reply in self.recipients.values())


class DataRefused(Refused):
    """DATA or the message was refused. In LMTP: for all recipients; ``transient`` if one may be accepted later."""


class PartiallyRefused(Refused):
    """With ``raise_on_partial``: some recipients were rejected, the others have the message.

    ``result`` is what ``send`` would have returned.
    """

    safe_to_retry = False

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply], result: SendResult) -> None:
        super().__init__(what, reply, recipients)
        self.result = result


class Disconnected(ClientError, ConnectionLost):
    """The connection was lost. ``after_content``: the whole message was sent, and its reply had not arrived.

    In LMTP the replies for some recipients may have arrived; ``recipients`` has them. A recipient with a positive reply
    has the message; for those without a reply it is unknown.
    """

    transient = True
    #: The replies to the last commands, as far as they arrived.
    replies: tuple[Reply, ...] = ()

    def __init__(self, reason: str, *, after_content: bool = False, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.after_content = after_content
        self.safe_to_retry = not after_content
        #: The server's last reply, usually 421.
        self.reply = reply
        #: LMTP: recipient -> reply to the message, as far as they arrived.
        self.recipients: dict[str, Reply] = {}


class PeerProtocolError(ClientError, ProtocolError):
    """The server violates the protocol. The connection was closed, since its replies cannot be trusted."""

    def __init__(self, text: str, *, after_content: bool = False) -> None:
        super().__init__(text)
        self.after_content = after_content
        self.safe_to_retry = not after_content


class PoolTimeout(ClientError, TimeoutError):
    """All connections of the pool were busy for ``acquire_timeout`` seconds."""

    transient = True


class PoolClosed(GreenSMTPError, RuntimeError):
    """The pool was closed."""
