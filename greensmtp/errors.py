"""Every exception that greensmtp raises at its users."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from greensmtp.protocol.errors import EnvelopeMissing as EnvelopeMissing
from greensmtp.protocol.errors import GreenSMTPError as GreenSMTPError
from greensmtp.protocol.errors import ProtocolError as ProtocolError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import SendResult

#: A reply code at the beginning of a text. It must be a separate argument.
_REPLY_CODE = re.compile(r"[2-5][0-9]{2}[ -]")


class Reject(GreenSMTPError):
    """Raised in a signal handler or a middleware, it becomes the reply.

    ``Reject(550, "5.7.1 relaying denied")``; ``Reject("5.7.1 relaying denied")``, whose code is 550; or
    ``Reject(reply)`` with a 4xx or 5xx ``Reply``, that of a next hop for example: its enhanced status code is kept,
    and 421 becomes 451, since 421 would close the connection to the client.

    :param code: a 4xx or 5xx reply code, a Reply, or the text alone.
    :param message: the text, which may begin with an enhanced status code; several lines as one str with newlines, or
        as an iterable of str.
    :raises ValueError: the code is not 4xx or 5xx, or the enhanced status code belongs to another class.
    :raises TypeError: the message is not text.
    """

    code: int
    #: The text as it was given; of a Reply, its enhanced code and its text.
    message: str | None
    #: The Reply, where one was given.
    reply: Reply | None

    def __init__(self, code: int | str | Reply = 550, message: str | Iterable[str] | None = None) -> None:
        self.reply = None
        if isinstance(code, str) and message is None and not code.strip().isdigit():
            if _REPLY_CODE.match(code):
                raise ValueError(f"Reject: expected code and text apart, like Reject(550, '5.7.1 no'); got {code!r}")
            message, code = code, 550
        if isinstance(code, Reply):
            if message is not None:
                raise TypeError("Reject: expected a Reply or a message; got both: the Reply has its own text")
            if code.code < 400:
                raise ValueError(f"Reject: expected a 4xx or 5xx reply; got {code!s}")
            self.reply = code.handed_on()
            self.code, self.message = self.reply.code, f"{self.reply.enhanced or ''} {self.reply.text}".strip()
        elif not isinstance(code, int | str):
            raise ValueError(f"Reject: expected a reply code like 550, a text or a Reply; got {code!r}")
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
        raise ValueError(f"Reject: expected a 4xx or 5xx reply code; got {code!r}")
    return number


def _text(message: str | Iterable[str]) -> str:
    if isinstance(message, str):
        return message
    try:
        return "\n".join(message)
    except TypeError:
        raise TypeError(f"message: expected a str, or an iterable of str; got {message!r}") from None


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
    """The ack was decided before, or its command was answered without it."""


class IncompleteMessage(GreenSMTPError, OSError):
    """The body will never be complete; discard what was read of it."""


class ConnectionLost(IncompleteMessage, ConnectionError):
    """The connection is over. ``reason`` is one of ``closed``, ``reset``, ``timeout``, ``slow``, ``displaced``,
    ``proxy``, ``shutdown``."""

    def __init__(self, reason: str = "closed") -> None:
        super().__init__(f"connection lost: {reason}")
        self.reason = reason


class MalformedAnswer(ProtocolError):
    """The client answered a challenge with a line that cannot be taken. ``reply`` tells it why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class TransactionReset(IncompleteMessage):
    """The client ended the transaction between two chunks of a body (RSET after BDAT, RFC 3030 section 2)."""


class MessageRefused(IncompleteMessage):
    """The server refuses the rest of the body: it is too large, or its lines are malformed.

    The reply is decided (``code``, ``message``); the client gets it whatever the receiver does.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


class ArgumentError(GreenSMTPError, ValueError):
    """An argument has a wrong value.

    ``ArgumentError("rate", "expected at least 1; got 0")`` reads "rate: expected at least 1; got 0". A middleware may
    raise it from its constructor: for a stack that a configuration file describes, the error names the file, the line
    and the key of that option.

    :param name: the argument, as the caller wrote it.
    :param text: what was expected and what was given; or the rest of a sentence that begins with the name.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = name
        self.text = text

    def __str__(self) -> str:
        return f"{self.name}{':' if self.text.startswith('expected') else ''} {self.text}"


