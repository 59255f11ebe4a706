"""The middleware chain: ``(session, command, proceed) -> Reply``, outermost first, composed once per verb."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from types import MethodType
from typing import Any, Protocol, TypeVar

from greensmtp._callables import handler_name
from greensmtp._compiled import mypyc_attr
from greensmtp._log import logger
from greensmtp.chain.validate import check_callable, check_words
from greensmtp.errors import Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.command import ACCEPT, CONNECT, Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import ServerInfo, Session
from greensmtp.session.ack_state import HandlerTimeout

#: Compositions that each inner chain keeps; a server has about thirty.
COMPOSED = 256

#: The third argument of a middleware: calls the rest of the chain, and returns its reply.
Proceed = Callable[[Session, Command], Reply]


class Middleware(Protocol):
    """A callable that sees every command, and may reply itself, call ``proceed``, or change the reply of the rest.

    Four attributes are optional.

    - ``verbs``: an iterable of the verbs it handles, such as ``"MAIL"`` or the pseudo-commands ``"ACCEPT"``,
      ``"CONNECT"``, ``"END-OF-DATA"`` and ``"DISCONNECT"``. Other commands do not pass through it, and cost nothing.
      (``middleware`` sets it for a function.)
    - ``extensions``: an iterable of ``protocol.esmtp.Extension``, which add parameters to MAIL and RCPT and room to
      command lines.
    - ``start(server)`` and ``stop(server)``: called before a server listens, and when its last connection is over. An
      exception of ``start`` is raised by the server's ``start``, which does not listen then.
    """

    def __call__(self, session: Session, command: Command, proceed: Proceed, /) -> Reply: ...


class StackInfo(ServerInfo, Protocol):
    """A server as the ``start`` and ``stop`` of its middleware see it."""

    @property
    def stack(self) -> tuple[Middleware, ...]:
        """All middleware of the server, outermost first."""


F = TypeVar("F", bound=Callable[[Session, Command, Proceed], Reply])


def middleware(*, verbs: Iterable[str]) -> Callable[[F], F]:
    """Return a decorator that makes a function a middleware for some verbs only.

    ``@middleware(verbs=("MAIL", "RCPT"))``: other commands do not pass through it, and cost nothing. A function that
    is to see every command needs no decorator.

    :raises TypeError: the verbs are not an iterable of str, or the function cannot be called as
        ``(session, command, proceed)``.
    """
    if isinstance(verbs, str):
        raise TypeError(f"verbs must be an iterable of verbs, like ({verbs!r},), not one str")
    wanted = tuple(verbs)

    def decorate(function: F) -> F:
        check_middleware(function)
        check_words(wanted, function, "verbs")
        function.verbs = wanted  # type: ignore[attr-defined]
        return function

    return decorate


def check_middleware(middleware: Any) -> None:
    """Raise TypeError unless the object can be called as a middleware, and its attributes are what they should be."""
    check_callable(middleware, "a middleware", ("session", "command", "proceed"), "Reply")
    verbs = getattr(middleware, "verbs", None)
    if verbs is not None:
        check_words(verbs, middleware, "verbs")
    for name in ("start", "stop"):
        hook = getattr(middleware, name, None)
        if hook is not None:
            check_callable(hook, f"{name} of {handler_name(middleware)}", ("server",), "None")


class Chain:
    """The stack of one server, frozen."""

    def __init__(self, middleware: Iterable[Middleware]) -> None:
        self._links = [(link, wanted_verbs(link)) for link in flatten(middleware)]

    @property
    def verbs(self) -> frozenset[str]:
        """The verbs that some middleware names."""
        return frozenset().union(*(verbs for _, verbs in self._links if verbs is not None))

    def wants(self, verb: str) -> bool:
        """Return True if commands with this verb pass through some middleware."""
        return any(verbs is None or verb in verbs for _, verbs in self._links)

    def compose(self, verb: str | None, terminal: Proceed) -> Proceed:
        """Return one callable for a verb (None: any that no middleware names), which ends in ``terminal``."""
        proceed = terminal
        for middleware, verbs in reversed(self._links):
            if verbs is None or verb in verbs:
                proceed = _link(middleware, proceed)
                if verb in (ACCEPT, CONNECT):
                    proceed = _opening(proceed)
        return proceed


class CachedChain(Chain):
    """A chain inside another: it is composed while commands are handled, and keeps what it has composed."""

    def __init__(self, middleware: Iterable[Middleware]) -> None:
        super().__init__(middleware)
        self._named = self.verbs
        # A server has one ``proceed`` for each verb. Several servers may share a stack.
        self._composed = lru_cache(COMPOSED)(super().compose)

    def compose(self, verb: str | None, terminal: Proceed) -> Proceed:
        """As ``Chain.compose``. Verbs that no middleware names share an entry: clients can make up any number."""
        return self._composed(verb if verb in self._named else None, terminal)


@mypyc_attr(allow_interpreted_subclasses=True)
class Composite:
    """Several middlewares stacked as one. A chain takes its members one by one, so it costs nothing itself."""

    members: tuple[Middleware, ...]

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass a command through the members, for a caller that holds it without a chain."""
        raise NotImplementedError


def flatten(middleware: Iterable[Middleware]) -> Iterator[Middleware]:
    """Yield the middlewares and the members of composed ones, outermost first."""
    for each in middleware:
        if isinstance(each, Composite):
            yield from flatten(each.members)
        else:
            yield each


def wanted_verbs(middleware: Middleware) -> frozenset[str] | None:
    """Return the verbs that a middleware handles, in upper case; None: all."""
    verbs = getattr(middleware, "verbs", None)
    return None if verbs is None else frozenset(verb.upper() for verb in verbs)


def before_banner(reply: Reply) -> Reply:
    """Return a reply to a connection; a refusal as RFC 5321 section 3.1 has it: 554, or 421 for a temporary one."""
    if reply.code < 400 or reply.code in (421, 554):
        return reply
    return Reply(554 if reply.code >= 500 else 421, *reply.lines, enhanced=reply.enhanced)


def _opening(proceed: Proceed) -> Proceed:
    """Return a link of ACCEPT or CONNECT: the middleware further out see, and log, the code that the client gets."""
    return lambda session, command: before_banner(proceed(session, command))


def _link(middleware: Middleware, proceed: Proceed) -> Proceed:
    # Calling an object looks up its __call__ each time: do it once.
    method = middleware.__call__
    call = method if isinstance(method, MethodType) else middleware

    def link(session: Session, command: Command) -> Reply:
        try:
            try:
                reply = call(session, command, proceed)
            except Reject as reject:
                reply = reply_of(reject)
        except HandlerTimeout as timeout:
            name = handler_name(middleware)
            logger.error("%s: middleware %s ran too long: %s; replying 451", session.log_id, name, timeout)
            return canned.LOCAL_ERROR
        except (Exception, SystemExit) as error:
            if error is session.close_error:
                raise  # the client is gone
            logger.exception(
                "%s: middleware %s raised at %s; replying 451",
                session.log_id,
                handler_name(middleware),
                command.shown_verb,
            )
            return canned.LOCAL_ERROR
        if isinstance(reply, Reply):
            return reply
        logger.error(
            "%s: middleware %s returned %r for %s, not a Reply; replying 451",
            session.log_id,
            handler_name(middleware),
            reply,
            command.shown_verb,
        )
        return canned.LOCAL_ERROR

    return link
