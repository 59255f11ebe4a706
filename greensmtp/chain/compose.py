"""Composition: ``compose`` makes one middleware of several, ``when`` one that applies to some connections only.

A server's chain is composed before it serves. The inside of a ``when`` is composed while commands are handled, once for
each verb (``CachedChain``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greensmtp._log import logger
from greensmtp.chain.chain import (
    CachedChain,
    Composite,
    Middleware,
    Proceed,
    check_middleware,
    flatten,
    wanted_verbs,
)
from greensmtp.chain.start import start_each, stop_each
from greensmtp.chain.validate import check_callable, describe
from greensmtp.errors import Reject
from greensmtp.protocol import canned
from greensmtp.protocol.command import ACCEPT, CONNECT, DISCONNECT, Command
from greensmtp.protocol.esmtp import Extension
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.session.ack_state import HandlerTimeout

#: Whether a middleware applies to a session: called at every command that the middleware handles.
Condition = Callable[[Session], Any]


def compose(*middleware: Middleware, name: str | None = None) -> Composed:
    """Return one middleware made of several, outermost first.

    A server's chain takes the members one by one, each for its own verbs, so composing costs nothing. If a member
    raises, the reply is 451 and the log names that member. Without members it lets everything pass.

    :param name: its name in ``print(server.stack)``.
    :raises TypeError: a member cannot be called as ``(session, command, proceed)``.
    """
    return Composed(middleware, name)


def when(predicate: Condition, middleware: Middleware, otherwise: Middleware | None = None) -> When:
    """Return a middleware that applies where a predicate is true; ``otherwise`` applies where it is false.

    ``when(outside("10.0.0.0/8"), Auth(users, required=True))``. The predicate is called as ``(session)`` at every
    command that one of the two handles, since TLS and identity change. If it raises, the error is logged with its name,
    the reply is 451, and the command does not pass. Any callable will do; ``greensmtp.predicates`` has some.

    DISCONNECT does not depend on the predicate: a middleware that saw ACCEPT or CONNECT of a connection sees its
    DISCONNECT, so that it counts connections right. (At ACCEPT TLS is not up yet.) A middleware that handles DISCONNECT
    but neither of those sees it if it saw any command. For one that handles only DISCONNECT the predicate is called.

    Where it does not apply, the verbs that a middleware owns get the server's own reply. The parameters of its
    extensions are allowed after MAIL and RCPT in any case, since they are fixed when the server starts.

    :raises TypeError: an argument cannot be called as it should be.
    """
    return When(predicate, middleware, otherwise)


class Composed(Composite):
    """Made by ``compose``."""

    def __init__(self, members: tuple[Middleware, ...], name: str | None = None) -> None:
        for member in members:
            check_middleware(member)
        self.members = members
        self.name = name
        self.verbs: frozenset[str] | None = _all_verbs(members)
        self.extensions: tuple[Extension, ...] = _all_extensions(members)
        self._compose = CachedChain(members).compose

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass a command through the members that want it."""
        return self._compose(command.verb, proceed)(session, command)

    def start(self, server: Any) -> None:
        """Start the members, outermost first; if one raises, stop those already started."""
        start_each(self.members, server)

    def stop(self, server: Any) -> None:
        """Stop the members, innermost first."""
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
        self.members: tuple[Middleware, ...] = (middleware,) if otherwise is None else (middleware, otherwise)
        for member in self.members:
            check_middleware(member)
        self.verbs: frozenset[str] | None = _all_verbs(self.members)
        self.extensions: tuple[Extension, ...] = _all_extensions(self.members)
        self._applies = _Branch(middleware)
        self._otherwise = _Branch(Composed(()) if otherwise is None else otherwise)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Call the predicate, and pass the command through one of the two."""
        if command.verb == DISCONNECT:
            return self._end(session, command, proceed)
        branch = self._choose(session, command)
        if branch is None:
            return canned.LOCAL_ERROR
        return branch.run(session, command, proceed)

    def _choose(self, session: Session, command: Command) -> _Branch | None:
        """Call the predicate, and return the branch to take; None: it raised.

        :raises Reject: the predicate rejects.
        """
        try:
            return self._applies if self.predicate(session) else self._otherwise
        except Reject:
            raise
        except HandlerTimeout as error:
            logger.error(
                "%s: predicate %s ran too long: %s; replying 451", session.log_id, describe(self.predicate), error
            )
            return None
        except (Exception, SystemExit) as error:
            if error is session.close_error:
                raise  # the client is gone
            logger.exception(
                "%s: predicate %s raised at %s; replying 451",
                session.log_id,
                describe(self.predicate),
                command.shown_verb,
            )
            return None

    def _end(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass DISCONNECT on in any case: middleware further inside may wait for it."""
        chosen = None
        if self._applies.wants_disconnect_only or self._otherwise.wants_disconnect_only:
            try:
                chosen = self._choose(session, command)
            except Reject:
                pass
        for branch in (self._otherwise, self._applies):
            proceed = branch.last(session, proceed, chosen=branch is chosen)
        return proceed(session, command)

    def start(self, server: Any) -> None:
        """Start both, whatever the predicate will return."""
        start_each(self.members, server)

    def stop(self, server: Any) -> None:
        """Stop both."""
        stop_each(self.members, server)

    def __repr__(self) -> str:
        return f"when({', '.join([describe(self.predicate), *map(describe, self.members)])})"


_FIRST = frozenset({ACCEPT, CONNECT})


class _Branch:
    """One side of a ``when``. It marks in ``session.notes``, under itself, that it is to see DISCONNECT."""

    def __init__(self, middleware: Middleware) -> None:
        self._compose = CachedChain((middleware,)).compose
        verbs = _all_verbs(tuple(flatten((middleware,))))
        self._wants_disconnect = verbs is None or DISCONNECT in verbs
        self._wants_first = verbs is None or not verbs.isdisjoint(_FIRST)
        self.wants_disconnect_only = verbs == frozenset({DISCONNECT})

    def run(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass a command through."""
        if self._wants_disconnect and (command.verb in _FIRST or not self._wants_first):
            session.notes[self] = True
        return self._compose(command.verb, proceed)(session, command)

    def last(self, session: Session, proceed: Proceed, *, chosen: bool) -> Proceed:
        """Return ``proceed`` for DISCONNECT, with this branch before it if the branch is to see it.

        :param chosen: True if the predicate chooses this branch now.
        """
        if self._wants_disconnect and (chosen if self.wants_disconnect_only else session.notes.pop(self, False)):
            return self._compose(DISCONNECT, proceed)
        return proceed


def _all_verbs(members: tuple[Middleware, ...]) -> frozenset[str] | None:
    """Return the verbs that at least one member handles; None: all."""
    wanted: set[str] = set()
    for member in members:
        verbs = wanted_verbs(member)
        if verbs is None:
            return None
        wanted |= verbs
    return frozenset(wanted)


def _all_extensions(members: tuple[Middleware, ...]) -> tuple[Extension, ...]:
    """Return the members' extensions, each once: it adds its room to a line's length once."""
    found: list[Extension] = []
    for member in members:
        found.extend(each for each in getattr(member, "extensions", ()) if each not in found)
    return tuple(found)
