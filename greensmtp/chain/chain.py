"""The middleware chain: ``(session, command, proceed) -> Reply``, outermost first, composed once per verb."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any, Protocol

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.errors import Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.command import Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import ServerInfo, Session
from greensmtp.session.ack import HandlerTimeout

#: What a middleware calls to have the rest of the chain answer.
Proceed = Callable[[Session, Command], Reply]


class Middleware(Protocol):
    """Sees every command, and may answer it, pass it on, or change the answer.

    Four attributes are optional. ``verbs``, an iterable of the verbs it wants (``"MAIL"``; pseudo-commands too:
    ``"ACCEPT"``, ``"CONNECT"``, ``"END-OF-DATA"``, ``"DISCONNECT"``): other commands do not pass through it, and
    cost nothing.
    ``extensions``, an iterable of ``protocol.extensions.Extension``: what it adds to MAIL, RCPT and line lengths.
    ``start(server)`` and ``stop(server)``: called before a server listens, and when its last connection is over. What
    ``start`` raises is raised by the server's own, which has not begun to listen then.
    """

    def __call__(self, session: Session, command: Command, proceed: Proceed, /) -> Reply: ...


class StackInfo(ServerInfo, Protocol):
    """A server as the ``start`` and ``stop`` of its middleware see it."""

    @property
    def stack(self) -> tuple[Middleware, ...]:
        """All middleware of the server, outermost first."""


def check_middleware(middleware: Any) -> None:
    """Raise TypeError unless it can be called as one."""
    from greensmtp.chain.validate import check_callable, check_words  # once a server, and it brings inspect along

    check_callable(middleware, "a middleware", ("session", "command", "proceed"), "Reply")
    verbs = getattr(middleware, "verbs", None)
    if verbs is not None:
        check_words(verbs, middleware, "verbs")
    for name in ("start", "stop"):
        hook = getattr(middleware, name, None)
        if hook is not None:
            check_callable(hook, f"{name} of {handler_name(middleware)}", ("server",), "None")


def start_each(middleware: Iterable[Middleware], server: Any) -> list[Middleware]:
    """Call ``start(server)`` of those that have one, outermost first; give those that are to be told of the stop.

    Where one raises, those before it are told of the stop again, and what it raised goes on.
    """
    told: list[Middleware] = []
    try:
        for each in middleware:
            start = getattr(each, "start", None)
            if start is not None:
                try:
                    start(server)
                except SystemExit as error:  # which would end the program without a word
                    raise RuntimeError(f"start of {handler_name(each)} called sys.exit({error.code!r})") from error
            told.append(each)
    except BaseException:
        stop_each(told, server)
        raise
    return told


def stop_each(middleware: Iterable[Middleware], server: Any) -> None:
    """Call ``stop(server)`` of those that have one, innermost first. What one raises is logged: the others are told."""
    for each in reversed(tuple(middleware)):
        try:
            stop = getattr(each, "stop", None)
            if stop is not None:
                stop(server)
        except (Exception, SystemExit):
            logger.exception("%s raised when told of the stop", handler_name(each))


class Chain:
    """The stack of one server, frozen."""

    def __init__(self, middleware: Iterable[Middleware]) -> None:
        self._links = [(link, wanted_verbs(link)) for link in flatten(middleware)]

    @property
    def verbs(self) -> frozenset[str]:
        """The verbs that some middleware asks for by name."""
        return frozenset().union(*(verbs for _, verbs in self._links if verbs is not None))

    def compose(self, verb: str | None, terminal: Proceed) -> Proceed:
        """One callable for a verb (None: any that no middleware names), ending in ``terminal``."""
        proceed = terminal
        for middleware, verbs in reversed(self._links):
            if verbs is None or verb in verbs:
                proceed = _link(middleware, proceed)
        return proceed


class Composite:
    """Several middlewares stacked as one. A chain takes its members one by one, so that it costs nothing itself."""

    members: tuple[Middleware, ...]

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """As if it were a chain of its own; for those who hold it without a chain."""
        raise NotImplementedError


def flatten(middleware: Iterable[Middleware]) -> Iterator[Middleware]:
    """Those that do the work, outermost first."""
    for each in middleware:
        if isinstance(each, Composite):
            yield from flatten(each.members)
        else:
            yield each


def wanted_verbs(middleware: Middleware) -> frozenset[str] | None:
    """The verbs that it wants, in upper case; None: all of them."""
    verbs = getattr(middleware, "verbs", None)
    return None if verbs is None else frozenset(verb.upper() for verb in verbs)


def _link(middleware: Middleware, proceed: Proceed) -> Proceed:
    # What calling an object does, done without looking for it each time.
    method = middleware.__call__
    call = method if isinstance(method, MethodType) else middleware

    def link(session: Session, command: Command) -> Reply:
        try:
            try:
                reply = call(session, command, proceed)
            except Reject as reject:
                reply = reply_of(reject)
        except HandlerTimeout as error:
            name = handler_name(middleware)
            logger.error("%s: middleware %s ran too long: %s; replying 451", session.id, name, error)
            return canned.LOCAL_ERROR
        except (Exception, SystemExit) as error:
            if error is session.close_error:
                raise  # there is nobody to answer
            logger.exception(
                "%s: middleware %s raised at %s; replying 451",
                session.id,
                handler_name(middleware),
                command.shown_verb,
            )
            return canned.LOCAL_ERROR
        if isinstance(reply, Reply):
            return reply
        logger.error(
            "%s: middleware %s gave %r for %s, not a Reply; replying 451",
            session.id,
            handler_name(middleware),
            reply,
            command.shown_verb,
        )
        return canned.LOCAL_ERROR

    return link
