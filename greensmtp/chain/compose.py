"""Composition: several middlewares as one, and one that applies only to some connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greensmtp._log import logger
from greensmtp.chain.chain import (
    Chain,
    Composite,
    Middleware,
    Proceed,
    check_middleware,
    flatten,
    start_each,
    stop_each,
    wanted_verbs,
)
from greensmtp.chain.validate import check_callable, describe
from greensmtp.errors import Reject
from greensmtp.protocol import canned
from greensmtp.protocol.command import ACCEPT, CONNECT, DISCONNECT, Command
from greensmtp.protocol.esmtp import Extension
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.session.ack import HandlerTimeout

#: Whether a middleware applies: asked of the session, at every command that the middleware wants.
Condition = Callable[[Session], Any]


def compose(*middleware: Middleware, name: str | None = None) -> Composed:
    """One middleware of several, outermost first.

    A server's chain takes its members one by one, each for the verbs it wants, so that composing costs nothing; what
    a member raises is a 451 and in the log under its own name. Without members it lets everything pass.

    :param name: what ``print(server.stack)`` calls it.
    :raises TypeError: one of them cannot be called as ``(session, command, proceed)``.
    """
    return Composed(middleware, name)


def when(predicate: Condition, middleware: Middleware, otherwise: Middleware | None = None) -> When:
    """A middleware that applies where a predicate says so; ``otherwise`` applies where it does not.

    ``when(outside("10.0.0.0/8"), Auth(users, required=True))``. The predicate is called as ``(session)`` at every
    command that one of the two wants, since TLS and identity change; what it raises is a 451, and in the log under
    its name: neither applies, and nothing passes. Predicates are made by ``greensmtp.predicates``, or any callable.

    DISCONNECT is not asked about: a middleware that has seen the connection's ACCEPT or CONNECT sees its DISCONNECT,
    so that what counts connections counts right, and no other does. (At ACCEPT TLS is not up yet.) One that wants
    DISCONNECT but neither of those sees it when it has seen anything at all; one that wants nothing but DISCONNECT,
    where the predicate says so then.

    What it is not to see, it cannot own: a verb of its own gets what the server says by itself. The parameters of
    its extensions are allowed behind MAIL and RCPT all the same, since those are settled when the server starts.

    :raises TypeError: one of these cannot be called as it should be.
    """
    return When(predicate, middleware, otherwise)


class Composed(Composite):
    """Made by ``compose``."""

    def __init__(self, members: tuple[Middleware, ...], name: str | None = None) -> None:
        for member in members:
            check_middleware(member)
        self.members = members
        self.name = name
        self.verbs = _all_verbs(members)
        self.extensions = _all_extensions(members)
        self._chain = Chain(members)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass a command through those that want it."""
        return self._chain.compose(command.verb, proceed)(session, command)

    def start(self, server: Any) -> None:
        """Tell the members, outermost first; where one raises, those before it are told to stop."""
        start_each(self.members, server)

    def stop(self, server: Any) -> None:
        """Tell the members, innermost first."""
        stop_each(self.members, server)

    def __repr__(self) -> str:
        words = [describe(member) for member in self.members]
        return f"compose({', '.join(words if self.name is None else [*words, f'name={self.name!r}'])})"


class When:
    """Made by ``when``."""

    def __init__(self, predicate: Condition, middleware: Middleware, otherwise: Middleware | None = None) -> None:
        check_callable(predicate, "a predicate", ("session",), "bool")
        self.predicate = predicate
        self.middleware = middleware
        self.otherwise = otherwise
        self.members = (middleware,) if otherwise is None else (middleware, otherwise)
        for member in self.members:
            check_middleware(member)
        self.verbs = _all_verbs(self.members)
        self.extensions = _all_extensions(self.members)
        self._applies = _Branch(middleware)
        self._otherwise = _Branch(Composed(()) if otherwise is None else otherwise)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Ask the predicate, and pass the command through one of the two."""
        if command.verb == DISCONNECT:
            return self._end(session, command, proceed)
        branch = self._choose(session, command)
        if branch is None:
            return canned.LOCAL_ERROR
        return branch.run(session, command, proceed)

    def _choose(self, session: Session, command: Command) -> _Branch | None:
        """Ask the predicate; None: it raised.

        :raises Reject: it rejects.
        """
        try:
            return self._applies if self.predicate(session) else self._otherwise
        except Reject:
            raise
        except HandlerTimeout as error:
            logger.error("%s: predicate %s ran too long: %s; replying 451", session.id, describe(self.predicate), error)
            return None
        except (Exception, SystemExit) as error:
            if error is session.close_error:
                raise  # there is nobody to answer
            logger.exception(
                "%s: predicate %s raised at %s; replying 451",
                session.id,
                describe(self.predicate),
                command.shown_verb,
            )
            return None

    def _end(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """DISCONNECT always passes on: what is further inside may wait for it."""
        chosen = None
        if self._applies.sees_the_end_alone or self._otherwise.sees_the_end_alone:
            try:
                chosen = self._choose(session, command)
            except Reject:
                pass
        for branch in (self._otherwise, self._applies):
            proceed = branch.last(session, proceed, chosen=branch is chosen)
        return proceed(session, command)

    def start(self, server: Any) -> None:
        """Tell both, whatever the predicate will say."""
        start_each(self.members, server)

    def stop(self, server: Any) -> None:
        """Tell both."""
        stop_each(self.members, server)

    def __repr__(self) -> str:
        return f"when({', '.join(map(describe, (self.predicate, *self.members)))})"


_BEGINNINGS = frozenset({ACCEPT, CONNECT})


class _Branch:
    """One side of a ``when``. It is its own mark in the notes of those sessions whose end it is to see."""

    def __init__(self, middleware: Middleware) -> None:
        self._chain = Chain((middleware,))
        verbs = _all_verbs(tuple(flatten((middleware,))))
        self._sees_the_end = verbs is None or DISCONNECT in verbs
        self._sees_the_beginning = verbs is None or not verbs.isdisjoint(_BEGINNINGS)
        self.sees_the_end_alone = verbs == frozenset({DISCONNECT})

    def run(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass a command through."""
        if self._sees_the_end and (command.verb in _BEGINNINGS or not self._sees_the_beginning):
            session.notes[self] = True
        return self._chain.compose(command.verb, proceed)(session, command)

    def last(self, session: Session, proceed: Proceed, *, chosen: bool) -> Proceed:
        """What DISCONNECT is to pass through.

        :param chosen: what the predicate says just now.
        """
        if self._sees_the_end and (chosen if self.sees_the_end_alone else session.notes.pop(self, False)):
            return self._chain.compose(DISCONNECT, proceed)
        return proceed


def _all_verbs(members: tuple[Middleware, ...]) -> frozenset[str] | None:
    """The verbs that one of them wants; None: all."""
    wanted: set[str] = set()
    for member in members:
        verbs = wanted_verbs(member)
        if verbs is None:
            return None
        wanted |= verbs
    return frozenset(wanted)


def _all_extensions(members: tuple[Middleware, ...]) -> tuple[Extension, ...]:
    """Their extensions, each once: two that own the same one add to a line's length once."""
    found: list[Extension] = []
    for member in members:
        found.extend(each for each in getattr(member, "extensions", ()) if each not in found)
    return tuple(found)
