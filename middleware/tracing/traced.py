"""``traced``: a span for what another middleware does."""

from __future__ import annotations

from typing import Any

from greensmtp.chain.chain import Middleware, Proceed, check_middleware
from greensmtp.chain.validate import describe
from greensmtp.middleware.tracing.spans import TracerProvider, fail, make_tracer, note_reply_in
from greensmtp.protocol.command import Command
from greensmtp.protocol.esmtp import Extension
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.signals import handler_name


def traced(middleware: Middleware, name: str | None = None, tracer_provider: TracerProvider | None = None) -> Traced:
    """Return a middleware that does the same, each time within a span.

    ``traced(RateLimit("100/minute"))``. The span includes the middleware further in, whose own spans are its children.

    :param name: the span's name. Default: the middleware's class or function.
    :param tracer_provider: see ``Tracing``.
    :raises TypeError: it cannot be called as ``(session, command, proceed)``.
    :raises ModuleNotFoundError: opentelemetry-api is missing; the text says how to install it.
    """
    return Traced(middleware, name, tracer_provider)


class Traced:
    """Made by ``traced``."""

    def __init__(self, middleware: Middleware, name: str | None, tracer_provider: TracerProvider | None) -> None:
        check_middleware(middleware)
        self.middleware = middleware
        # As a log line names it, if it raises.
        self.__module__, _, self.__qualname__ = handler_name(middleware).rpartition(".")
        self.name = name or self.__qualname__
        self.verbs = getattr(middleware, "verbs", None)
        self.extensions: tuple[Extension, ...] = tuple(getattr(middleware, "extensions", ()))
        self._tracer = make_tracer(tracer_provider)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass a command through the middleware, within a span."""
        with self._tracer.start_as_current_span(
            self.name, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                reply = self.middleware(session, command, proceed)
            except BaseException as error:
                fail(span, type(error).__qualname__)
                raise
            if isinstance(reply, Reply):
                note_reply_in(span, reply)
            return reply

    def start(self, server: Any) -> None:
        """Start the middleware."""
        start = getattr(self.middleware, "start", None)
        if start is not None:
            start(server)

    def stop(self, server: Any) -> None:
        """Stop the middleware."""
        stop = getattr(self.middleware, "stop", None)
        if stop is not None:
            stop(server)

    def __repr__(self) -> str:
        return f"traced({describe(self.middleware)})"
