"""Where Logging writes in a program that has no logging of its own: to standard error, as text or JSON."""

from __future__ import annotations

import logging
from typing import Any


class _StandardError(logging.StreamHandler[Any]):
    """The handler that ``format`` asks for; one for each logger, whoever asks."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        if form == "json":
            try:
                from pythonjsonlogger.json import JsonFormatter
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "Logging(format='json') needs python-json-logger: pip install 'greensmtp[cli]'", name=error.name
                ) from error
            names = {"levelname": "level", "name": "logger"}
            form = "%(levelname)s %(name)s %(message)s"
            self.setFormatter(JsonFormatter(form, timestamp=True, rename_fields=names))
        else:
            self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


def attach(logger: logging.Logger, form: str, level: int) -> None:
    """Have a logger write in this form to standard error, and nowhere else.

    :raises ValueError: no such form, or the logger writes in the other one.
    """
    if form not in ("text", "json"):
        raise ValueError(f"format takes 'text' or 'json', or None for handlers of the program's own, not {form!r}")
    there = next((handler for handler in logger.handlers if isinstance(handler, _StandardError)), None)
    if there is not None and there.form != form:
        raise ValueError(f"logger {logger.name!r} writes {there.form} already: name another one for {form}")
    if there is None:
        logger.addHandler(_StandardError(form))
        logger.propagate = False
    if logger.level == logging.NOTSET or logger.level > level:
        logger.setLevel(level)
