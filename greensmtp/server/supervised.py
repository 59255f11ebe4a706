"""What other greenlets do to a connection: timeouts, displacing, cutting off.

The rules of this file:

- Every method runs in the hub, so the greenlet is waiting for something: for its client (``transport.timeout`` is set),
  or for whatever a handler or a middleware waits for.
- A greenlet that waits for its client is woken by ``transport.expire``. One that handles a command gets an exception
  thrown: HandlerTimeout, which becomes a 451, or GreenletExit, which ends the connection.
- A handler that ignores ``THROWS`` HandlerTimeouts loses its connection. Its greenlet is left behind; another one frees
  the place and has DISCONNECT handled.

How handler timeouts work: ``current`` is the command that is being handled, and ``spent`` the seconds spent on it. The
loop sets ``spent`` to UNSEEN, and each check adds what has passed, unless the client is waited for or an ack is decided
elsewhere, which has ``ack_timeout``.
"""

from __future__ import annotations

import traceback
from typing import Any, Final

from gevent import GreenletExit, spawn_raw

from greensmtp._log import logger
from greensmtp.protocol import canned
from greensmtp.protocol.command import Command
from greensmtp.server.registry import Registry
from greensmtp.server.routes import Routes
from greensmtp.server.transport import Transport
from greensmtp.session import Session
from greensmtp.session.ack_state import HandlerTimeout

#: The last reply to a client, by the reason for which it is dropped (``ConnectionLost.reason``).
FAREWELLS = {
    "timeout": canned.TIMED_OUT,
    "slow": canned.TOO_SLOW,
    "shutdown": canned.SHUTTING_DOWN,
    "displaced": canned.DISPLACED,
    "foreign": canned.NOT_SMTP,
}

#: ``spent`` before a check has seen the command.
UNSEEN: Final = -1.0

#: Seconds from one HandlerTimeout to the next for a handler that goes on, and how many it gets.
GRACE: Final = 5.0
THROWS: Final = 3


