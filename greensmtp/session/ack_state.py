"""The state of an ack: how a decision is made, at once or later.

How it works. An emitter makes an ``AckState`` and an ``Ack`` for it, and gives the ack to each receiver in turn. If all
have returned and none has decided, it drops its own reference to the ack and waits. Two things end that wait: a
decision, and the collection of the ack, after which no decision can come. The deadline monitor may also throw a
``HandlerTimeout`` into the waiting greenlet.

Rules of this file:

- ``decide`` runs in any greenlet of any thread. One lock guards the step from undecided to decided.
- ``decide`` sets ``reply`` before it looks for a waiter; ``wait`` sets the waiter before it looks at ``reply``. So no
  wake-up is lost, and a second one does no harm.
- ``on_accept`` is called outside the lock, in the deciding greenlet; it may switch.
- Only the connection's greenlet waits. It is woken through its hub's ``run_callback_threadsafe``.
- ``AckState`` never refers to its ``Ack``: the ack must be collected when its holders drop it.

Invariants: ``decide`` sets ``reply`` once. Only the emitter may replace it, by the 451 for a receiver that failed. A
second decision, or one after ``closed``, sets ``conflict`` and raises.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from gevent import GreenletExit, get_hub
from gevent.hub import Waiter

from greensmtp._native import native
from greensmtp.errors import AlreadyAcknowledged
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack_rules import AckRules

#: Guards the step from undecided to decided. It is never held across a switch. It is the real lock also in a patched
#: process: gevent's does not exclude the hubs of other threads.
_deciding: Final = native("_thread", "allocate_lock")()


class HandlerTimeout(BaseException):
    """Thrown into a handler or a middleware that takes too long. Not an Exception, so that handlers do not catch it.

    :param limit: the limit that was exceeded: ``"ack_timeout"`` or ``"handler_timeout"``.
    :param seconds: its value.
    :param verb: the command being handled.
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


#: Exceptions that end a connection or the program, and are not errors of a handler.
ENDINGS: Final = (GreenletExit, KeyboardInterrupt, Expired)


class AckState:
    """The state of one ack, as the emitter and the deadline monitor see it."""

    __slots__ = ("_loop", "_on_accept", "_waiter", "_watch", "closed", "conflict", "reply", "rules", "since")

    def __init__(self, rules: AckRules, on_accept: Callable[[Reply], None] | None) -> None:
        """
        :param on_accept: called with an accepting reply, within ``accept()``, in the greenlet or thread of that call.
        """
        self.rules = rules
        self._on_accept = on_accept
        self.reply: Reply | None = None
        #: True if a second decision was tried.
        self.conflict = False
        #: True once it is too late to decide: the command has been answered.
        self.closed = False
        #: When the deadline monitor first saw it undecided, on its clock; 0.0: it has not yet.
        self.since = 0.0
        self._waiter: Waiter[None] | None = None
        self._loop: Any = None
        self._watch: weakref.ref[Any] | None = None

    @property
    def waiting(self) -> bool:
        """True if all receivers have returned without a decision, and one of them still holds the ack."""
        return self._waiter is not None

    def is_late(self, now: float, seconds: float) -> bool:
        """Return True if it has been undecided for more than ``seconds``, counted from the first such call."""
        if self.reply is not None:
            return False
        if not self.since:
            self.since = now
        return now - self.since > seconds

    def decide(self, reply: Reply) -> None:
        """Record the decision, and wake the connection's greenlet if it waits. Safe in any greenlet and thread.

        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
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

    def wait(self, ack: weakref.ref[Any]) -> None:
        """Wait for a decision, or until the last reference to the ack is gone (on CPython: at once).

        The caller must not hold a reference.
        """
        hub = get_hub()
        waiter: Waiter[None] = Waiter(hub)
        self._loop = hub.loop
        self._waiter = waiter
        if self.reply is None and ack() is not None:
            waiter.get()

    def watch(self, ack: object) -> weakref.ref[Any]:
        """Return a weak reference to the ack, which ends ``wait`` when the ack is collected."""
        self._watch = weakref.ref(ack, self._on_collected)
        return self._watch

    def _on_collected(self, _ack: weakref.ref[Any]) -> None:
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and self._loop is not None:
            self._loop.run_callback_threadsafe(waiter.switch, None)
