"""The middleware chain: ``(session, command, proceed) -> Reply``, outermost first, composed once per verb."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from greensmtp.errors import Reject
from greensmtp.protocol import standard
from greensmtp.protocol.commands import Command
from greensmtp.protocol.replies import Reply
from greensmtp.session import Session
from greensmtp.signals import handler_name

logger = logging.getLogger("greensmtp")

#: What a middleware calls to have the rest of the chain answer.
Proceed = Callable[[Session, Command], Reply]


class Middleware(Protocol):
    """Sees every command, and may answer it, pass it on, or change the answer.

    Four attributes are optional. ``verbs``, an iterable of the verbs it wants (``"MAIL"``; pseudo-commands too:
    ``"CONNECT"``, ``"END-OF-DATA"``, ``"DISCONNECT"``): other commands do not pass through it, and cost nothing.
    ``extensions``, an iterable of ``protocol.extensions.Extension``: what it adds to MAIL, RCPT and line lengths.
    ``start(server)`` and ``stop(server)``: called before a server listens, and when its last connection is over. What
    ``start`` raises is raised by the server's own, which has not begun to listen then.
    """

    def __call__(self, session: Session, command: Command, proceed: Proceed, /) -> Reply: ...


def check_middleware(middleware: Any) -> None:
    """Raise TypeError unless it can be called as one."""
    shape = "(session, command, proceed) -> Reply"
    if inspect.isclass(middleware):
        raise TypeError(f"a middleware is an instance: write {middleware.__name__}(...), not {middleware.__name__}")
    if not callable(middleware):
        raise TypeError(f"a middleware is called as {shape}; {middleware!r} cannot be called")
    try:
        inspect.signature(middleware).bind(None, None, None)
    except TypeError:
        signature = inspect.signature(middleware)
        raise TypeError(f"a middleware is called as {shape}; {handler_name(middleware)} takes {signature}") from None
    except ValueError:  # something built in: it tells nothing
        pass
    if isinstance(getattr(middleware, "verbs", ()), str):
        raise TypeError(f"verbs of {handler_name(middleware)} is an iterable of verbs, not one str")
    for name in ("start", "stop"):
        _check_hook(middleware, name)


def _check_hook(middleware: Any, name: str) -> None:
    hook = getattr(middleware, name, None)
    if hook is None:
        return
    try:
        inspect.signature(hook).bind(None)
    except TypeError:
        shape = f"{name}(server), by the servers it is used by"
        raise TypeError(f"{name} of {handler_name(middleware)} is called as {shape}; it is {hook!r}") from None
    except ValueError:  # something built in
        pass


class Chain:
    """The stack of one server, frozen."""

    def __init__(self, middleware: Iterable[Middleware]) -> None:
        self._links = [(link, _verbs(link)) for link in middleware]

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


def _verbs(middleware: Middleware) -> frozenset[str] | None:
    verbs = getattr(middleware, "verbs", None)
    return None if verbs is None else frozenset(verb.upper() for verb in verbs)


def _link(middleware: Middleware, proceed: Proceed) -> Proceed:
    def link(session: Session, command: Command) -> Reply:
        try:
            try:
                reply = middleware(session, command, proceed)
            except Reject as reject:
                reply = Reply(reject.code, reject.message or "Refused")
        except Exception as error:
            if error is session.link.lost:
                raise  # there is nobody to answer
            logger.exception(
                "%s: middleware %s raised at %s; answered 451",
                session.id,
                handler_name(middleware),
                _shown(command),
            )
            return standard.LOCAL_ERROR
        if isinstance(reply, Reply):
            return reply
        logger.error(
            "%s: middleware %s gave %r for %s, not a Reply; answered 451",
            session.id,
            handler_name(middleware),
            reply,
            _shown(command),
        )
        return standard.LOCAL_ERROR

    return link


def _shown(command: Command) -> str:
    """The verb, for a log; there are secrets that look like one (``AUTH=...``)."""
    return "AUTH" if command.is_secret else command.verb
