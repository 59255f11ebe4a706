"""Where Logging writes in a program that has no logging of its own: to standard error, as text or JSON."""

from __future__ import annotations

import logging

from greensmtp.errors import ArgumentError
from greensmtp.log_writer import LogHandler


class _StandardError(LogHandler):
    """The handler that ``format`` asks for; one for each logger, whichever Logging asks."""


def attach(logger: logging.Logger, form: str, level: int) -> None:
    """Have a logger write in this form to standard error, and nowhere else.

    :raises ValueError: no such form, or the logger writes in the other one.
    :raises ModuleNotFoundError: a library is missing; the text says what to install.
    """
    if form not in ("text", "json"):
        raise ArgumentError(
            "format", f"takes 'text' or 'json', or None for handlers of the program's own, not {form!r}"
        )
    there = next((handler for handler in logger.handlers if isinstance(handler, _StandardError)), None)
    if there is not None and there.log_format != form:
        raise ValueError(f"logger {logger.name!r} writes {there.log_format} already: name another one for {form}")
    if there is None:
        try:
            logger.addHandler(_StandardError(form))
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Logging(format='json') needs python-json-logger: pip install 'greensmtp[cli]'", name=error.name
            ) from error
        logger.propagate = False
    if logger.level == logging.NOTSET or logger.level > level:
        logger.setLevel(level)
