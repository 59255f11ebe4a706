"""Acks: how the receivers of a signal decide, at once or later, from this greenlet or another or a native thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gevent import GreenletExit, get_hub
from gevent.hub import Waiter

from greensmtp._native import native
from greensmtp.errors import AlreadyAcknowledged, ProtocolError
from greensmtp.protocol import canned
from greensmtp.protocol.enhanced_status import default_for
from greensmtp.protocol.reply import Reply

#: Guards the one step from undecided to decided, for acks decided by native threads; held for an instant, never
#: across a switch. (The real lock, in a patched process too: gevent's would not hold off another thread's hub.)
_deciding = native("_thread", "allocate_lock")()

Code = int | str | Reply | None
Message = str | Iterable[str] | None


class AckRules(NamedTuple):
    """What one signal's acks may say."""

    #: ``accept()`` and ``reject()`` without arguments.
    accepted: Reply
    rejected: Reply
    #: What happens when nobody listens.
    default: Reply | None
    #: The codes that ``accept`` takes.
    accept_codes: range = range(200, 300)
    #: Replies to HELO and EHLO, and the banner, carry no enhanced codes (RFC 2034 section 4).
    with_enhanced: bool = True
    #: The signal ``command``: not deciding is fine, accepting without a reply lets the command pass, and ``replace``
    #: answers instead of the default action.
    optional: bool = False

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
                "replace() is for the signal 'command' alone, whose default action it takes the place of; "
                "here, call accept or reject"
            )
        number = _OK.code if code is None else _number(code, "replace")
        if not (200 <= number <= 299 or 400 <= number <= 599):
            raise ValueError(f"replace takes a 2xx, 4xx or 5xx reply code, not {number}")
        return self._reply(code, number, self.rejected if number >= 400 else _OK, message)

    def returned(self, reply: Reply) -> Reply:
        """Return the reply for a handler that returns one.

        :raises ValueError: it is neither acceptance nor rejection here.
        """
        if self.optional:
            return self.replace(reply, None)
        return self.reject(reply, None) if reply.code >= 400 else self.accept(reply, None)

    def _reply(self, code: Code, number: int, usual: Reply, message: Message) -> Reply:
        if isinstance(code, Reply):
            if message is not None:
                raise TypeError("a Reply has its text: give no message besides")
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
        if not isinstance(code, float):  # int() would cut it
            return int(code)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"{call} takes a reply code first, like 250 or '250', or a Reply, not {code!r}; "
        f"a text alone goes as message={code!r}"
    )


def _lines(message: str | Iterable[str]) -> tuple[str, ...]:
    lines = (message,) if isinstance(message, str) else tuple(message)
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"message takes a str, or several, not {line!r}")
    return lines or ("",)


_OK = Reply(250, "Ok")
#: ``command``: the default action follows. The client never sees it.
PASS = Reply(250, "pass")
_REFUSED = Reply(550, "5.7.1 Refused")
#: The dispatcher writes the usual text, which has the client's name in it.
_GREETED = Reply(250, "", enhanced=None)

