"""Acks: how the receivers of a signal decide, at once or later.

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
from typing import Any

from gevent import GreenletExit, get_hub
from gevent.hub import Waiter

from greensmtp._native import native
from greensmtp.errors import AlreadyAcknowledged
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack_rules import AckRules, Code, Message

#: Guards the step from undecided to decided. It is never held across a switch. It is the real lock also in a patched
#: process: gevent's does not exclude the hubs of other threads.
_deciding = native("_thread", "allocate_lock")()


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


#: What ends a connection, or the program, and is no error of a handler's.
ENDINGS = (GreenletExit, KeyboardInterrupt, Expired)


class AckState:
    """The state of one ack, as the emitter and the deadline monitor see it."""

    __slots__ = ("_loop", "_on_accept", "_waiter", "_watch", "closed", "conflict", "reply", "rules", "since")

    rules: AckRules
    reply: Reply | None
    #: True if a second decision was tried.
    conflict: bool
    #: True once it is too late to decide: the command has been answered.
    closed: bool
    #: When the deadline monitor first saw it undecided, on its clock; 0.0: it has not yet.
    since: float
    _on_accept: Callable[[Reply], None] | None
    _waiter: Waiter[None] | None
    _loop: Any
    _watch: weakref.ref[Ack] | None

    @property
    def waiting(self) -> bool:
        """True if all receivers have returned without a decision, and one of them still holds the ack."""
        return self._waiter is not None

    def is_late(self, now: float, seconds: float) -> bool:
        """Return whether it has been undecided for so many seconds, counted from the first such call."""
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

    def wait(self, ack: weakref.ref[Ack]) -> None:
        """Wait for a decision, or until the last reference to the ack is gone (on CPython: at once).

        The caller must hold no reference of its own.
        """
        hub = get_hub()
        waiter: Waiter[None] = Waiter(hub)
        self._loop = hub.loop
        self._waiter = waiter
        if self.reply is None and ack() is not None:
            waiter.get()

    def watch(self, ack: Ack) -> weakref.ref[Ack]:
        """Return a weak reference to the ack, which ends ``wait`` when the ack is collected."""
        self._watch = weakref.ref(ack, self._on_collected)
        return self._watch

    def _on_collected(self, _ack: weakref.ref[Ack]) -> None:
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and self._loop is not None:
            self._loop.run_callback_threadsafe(waiter.switch, None)


class Ack:
    """Accepts or rejects, once: that is the reply to the command.

    A handler may keep it and decide later, from any greenlet or native thread. An ack that is dropped undecided becomes
    a 451.
    """

    __slots__ = ("__weakref__", "_state")

    _state: AckState

    @property
    def decided(self) -> bool:
        """True if it is too late to decide: it has been decided, or the command has been answered without it."""
        return self._state.reply is not None or self._state.closed

    @property
    def accepted(self) -> bool:
        """True if the decision was to accept."""
        reply = self._state.reply
        return reply is not None and reply.code < 400

    def accept(self, code: Code = None, message: Message = None) -> None:
        """Accept. For the signal ``command``: let the command pass to its default action, without arguments.

        :param code: the reply code, by default 250 (``connect``: 220, ``message``: 354, ``auth``: 235); or a Reply,
            for example of a next hop, whose enhanced status code is kept.
        :param message: the reply's text: one line, or several as an iterable or as a str with newlines. It may begin
            with an enhanced status code.
        :raises ValueError: this signal does not accept with that code, or the enhanced status code is of another class.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        state = self._state
        rules = state.rules
        state.decide(rules.accepted if code is message is None else rules.accept(code, message))

    def reject(self, code: Code = None, message: Message = None) -> None:
        """Reject.

        :param code: a 4xx or 5xx reply code, by default 550 (``connect``: 554, ``auth``: 535); or a Reply, for example
            of a next hop: its enhanced status code is kept, and 421 becomes 451, since 421 closes the connection.
        :param message: as for ``accept``.
        :raises ValueError: the code is not 4xx or 5xx, or the enhanced status code is of another class.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        self._state.decide(self._state.rules.reject(code, message))

    def replace(self, code: Code = 250, message: Message = None) -> None:
        """Answer instead of the default action, which does not happen. Only for the signal ``command``.

        :param code: a 2xx, 4xx or 5xx reply code, or a Reply.
        :param message: as for ``accept``.
        :raises ValueError: the code is not one of these, or the enhanced status code is of another class.
        :raises TypeError: this is the ack of another signal.
        :raises AlreadyAcknowledged: it has been decided, or the command has been answered without it.
        """
        self._state.decide(self._state.rules.replace(code, message))

    def __repr__(self) -> str:
        reply = self._state.reply
        return f"<Ack {str(reply) if reply else 'undecided'!r}>"


def new_ack(rules: AckRules, on_accept: Callable[[Reply], None] | None = None) -> tuple[AckState, Ack]:
    """Return an undecided ack and its state.

    :param on_accept: called with an accepting reply, within ``accept()``, in the greenlet or thread of that call.
    """
    # Neither class has an ``__init__``: this one call costs half of two, and a message has four acks.
    state = AckState()
    state.rules = rules
    state._on_accept = on_accept
    state.reply = state._waiter = state._loop = state._watch = None
    state.conflict = state.closed = False
    state.since = 0.0
    ack = Ack()
    ack._state = state
    return state, ack
