"""Tarpit: error replies come late, and later each time."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import Literal

from greensmtp.chain.chain import Proceed
from greensmtp.middleware._pause import pause
from greensmtp.middleware._validate import check_choice, check_count, check_number
from greensmtp.middleware.auth.credentials import check_flag
from greensmtp.networks import client_address, network_of
from greensmtp.protocol.command import ACCEPT, CONNECT, DISCONNECT, END_OF_DATA, Command, EndOfData
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: The least that a client has to wait for any reply is two minutes (RFC 5321 section 4.5.3.2); half of that leaves
#: room for what else takes time.
_LONGEST = 60.0

#: Addresses that are remembered, at most; the one that has been good for longest is forgotten first.
_MAX_ADDRESSES = 10_000

#: These refusals are not delayed: their connections are closed.
_NOT_DELAYED = frozenset({ACCEPT, CONNECT, DISCONNECT})


class Tarpit:
    """Holds error replies back: the first for ``delay`` seconds, each further one ``factor`` times as long.

    Only this connection waits. Replies that are owed already are sent before, so that a client which sends many
    commands at once sees one answer after the other, none later than ``maximum``. A server that is shutting down holds
    nothing back, and neither are clients on unix sockets.

    :param delay: seconds that the first error costs.
    :param factor: how much longer each further one takes.
    :param maximum: seconds, at most; 60 or less, since no client waits for ever.
    :param free: errors that cost nothing, before it begins.
    :param by: whose errors are counted together: ``"session"``, until a message is accepted; ``"address"``, over all
        connections of an IPv4 address or an IPv6 /64, until there was none for ``forget`` seconds.
    :param transient: 4xx replies count as errors, too.
    :param forget: seconds.
    :raises ValueError: an argument is out of range.
    """

    # No verbs: unknown ones are errors, too.

    def __init__(
        self,
        delay: float = 1.0,
        factor: float = 2.0,
        maximum: float = 30.0,
        *,
        free: int = 0,
        by: Literal["session", "address"] = "session",
        transient: bool = False,
        forget: float = 600.0,
    ) -> None:
        self.delay = check_number("delay", delay, most=_LONGEST)
        self.factor = check_number("factor", factor, least=1.0)
        self.maximum = check_number("maximum", maximum, most=_LONGEST)
        self.free = check_count("free", free, least=0)
        self.by = check_choice("by", by, ("session", "address"))
        self.transient = check_flag("transient", transient)
        self.forget = check_number("forget", forget)
        self._from = 400 if transient else 500
        #: Address -> its errors, and when the last one was; the latest at the end.
        self._errors: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Hold the reply back, if it is an error."""
        reply = proceed(session, command)
        if reply.code < self._from:
            if command.verb == END_OF_DATA and self.by == "session" and reply.code < 300:
                session.notes.pop(self, None)
            return reply
        if command.verb in _NOT_DELAYED or session.peer_host is None:
            return reply
        seconds = self.delay_of(self._count(session) - self.free)
        if seconds and not _has_company(session, command):
            session.flush()
            pause(session, seconds)
        return reply

    def delay_of(self, number: int) -> float:
        """Seconds that the error of this number costs, the first being 1."""
        if number < 1 or not self.delay:
            return 0.0
        try:
            return min(self.delay * self.factor ** (number - 1), self.maximum)
        except OverflowError:
            return self.maximum

    def _count(self, session: Session) -> int:
        if self.by == "session":
            count: int = session.notes.get(self, 0) + 1
            session.notes[self] = count
            return count
        address = client_address(session)
        assert address is not None
        key = network_of(address, 32, 64)
        now = monotonic()
        count, last = self._errors.pop(key, (0, now))
        count = count + 1 if now - last < self.forget else 1
        self._errors[key] = count, now
        if len(self._errors) > _MAX_ADDRESSES:
            self._errors.popitem(last=False)
        return count

    def __repr__(self) -> str:
        return f"Tarpit(delay={self.delay:g}, factor={self.factor:g}, maximum={self.maximum:g}, by={self.by!r})"


def _has_company(session: Session, command: Command) -> bool:
    """LMTP: replies to further recipients of the same message follow; all go out together, so one delay is enough."""
    return (
        isinstance(command, EndOfData)
        and command.recipient is not None
        and bool(session.to)
        and command.recipient is not session.to[-1]
    )
