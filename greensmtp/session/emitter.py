"""Calling a signal's receivers, and making one reply of what they decide."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from blinker import ANY

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.errors import AlreadyAcknowledged, IncompleteMessage, Reject
from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import ENDINGS, PASS, RULES, Ack, AckState, HandlerTimeout
from greensmtp.session.session import Session
from greensmtp.session.signals import Signal, Signals, shared


class Emitter:
    """One signal of one server: process-wide receivers first, then the server's and the session's own."""

    __slots__ = ("_changes", "_everybody", "name", "rules", "signals")

    def __init__(self, name: str, signals: Signals) -> None:
        self.name = name
        self.rules = RULES.get(name)
        #: The process's and the server's. An empty ``receivers`` is the quick way to know that nobody listens.
        self.signals: tuple[Signal, Signal] = (shared.named(name), signals.named(name))
        #: Who is called for every session, as long as the signals do not change; None: it depends on the session.
        self._everybody: Sequence[Callable[..., Any]] | None = None
        self._changes = -1

    def receivers(self, session: Session) -> Sequence[Callable[..., Any]]:
        """Who is to be called for this session, in the order in which they were connected."""
        shared, own = self.signals
        if shared.is_muted or own.is_muted:
            return self._resolve(session)
        changes = shared.changes + own.changes
        if changes != self._changes:
            self._everybody = self._resolve(session) if all(map(_is_for_all, self.signals)) else None
            self._changes = changes
        return self._resolve(session) if self._everybody is None else self._everybody

    def _resolve(self, session: Session) -> Sequence[Callable[..., Any]]:
        found: list[Callable[..., Any]] = []
        for signal in self.signals:
            if signal.receivers and not signal.is_muted:
                these = list(signal.receivers_for(session))
                if len(these) > 1:
                    # blinker keeps them in a dict, but hands them out by way of a set.
                    refs = list(signal.receivers.values())
                    these.sort(key=[ref() if isinstance(ref, weakref.ref) else ref for ref in refs].index)
                found += these
        return found

    def emit(self, session: Session, **fields: Any) -> None:
        """Tell the receivers of a signal without an ack. Their errors are logged, and change nothing."""
        shared, own = self.signals
        if not own.receivers and not shared.receivers:
            return
        for receiver in self.receivers(session):
            try:
                given = receiver(session, **fields)
            except HandlerTimeout as error:
                self._tell(session, "ran too long: %s", receiver, error)
            except ENDINGS:
                raise
            except BaseException:
                logger.exception(
                    "%s: handler %s for signal %r raised (ignored: the signal has no ack)",
                    session.id,
                    handler_name(receiver),
                    self.name,
                )
            else:
                if given is not None:
                    self._tell(session, "returned %s, not None", receiver, type(given).__name__)

    def collect(
        self, session: Session, on_accept: Callable[[Reply], None] | None = None, /, **fields: Any
    ) -> Reply | None:
        """Have the receivers decide. The reply is theirs, or 451 where they failed; None where an optional ack
        stays undecided.

        :param on_accept: called with the reply, within ``accept``, in whatever greenlet or thread that is.
        """
        rules = self.rules
        assert rules is not None, self.name
        shared, own = self.signals
        if not own.receivers and not shared.receivers:
            return rules.default
        receivers = self.receivers(session)
        if not receivers:
            return rules.default
        outer = session._ack_state  # one of them may ask, too
        session._ack_state = decision = AckState(rules, on_accept)
        ack = Ack(decision)
        receiver = receivers[0]
        try:
            for receiver in receivers:
                given = receiver(session, ack=ack, **fields)
                if given is not None:
                    decision.decide(self._reply_of(given))
            if decision.reply is None and not rules.optional:
                alive = decision.watch(ack)
                del ack  # from here on, only receivers hold it
                # It may take a while: what has been answered before must not wait for this.
                session._connection.flush()
                decision.since = 0.0
                decision.wait(alive)
        except Reject as reject:
            # (Of a Reject the class is known, but it may have been changed since it was made.)
            try:
                decision.reply = rules.reject(reject.reply or reject.code, None if reject.reply else reject.message)
            except (ValueError, TypeError):
                self._fault(
                    session,
                    decision,
                    "handler %s raised a Reject that is no reply",
                    handler_name(receiver),
                    traceback=True,
                )
        except _BadResult as error:
            self._fault(session, decision, "handler %s returned %s", handler_name(receiver), error)
        except AlreadyAcknowledged:
            if not decision.conflict:  # of another ack; else it is told below, and once
                self._fault(session, decision, "%s raised", handler_name(receiver), traceback=True)
        except IncompleteMessage as error:
            if error is session.close_error:
                raise  # there is nobody to answer
            if session.message is None or error is not session.message.error:
                self._fault(session, decision, "handler %s raised", handler_name(receiver), traceback=True)
            decision.reply = canned.LOCAL_ERROR
        except HandlerTimeout as error:
            if error.limit == "ack_timeout":
                names = ", ".join(map(handler_name, receivers))
                self._fault(session, decision, "handler %s did not decide within ack_timeout", names)
            else:
                self._fault(session, decision, "handler %s ran too long: %s", handler_name(receiver), error)
        except (Exception, SystemExit):
            self._fault(session, decision, "handler %s raised", handler_name(receiver), traceback=True)
        finally:
            session._ack_state = outer
            decision.closed = True
        if decision.conflict:
            self._fault(
                session,
                decision,
                "handler %s called accept() or reject() on an ack that was already decided",
                handler_name(receiver),
            )
        elif decision.reply is None and not rules.optional:
            names = ", ".join(map(handler_name, receivers))
            self._fault(session, decision, "handler %s dropped the ack without calling accept() or reject()", names)
        return None if decision.reply is PASS else decision.reply

    def _reply_of(self, given: Any) -> Reply:
        """Return the reply for what a receiver has returned.

        :raises _BadResult: it is no decision.
        """
        assert self.rules is not None
        if not isinstance(given, Reply):
            raise _BadResult(f"{type(given).__name__}; a handler returns None or a Reply")
        try:
            return self.rules.returned(given)
        except ValueError as error:
            raise _BadResult(f"{given!r}: {error}") from None

    def _fault(
        self, session: Session, decision: AckState, what: str, names: str, *facts: object, traceback: bool = False
    ) -> None:
        decision.reply = canned.LOCAL_ERROR
        decision.conflict = False
        logger.error(f"%s: %s: {what}; replying 451", session.id, self.name, names, *facts, exc_info=traceback)

    def _tell(self, session: Session, what: str, receiver: Callable[..., Any], fact: object) -> None:
        """Log what is wrong with a receiver of a signal without an ack."""
        logger.error(
            f"%s: handler %s for signal %r {what} (ignored: the signal has no ack)",
            session.id,
            handler_name(receiver),
            self.name,
            fact,
        )


class _BadResult(Exception):
    """A handler returned what is no decision."""


def _is_for_all(signal: Signal) -> bool:
    """It has the same receivers for every session, and they stay until somebody disconnects them."""
    refs = list(signal.receivers.values())  # another thread may be connecting one
    return not any(isinstance(ref, weakref.ref) for ref in refs) and len(list(signal.receivers_for(ANY))) == len(refs)
