"""Emitting signals: calling the receivers, and making one reply of what they decide.

How it works. There is one ``Emitter`` for each signal of a server. It calls the receivers of the process-wide signal,
then those of the server's and the session's own, in the order in which they were connected. ``emit`` is for signals
without an ack, ``collect`` for those with one.

Rules of this file:

- Both run in the connection's greenlet for every command: when a signal has no receivers they return at once.
- Nothing that a receiver raises gets out, except the error that ended the connection, gevent's ``Timeout`` out of
  ``collect`` (the handler deals with it), and exceptions that end the program or the greenlet.
- Every fault of a receiver is logged once, with the receiver's name, and becomes a 451.
- While it waits for a decision, an emitter holds no reference to the ack.

What a receiver does -> the reply:

    accept(), reject(), replace()      that decision
    returns a Reply                    that decision
    raises Reject                      that decision, also after accept()
    decides twice                      451
    returns anything else, or raises   451
    drops the ack undecided            451; for an optional ack None: the default action
    does not decide in time            451
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from blinker import ANY

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.errors import AlreadyAcknowledged, IncompleteMessage, Reject
from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import Ack
from greensmtp.session.ack_rules import PASS, RULES
from greensmtp.session.ack_state import ENDINGS, AckState, HandlerTimeout
from greensmtp.session.session import Session
from greensmtp.session.signals import Signal, Signals, shared


class Emitter:
    """One signal of one server."""

    __slots__ = ("_changes", "_for_all", "name", "own", "rules", "shared")

    def __init__(self, name: str, signals: Signals) -> None:
        self.name: str = name
        self.rules = RULES.get(name)
        #: The process-wide signal and the server's. On the hot path, test their ``receivers`` before ``collect`` is
        #: called: they are usually empty, and the test costs a tenth of the call.
        self.shared: Signal = shared.named(name)
        self.own: Signal = signals.named(name)
        #: The receivers, while they are the same for every session and the signals do not change; else None.
        self._for_all: Sequence[Callable[..., Any]] | None = None
        self._changes = -1

    def has_receivers(self, session: Session) -> bool:
        """Return True if a receiver would be called for this session."""
        return bool(self.own.receivers or self.shared.receivers) and bool(self._receivers(session))

    def _receivers(self, session: Session) -> Sequence[Callable[..., Any]]:
        """Return the receivers to call for this session, in the order in which they were connected."""
        shared, own = self.shared, self.own
        if shared.is_muted or own.is_muted:
            return self._resolve(session)
        changes = shared.changes + own.changes
        if changes != self._changes:
            self._for_all = self._resolve(session) if _is_for_all(shared) and _is_for_all(own) else None
            self._changes = changes
        return self._resolve(session) if self._for_all is None else self._for_all

    def _resolve(self, session: Session) -> Sequence[Callable[..., Any]]:
        found: list[Callable[..., Any]] = []
        for signal in (self.shared, self.own):
            if signal.receivers and not signal.is_muted:
                these = list(signal.receivers_for(session))
                if len(these) > 1:
                    # blinker keeps them in a dict, in order, but returns them through a set.
                    places: dict[object, int] = {}
                    for ref in list(signal.receivers.values()):
                        places[_identity(ref() if isinstance(ref, weakref.ref) else ref)] = len(places)
                    these.sort(key=lambda receiver: places.get(_identity(receiver), 0))
                found += these
        return found

    def emit(self, session: Session, **fields: Any) -> None:
        """Call the receivers of a signal without an ack. Their errors are logged, and change nothing."""
        if not self.own.receivers and not self.shared.receivers:
            return
        for receiver in self._receivers(session):
            try:
                given = receiver(session, **fields)
            except HandlerTimeout as error:
                self._log_ignored(session, "ran too long: %s", receiver, error)
            except ENDINGS:
                raise
            except BaseException:
                logger.exception(
                    "%s: handler %s for signal %r raised (ignored: the signal has no ack)",
                    session.log_id,
                    handler_name(receiver),
                    self.name,
                )
            else:
                if given is not None:
                    self._log_ignored(session, "returned %s, not None", receiver, type(given).__name__)

    def collect(
        self, session: Session, on_accept: Callable[[Reply], None] | None = None, /, **fields: Any
    ) -> Reply | None:
        """Call the receivers of a signal with an ack, and return their decision; None if an optional ack has none.

        :param on_accept: called with an accepting reply, within ``accept()``, in the greenlet or thread of that call.
        """
        rules = self.rules
        assert rules is not None, self.name
        shared, own = self.shared, self.own
        if not own.receivers and not shared.receivers:
            return rules.default
        receivers = self._for_all
        if receivers is None or self._changes != shared.changes + own.changes or shared.is_muted or own.is_muted:
            receivers = self._receivers(session)
            if not receivers:
                return rules.default
        outer = session._ack_state  # a receiver may ask for another decision
        state = AckState(rules, on_accept)
        ack = Ack()
        ack._state = state
        session._ack_state = state
        receiver = receivers[0]
        fields["ack"] = ack
        try:
            for receiver in receivers:
                given = receiver(session, **fields)
                if given is not None:
                    state.decide(self._reply_of(given))
            if state.reply is None and not rules.optional:
                alive = state.watch(ack)
                del ack, fields["ack"]  # from here on, only receivers hold it
                # Replies to earlier commands must not wait for this decision.
                session._connection.flush()
                state.since = 0.0
                state.wait(alive)
        except Reject as reject:
            # A Reject was checked when it was made, but its attributes may have been changed since.
            try:
                state.reply = rules.reject(reject.reply or reject.code, None if reject.reply else reject.message)
            except (ValueError, TypeError):
                self._fault(
                    session,
                    state,
                    "handler %s raised a Reject that is no reply",
                    handler_name(receiver),
                    traceback=True,
                )
        except _BadResult as bad:
            self._fault(session, state, "handler %s returned %s", handler_name(receiver), bad)
        except AlreadyAcknowledged:
            if not state.conflict:  # that of another ack; a conflict of this one is logged below, once
                self._fault(session, state, "handler %s raised", handler_name(receiver), traceback=True)
        except IncompleteMessage as incomplete:
            if incomplete is session.close_error:
                raise  # the client is gone
            if session.message is None or incomplete is not session.message.error:
                self._fault(session, state, "handler %s raised", handler_name(receiver), traceback=True)
            state.reply = canned.LOCAL_ERROR
        except HandlerTimeout as error:
            if error.limit == "ack_timeout":
                names = ", ".join(map(handler_name, receivers))
                self._fault(session, state, "handler %s did not decide within ack_timeout", names)
            else:
                self._fault(session, state, "handler %s ran too long: %s", handler_name(receiver), error)
        except (Exception, SystemExit):
            self._fault(session, state, "handler %s raised", handler_name(receiver), traceback=True)
        finally:
            session._ack_state = outer
            state.closed = True
        if state.conflict:
            self._fault(
                session,
                state,
                "handler %s called accept() or reject() on an ack that was already decided",
                handler_name(receiver),
            )
        elif state.reply is None and not rules.optional:
            names = ", ".join(map(handler_name, receivers))
            self._fault(session, state, "handler %s dropped the ack without calling accept() or reject()", names)
        return None if state.reply is PASS else state.reply

    def _reply_of(self, given: Any) -> Reply:
        """Return the reply for what a receiver has returned.

        :raises _BadResult: it is not a decision.
        """
        assert self.rules is not None
        if not isinstance(given, Reply):
            raise _BadResult(f"{type(given).__name__}; a handler returns None or a Reply")
        try:
            return self.rules.returned(given)
        except ValueError as error:
            raise _BadResult(f"{given!r}: {error}") from None

    def _fault(
        self, session: Session, state: AckState, what: str, names: str, *facts: object, traceback: bool = False
    ) -> None:
        state.reply = canned.LOCAL_ERROR
        state.conflict = False
        logger.error(f"%s: %s: {what}; replying 451", session.log_id, self.name, names, *facts, exc_info=traceback)

    def _log_ignored(self, session: Session, what: str, receiver: Callable[..., Any], fact: object) -> None:
        """Log a fault of a receiver of a signal without an ack."""
        logger.error(
            f"%s: handler %s for signal %r {what} (ignored: the signal has no ack)",
            session.log_id,
            handler_name(receiver),
            self.name,
            fact,
        )


class _BadResult(Exception):
    """A handler returned something that is not a decision."""


def _identity(receiver: object) -> object:
    """Return a key that is equal for the same receiver: each access to a method makes a new object."""
    if isinstance(receiver, MethodType):
        return id(receiver.__self__), id(receiver.__func__)
    return id(receiver)


def _is_for_all(signal: Signal) -> bool:
    """Return whether its receivers are the same for every session, and are held strongly."""
    refs = list(signal.receivers.values())  # a copy: another thread may be connecting a receiver
    return not any(isinstance(ref, weakref.ref) for ref in refs) and len(list(signal.receivers_for(ANY))) == len(refs)