class Supervised:
    """One connection, as the server and the deadline monitor see it."""

    __slots__ = (
        "_throws",
        "address",
        "closing",
        "current",
        "deferred_recipients",
        "dismissed",
        "greenlet",
        "has_left",
        "has_place",
        "identity_before",
        "is_storing",
        "next_command",
        "registry",
        "routes",
        "session",
        "spent",
        "transport",
    )

    session: Session

    #: For the compiled build: ``del`` works only on the native attributes that are named here.
    __deletable__ = ("session",)

    # (The fields of the layers above are set here too: a call of __init__ for each layer costs as much as all fields.)
    def __init__(self, routes: Routes, registry: Registry[Any], transport: Transport, address: str) -> None:
        self.routes = routes
        self.registry = registry
        self.transport = transport
        #: What its client is counted by among the server's connections.
        self.address = address
        #: True if it counts for ``max_connections``.
        self.has_place = False
        #: The reason for which it is to be closed as soon as it waits for its client; ``""`` for none.
        self.dismissed = ""
        #: The greenlet that serves it, until DISCONNECT has been handled.
        self.greenlet: Any = None
        #: True once it is leaving: DISCONNECT is being handled, or has been.
        self.has_left = False
        #: True while what a message has staged takes effect: a delivery may be past its point of no return.
        self.is_storing = False
        #: The command that handlers and middleware are handling; None between two commands.
        self.current: Command | None = None
        #: Seconds spent on it, as far as checks have seen; how many HandlerTimeouts it got.
        self.spent = UNSEEN
        self._throws = 0
        #: The session's identity before the current command.
        self.identity_before: Any = None
        #: RCPTs that got a 4xx after an accepted one, since the last accepted message.
        self.deferred_recipients = 0
        #: A command that was read where a chunk was expected; the loop goes on with it.
        self.next_command: Command | None = None
        #: Why it is closed if the server has said its last reply: ``quit``, or one of 421.
        self.closing = "refused"

    # Deadlines

    def check(self, now: float, elapsed: float) -> None:
        """Time out the client or the handlers, whichever is waited for."""
        if self.greenlet is None:
            return  # it is over
        ack = self.session._ack_state
        if self.transport.timeout:
            if self.dismissed:
                self.dismiss(self.dismissed)
                return
            self.transport.check(now, elapsed)
            if ack is not None:
                ack.since = 0.0  # the handlers cannot decide while they wait for the client
            return
        limits = self.routes.limits
        if self.spent == UNSEEN:
            self.spent = 0.0
            self._throws = 0
        elif ack is None or not ack.waiting:  # an ack that is decided elsewhere has ack_timeout alone
            self.spent += elapsed
        if ack is not None and ack.is_late(now, limits.ack_timeout):
            ack.since += min(limits.ack_timeout, GRACE)
            self._interrupt("ack_timeout", limits.ack_timeout)
        elif self.spent > limits.handler_timeout and self.current is not None:
            self.spent -= min(limits.handler_timeout, GRACE)
            self._interrupt("handler_timeout", limits.handler_timeout)

    def _interrupt(self, limit: str, seconds: float) -> None:
        """Throw a HandlerTimeout into the handlers; give the greenlet up if that did not help several times."""
        verb = "?" if self.current is None else self.current.shown_verb
        self._throws += 1
        if self._throws <= THROWS:
            self.greenlet.throw(HandlerTimeout(limit, seconds, verb))
            return
        where = "".join(traceback.format_stack(self.greenlet.gr_frame)).rstrip()
        logger.error(
            "%s: the handler of %s goes on after %d HandlerTimeouts; connection closed. Its stack:\n%s",
            self.session.log_id,
            verb,
            THROWS,
            where,
        )
        self.abandon()

    # The end

    @property
    def is_idle(self) -> bool:
        """True if it waits for a command outside of a transaction."""
        return self.transport.awaiting_command and self.session.from_ is None

    @property
    def displaceable(self) -> int:
        """How little is lost if it is closed.

        3: it is idle. 2: it waits for its client. 1: handlers are at work, but there is no message. 0: handlers have a
        message, which may be stored already, so it must not be closed.
        """
        if self.is_idle:
            return 3
        if self.transport.timeout:
            return 2
        return 1 if self.session.message is None else 0

    def displace(self) -> None:
        """Close it in favour of another connection."""
        if self.transport.greenlet is None:
            return  # it is over
        if self.transport.timeout or self.session.message is not None:
            self.dismiss("displaced")
        else:  # a middleware that pauses or looks something up must not keep the place
            self.cut_off("displaced")

    def dismiss(self, reason: str) -> None:
        """Close it with 421 as soon as it waits for its client."""
        if self.transport.timeout:
            self.dismissed = ""
            self.transport.expire(reason)
        else:
            self.dismissed = reason

    def cut_off(self, reason: str) -> None:
        """Close it with 421 in the middle of whatever it is doing (RFC 5321 section 3.8)."""
        transport = self.transport
        if transport.timeout:
            transport.expire(reason)
        elif self.is_storing:
            self.dismissed = reason  # 421 would contradict the 250 that is due in an instant
        elif transport.greenlet is not None:
            self.dismissed = reason
            transport.send_at_once(FAREWELLS[reason].encode())
            transport.greenlet.throw(GreenletExit)

    def kill(self) -> None:
        """End the greenlet without a reply."""
        if self.greenlet is not None:
            self.greenlet.throw(GreenletExit)

    def abandon(self) -> None:
        """Close the connection of a greenlet that does not end, and forget the greenlet.

        The client gets the pending replies, and 421 (RFC 5321 section 3.8).
        """
        self.greenlet = self.current = None
        if not self.has_left:
            self.transport.send_at_once(canned.GIVEN_UP.encode())
        self.transport.abandon()
        if self.has_left:
            self.registry.remove(self)
        else:
            spawn_raw(self.leave, "error")

    def leave(self, reason: str) -> None:
        """Free what the connection holds and have DISCONNECT handled, once. In a greenlet."""
        raise NotImplementedError