#: signal -> what its acks may say
RULES = {
    "connect": AckRules(
        Reply(220, "ESMTP", enhanced=None),
        Reply(554, "5.7.1 No service for you here"),
        Reply(220, "ESMTP", enhanced=None),
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
    "received": AckRules(canned.MESSAGE_OK, Reply(550, "5.7.1 Message refused"), canned.MESSAGE_OK),
}


class HandlerTimeout(BaseException):
    """Thrown into a handler or a middleware that takes too long. Not an Exception: handlers must not swallow it.

    :param limit: the limit that was exceeded: ``"ack_timeout"`` or ``"handler_timeout"``.
    :param seconds: its value.
    :param verb: the command that is being handled.
    """

    def __init__(self, limit: str, seconds: float, verb: str) -> None:
        super().__init__(f"{limit} of {seconds:g} s exceeded at {verb}")
        self.limit = limit
        self.seconds = seconds
        self.verb = verb


class Expired(BaseException):
    """Thrown, from the hub, into a greenlet that waits for its peer; ``reason`` is ConnectionLost's."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


#: What ends a connection, or the program, and is no error of a handler's.
ENDINGS = (GreenletExit, KeyboardInterrupt, Expired)


class AckState:
    """What has become of one ack; the dispatcher's side of it.

    What most decisions never need is an attribute of the class.
    """

    reply: Reply | None = None
    #: Somebody tried to decide what had been decided.
    conflict = False
    #: Too late to decide: answered without it, or let go.
    closed = False
    #: When the server's sweep first saw it undecided, on its clock; 0.0: it has not.
    since = 0.0
    _waiter: Waiter[None] | None = None
    _loop: Any = None
    _watch: weakref.ref[Ack] | None = None

    def __init__(self, rules: AckRules, on_accept: Callable[[Reply], None] | None = None) -> None:
        self.rules = rules
        self._on_accept = on_accept

    @property
    def waiting(self) -> bool:
        """True if all receivers have returned, and one of them is to decide later."""
        return self._waiter is not None

    def is_late(self, now: float, seconds: float) -> bool:
        """It has been undecided for longer than that, as far as the sweep has seen."""
        if self.reply is not None:
            return False
        if not self.since:
            self.since = now
        return now - self.since > seconds

    def decide(self, reply: Reply) -> None:
        """Settle it, and wake who waits for it. Called in any greenlet of any thread."""
        with _deciding:
            if self.closed or self.reply is not None:
                self.conflict = True
                raise AlreadyAcknowledged(
                    "the command has been answered: this decision comes too late"
                    if self.closed
                    else "this ack has been decided already"
                )
            self.reply = reply
        if self._on_accept is not None and reply.code < 400:
            self._on_accept(reply)
        if self._waiter is not None:
            self._wake()

    def wait(self, ack: weakref.ref[Ack]) -> None:
        """Wait for a decision, or for the moment when nobody holds the ack any more.

        The caller must hold no reference to the ack of its own. On CPython the moment is exact.
        """
        hub = get_hub()
        waiter: Waiter[None] = Waiter(hub)
        self._loop = hub.loop
        self._waiter = waiter
        if self.reply is None and ack() is not None:
            waiter.get()

    def watch(self, ack: Ack) -> weakref.ref[Ack]:
        """A reference that wakes the waiting side when the ack is let go."""
        self._watch = weakref.ref(ack, self._on_collected)
        return self._watch

    def _on_collected(self, _ack: weakref.ref[Ack]) -> None:
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and self._loop is not None:
            self._loop.run_callback_threadsafe(waiter.switch, None)


class Ack:
    """Accepts or rejects, once. Keep it and decide later if you must; let go undecided, it is a 451.

    Safe to use from any greenlet and from native threads.
    """

    __slots__ = ("__weakref__", "_decision")

    def __init__(self, decision: AckState) -> None:
        self._decision = decision

    @property
    def decided(self) -> bool:
        """It is too late to decide."""
        return self._decision.reply is not None or self._decision.closed

    @property
    def accepted(self) -> bool:
        """It has been decided, and this was agreement."""
        reply = self._decision.reply
        return reply is not None and reply.code < 400

    def accept(self, code: Code = None, message: Message = None) -> None:
        """Agree. The signal ``command``: let the command pass to its default action; no arguments are taken there.

        :param code: the reply code; 250 (``connect``: 220, ``message``: 354, ``auth``: 235) when not given. Or a Reply,
            that of a next hop for example, whose enhanced status code is kept.
        :param message: the reply's text: a line, or several (an iterable, or one str with newlines); it may begin
            with an enhanced status code.
        :raises ValueError: not a code that this signal accepts with, or an enhanced status code of another class.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        decision = self._decision
        rules = decision.rules
        decision.decide(rules.accepted if code is message is None else rules.accept(code, message))

    def reject(self, code: Code = None, message: Message = None) -> None:
        """Refuse; 550 (``connect``: 554, ``auth``: 535) when no code is given.

        :param code: a 4xx or 5xx reply code; or a Reply, that of a next hop for example: its enhanced status code is
            kept, and 421 becomes 451, since 421 would close the connection to the client.
        :raises ValueError: not a 4xx or 5xx code, or an enhanced status code of another class.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        decision = self._decision
        decision.decide(decision.rules.reject(code, message))

    def replace(self, code: Code = 250, message: Message = None) -> None:
        """Answer instead of the default action, which is not taken; the signal ``command`` alone.

        :param code: a 2xx, 4xx or 5xx reply code, or a Reply.
        :raises ValueError: not such a code, or an enhanced status code of another class.
        :raises TypeError: this is the ack of another signal.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        decision = self._decision
        decision.decide(decision.rules.replace(code, message))

    def __repr__(self) -> str:
        reply = self._decision.reply
        return f"<Ack {str(reply) if reply else 'undecided'!r}>"
