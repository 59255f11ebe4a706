"""Tarpit: error replies are delayed, each one longer than the last."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import Literal

from greensmtp.chain.chain import Proceed
from greensmtp.middleware._pause import pause
from greensmtp.middleware._validate import check_choice, check_count, check_flag, check_number
from greensmtp.networks import network_around
from greensmtp.protocol.command import ACCEPT, CONNECT, DISCONNECT, END_OF_DATA, Command, EndOfData
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: Seconds. A client waits at least two minutes for any reply (RFC 5321 section 4.5.3.2); half of that leaves room for
#: other delays.
_MAX_DELAY = 60.0

#: Addresses that are remembered. The one whose last error is longest ago is forgotten first.
_MAX_ADDRESSES = 10_000

#: Refusals that are not delayed, since they close the connection.
_NOT_DELAYED = frozenset({ACCEPT, CONNECT, DISCONNECT})


class Tarpit:
    """Delays error replies: the first by ``delay`` seconds, each further one ``factor`` times as long.

    Only this connection waits. Pending replies are sent first, so that a client which pipelines commands gets one reply
    after the other, none delayed by more than ``maximum``. There is no delay for clients on unix sockets, nor when the
    server shuts down.

    :param delay: seconds for the first error.
    :param factor: how many times longer each further delay is.
    :param maximum: the longest delay, in seconds, up to 60.
    :param free: errors without a delay, before the first delayed one.
    :param by: errors are counted by ``"session"``, until a message is accepted; or by ``"address"``, over all
        connections of an IPv4 address or an IPv6 /64, until there was none for ``forget`` seconds.
    :param transient: count 4xx replies as errors as well.
    :param forget: seconds without an error after which an address is forgotten.
    :raises ValueError: an argument is out of range.
    """

    # No ``verbs``: unknown commands are errors as well.

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
        self.delay = check_number("delay", delay, most=_MAX_DELAY)
        self.factor = check_number("factor", factor, least=1.0)
        self.maximum = check_number("maximum", maximum, most=_MAX_DELAY)
        self.free = check_count("free", free, least=0)
        self.by = check_choice("by", by, ("session", "address"))
        self.transient = check_flag("transient", transient)
        self.forget = check_number("forget", forget)
        self._from = 400 if transient else 500
        #: address -> (errors, time of the last one); the latest at the end
        self._errors: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass the command on, and delay its reply if it is an error."""
        reply = proceed(session, command)
        if reply.code < self._from:
            if command.verb == END_OF_DATA and self.by == "session" and reply.code < 300:
                session.notes.pop(self, None)
            return reply
        if command.verb in _NOT_DELAYED or session.peer_host is None:
            return reply
        seconds = self.delay_of(self._count(session) - self.free)
        if seconds and not _more_replies_follow(session, command):
            session.flush()
            pause(session, seconds)
        return reply

    def delay_of(self, number: int) -> float:
        """Return the delay in seconds of the error with this number; the first is 1."""
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
        assert session.peer_host is not None
        key = network_around(session.peer_host, 32, 64)
        now = monotonic()
        count, last = self._errors.pop(key, (0, now))
        count = count + 1 if now - last < self.forget else 1
        self._errors[key] = count, now
        if len(self._errors) > _MAX_ADDRESSES:
            self._errors.popitem(last=False)
        return count

    def __repr__(self) -> str:
        return f"Tarpit(delay={self.delay:g}, factor={self.factor:g}, maximum={self.maximum:g}, by={self.by!r})"


def _more_replies_follow(session: Session, command: Command) -> bool:
    """LMTP: return whether replies for further recipients of the message follow. All are sent after one delay."""
    return (
        isinstance(command, EndOfData)
        and command.recipient is not None
        and bool(session.to)
        and command.recipient is not session.to[-1]
    )
