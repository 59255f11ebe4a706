"""Logging for the command line."""

from __future__ import annotations

import logging
from typing import Any

import pythonjsonlogger.json  # noqa: F401  # so that a missing library is reported at the start
from gevent import get_hub

from greensmtp.log_writer import LogHandler


def set_up_logging(log_format: str, level: str, target: str) -> None:
    """Send log records to standard error or a file.

    Python's warnings, and exceptions that end a greenlet, become log records too.

    :param log_format: ``text`` or ``json``.
    :param level: the lowest level: ``warning``; ``info`` includes sessions and messages, ``debug`` every command.
    :param target: ``stderr``, or the path of a file.
    :raises OSError: the file cannot be opened.
    """
    logging.basicConfig(level=level.upper(), handlers=[LogHandler(log_format, target)], force=True)
    logging.captureWarnings(True)
    get_hub().print_exception = _log_exception  # type: ignore[method-assign, assignment]


def _log_exception(context: Any, kind: Any, error: Any, traceback: Any) -> None:
    logging.getLogger("greensmtp").error("%s failed", context, exc_info=(kind, error, traceback))
