"""What acks may decide on: for each signal the usual replies, and the codes that accept and reject.

A code or a text of the caller's is checked here, at the call, and the error is raised in the handler.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from greensmtp.errors import ProtocolError
from greensmtp.protocol import canned
from greensmtp.protocol.enhanced_status import default_for
from greensmtp.protocol.reply import Reply

Code = int | str | Reply | None
Message = str | Iterable[str] | None


class AckRules(NamedTuple):
    """The replies that the acks of one signal may decide on."""

    #: The replies of ``accept()`` and ``reject()`` without arguments.
    accepted: Reply
    rejected: Reply
    #: The reply when the signal has no receivers.
    default: Reply | None
    #: The reply codes that ``accept`` takes.
    accept_codes: range = range(200, 300)
    #: False for the replies to HELO and EHLO and for the banner: no enhanced status code (RFC 2034 section 4).
    with_enhanced: bool = True
    #: True for the signal ``command``: receivers need not decide, ``accept()`` lets the command pass, and ``replace``
    #: answers instead of the default action.
    optional: bool = False
    #: True where another code than the usual one needs a text of the handler's.
    needs_text: bool = False

    def accept(self, code: Code, message: Message) -> Reply:
        """Return the reply for ``ack.accept(code, message)``."""
        if self.optional:
            if code is None and message is None:
                return PASS
            raise ValueError("accept() lets the command pass and takes no reply here; to answer it, call replace")
        if code is None and message is None:
            return self.accepted
        number = self.accepted.code if code is None else _number(code, "accept")
        if number not in self.accept_codes:
            first, last = self.accept_codes[0], self.accept_codes[-1]
            takes = f"{first}" if first == last else f"a code from {first} to {last}"
            raise ValueError(f"accept takes {takes} here, not {number}; to refuse, call reject")
        if self.needs_text and message is None and number != self.accepted.code and not isinstance(code, Reply):
            raise ValueError(f"accept({number}) needs a text here, like accept({number}, 'Jo <jo@example.com>')")
        return self._reply(code, number, self.accepted, message)

    def reject(self, code: Code, message: Message) -> Reply:
        """Return the reply for ``ack.reject(code, message)``."""
        if code is None and message is None:
            return self.rejected
        number = self.rejected.code if code is None else _number(code, "reject")
        if not 400 <= number <= 599:
            raise ValueError(f"reject takes a 4xx or 5xx reply code, not {number}; to agree, call accept")
        return self._reply(code, number, self.rejected, message)

    def replace(self, code: Code, message: Message) -> Reply:
        """Return the reply for ``ack.replace(code, message)``."""
        if not self.optional:
            raise TypeError(
                "replace() takes the place of a default action, which only the signal 'command' has; "
                "call accept() or reject() here"
            )
        number = _OK.code if code is None else _number(code, "replace")
        if not (200 <= number <= 299 or 400 <= number <= 599):
            raise ValueError(f"replace takes a 2xx, 4xx or 5xx reply code, not {number}")
        return self._reply(code, number, self.rejected if number >= 400 else _OK, message)

    def returned(self, reply: Reply) -> Reply:
        """Return the reply for a handler that returned this one.

        :raises ValueError: its code neither accepts nor rejects here.
        """
        if self.optional:
            return self.replace(reply, None)
        return self.reject(reply, None) if reply.code >= 400 else self.accept(reply, None)

    def _reply(self, code: Code, number: int, usual: Reply, message: Message) -> Reply:
        if isinstance(code, Reply):
            if message is not None:
                raise TypeError("give a Reply or a message, not both: the Reply has its own text")
            reply = code.handed_on()
            if reply.enhanced is None and self.with_enhanced:
                return Reply(reply.code, *reply.lines, enhanced=default_for(reply.code))
            return reply
        if message is None and number == usual.code:
            return usual
        lines = usual.lines if message is None else _lines(message)
        try:
            return Reply(number, *lines, enhanced="" if self.with_enhanced else None)
        except ProtocolError as error:
            raise ValueError(str(error)) from None


def _number(code: int | str | Reply, call: str) -> int:
    if isinstance(code, Reply):
        return code.code
    try:
        if not isinstance(code, float):  # int() would truncate it
            return int(code)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"{call} takes a reply code first, like 250 or '250', or a Reply, not {code!r}; "
        f"pass a text alone as message={code!r}"
    )


def _lines(message: str | Iterable[str]) -> tuple[str, ...]:
    lines = (message,) if isinstance(message, str) else tuple(message)
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"message must be a str or an iterable of str; it holds {line!r}")
    return lines or ("",)


_OK = Reply(250, "Ok")
#: ``command``: the default action follows. This reply is never sent.
PASS = Reply(250, "pass")
_REFUSED = Reply(550, "5.7.1 Refused")


class UsualReply(Reply):
    """``accept()`` without a text. The dispatcher writes it, as it has a name in it, such as the server's."""

    __slots__ = ()


_GREETED = UsualReply(250, "", enhanced=None)
_BANNER = UsualReply(220, "", enhanced=None)
_RECEIVED = UsualReply(250, "2.0.0 Ok: message accepted")

#: signal -> its rules
RULES = {
    "connect": AckRules(
        _BANNER,
        Reply(554, "5.7.1 No service for you here"),
        _BANNER,
        accept_codes=range(220, 221),
        with_enhanced=False,
    ),
    "command": AckRules(PASS, _REFUSED, None, optional=True),
    "greeting": AckRules(
        _GREETED,
        Reply(550, "5.7.1 Refused"),
        _GREETED,
        accept_codes=range(250, 251),
        with_enhanced=False,
    ),
    "auth": AckRules(
        Reply(235, "2.7.0 Authentication succeeded"),
        Reply(535, "5.7.8 Authentication credentials invalid"),
        Reply(235, "2.7.0 Authentication succeeded"),
    ),
    "from": AckRules(canned.SENDER_OK, Reply(550, "5.7.1 Sender refused"), canned.SENDER_OK),
    "to": AckRules(canned.RECIPIENT_OK, Reply(550, "5.7.1 Recipient refused"), canned.RECIPIENT_OK),
    "message": AckRules(
        canned.START_MAIL,
        Reply(550, "5.7.1 Message refused"),
        canned.NO_MAIL_HERE,
        accept_codes=range(354, 355),
    ),
    # RFC 5321 section 3.5.3: 250 and 251 have the mailbox in their text.
    "vrfy": AckRules(
        canned.CANNOT_VERIFY,
        Reply(550, "5.1.1 No such user"),
        canned.CANNOT_VERIFY,
        accept_codes=range(250, 253),
        needs_text=True,
    ),
    "expn": AckRules(
        canned.CANNOT_EXPAND,
        Reply(550, "5.1.1 No such list"),
        canned.CANNOT_EXPAND,
        accept_codes=range(250, 253),
        needs_text=True,
    ),
    # RFC 1985 section 5
    "etrn": AckRules(
        canned.QUEUE_STARTED,
        Reply(459, "4.7.1 Node not allowed"),
        canned.CANNOT_START_QUEUE,
        accept_codes=range(250, 254),
    ),
    "received": AckRules(_RECEIVED, Reply(550, "5.7.1 Message refused"), _RECEIVED),
}