# The client's


class ClientError(GreenSMTPError):
    """The base class of the errors that the client raises about its server.

    Two attributes tell a program what to do: ``transient``, whether a later try may succeed, and ``safe_to_retry``,
    whether another try can make no second copy of the message.
    """

    #: A later try may succeed.
    transient: bool = False
    #: No server can have accepted the message: it may be sent again, now and to another host, without a duplicate.
    safe_to_retry: bool = True
    #: The server's reply, where there is one; it decides ``transient``.
    reply: Reply | None
    #: The reply to each recipient, as far as it is known. Those with a positive reply have the message only if
    #: ``safe_to_retry`` is False.
    recipients: Mapping[str, Reply] = MappingProxyType({})

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self.reply = reply
        if reply is not None:
            self.transient = reply.is_transient_failure


class CannotConnect(ClientError, ConnectionError):
    """No connection, no banner, or a banner that refuses service (``reply`` is set then)."""

    transient = True


class TLSFailed(ClientError, ConnectionError):
    """The connection could not be secured: the handshake failed, or see TLSRefused and TLSUnverified."""


class TLSRefused(TLSFailed):
    """There is no TLS, and ``starttls="require"`` or ``require_tls`` was given."""


class TLSUnverified(TLSFailed):
    """The server is not verified: by its certificate, or by a handler of ``secure``."""


class AuthenticationFailed(ClientError):
    """The server refuses the credentials (``reply`` is set), cannot prove itself, or no mechanism fits."""


class NotOffered(ClientError):
    """The message needs an extension that the server does not offer; ``extension`` is its keyword."""

    def __init__(self, extension: str, why: str) -> None:
        super().__init__(f"{why}, and the peer does not offer {extension}")
        self.extension = extension


class Refused(ClientError):
    """The server refused a command that sending needs; ``reply`` is its reply.

    ``recipients`` has the reply to each recipient that was sent with RCPT.
    """

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply] | None = None) -> None:
        super().__init__(f"{what}: {reply}", reply)
        self.recipients: dict[str, Reply] = dict(recipients or {})


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
    """DATA or the message itself was refused. (LMTP: for all recipients; ``transient`` if one of them may accept it
    later.)"""


class PartiallyRefused(Refused):
    """With ``raise_on_partial``: some recipients were refused. ``result`` is what ``send`` would have returned."""

    safe_to_retry = False

    def __init__(self, what: str, reply: Reply, recipients: Mapping[str, Reply], result: SendResult) -> None:
        super().__init__(what, reply, recipients)
        self.result = result


class Disconnected(ClientError, ConnectionLost):
    """The connection to the server was lost. ``after_content``: the whole message was sent, and no reply came.

    In LMTP the replies to some recipients may have come before; they are in ``recipients``. The message was delivered
    to those with a positive reply; nothing is known about the others.
    """

    transient = True
    #: The replies to the last group of commands, as far as they came.
    replies: tuple[Reply, ...] = ()

    def __init__(self, reason: str, *, after_content: bool = False, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.after_content = after_content
        self.safe_to_retry = not after_content
        #: The server's last reply before it closed the connection, mostly 421.
        self.reply = reply
        #: LMTP: the reply to the message for each recipient, as far as it came.
        self.recipients = {}


class PeerProtocolError(ClientError, ProtocolError):
    """The server violates the protocol; the connection was closed, since its replies may be out of step."""

    def __init__(self, text: str, *, after_content: bool = False) -> None:
        super().__init__(text)
        self.after_content = after_content
        self.safe_to_retry = not after_content


class PoolTimeout(ClientError, TimeoutError):
    """All connections of the pool were busy for ``acquire_timeout`` seconds."""

    transient = True


class PoolClosed(GreenSMTPError, RuntimeError):
    """The pool has been closed."""
