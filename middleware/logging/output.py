"""Output of Logging to standard error, as text or JSON, for programs that configure no logging."""

from __future__ import annotations

import logging

from greensmtp.errors import ArgumentError
from greensmtp.log_writer import LogHandler


class _StandardError(LogHandler):
    """The handler for ``format``. A logger has one, however many Logging use it."""


def attach(logger: logging.Logger, form: str, level: int) -> None:
    """Let a logger write to standard error in this form, and not propagate.

    :raises ValueError: there is no such form, or the logger writes in the other one.
    :raises ModuleNotFoundError: a library is missing; the text says what to install.
    """
    if form not in ("text", "json"):
        raise ArgumentError(
            "format", f"takes 'text' or 'json', or None where the program configures handlers, not {form!r}"
        )
    attached = next((handler for handler in logger.handlers if isinstance(handler, _StandardError)), None)
    if attached is not None and attached.log_format != form:
        raise ValueError(f"logger {logger.name!r} writes {attached.log_format} already; pass another logger for {form}")
    if attached is None:
        try:
            logger.addHandler(_StandardError(form))
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Logging(format='json') needs python-json-logger: pip install 'greensmtp[cli]'", name=error.name
            ) from error
        logger.propagate = False
    if logger.level == logging.NOTSET or logger.level > level:
        logger.setLevel(level)
