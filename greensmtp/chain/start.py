"""Start and stop middleware with the server.

This file is plain Python in the compiled build too: ``service`` reads the frame of ``start_each`` to name the
middleware that failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.chain.chain import Middleware


def start_each(middleware: Iterable[Middleware], server: Any) -> list[Middleware]:
    """Call ``start(server)`` of each middleware that has it, outermost first; return those to stop later.

    If one raises, those already started are stopped, and the exception propagates.
    """
    told: list[Middleware] = []
    try:
        for each in middleware:
            start = getattr(each, "start", None)
            if start is not None:
                try:
                    start(server)
                except SystemExit as error:  # else it would end the program without a message
                    raise RuntimeError(f"start of {handler_name(each)} called sys.exit({error.code!r})") from error
            told.append(each)
    except BaseException:
        stop_each(told, server)
        raise
    return told


def stop_each(middleware: Iterable[Middleware], server: Any) -> None:
    """Call ``stop(server)`` of each middleware that has it, innermost first. Log exceptions and go on."""
    for each in reversed(tuple(middleware)):
        try:
            stop = getattr(each, "stop", None)
            if stop is not None:
                stop(server)
        except (Exception, SystemExit):
            logger.exception("stop of middleware %s raised", handler_name(each))
