"""The log of the command line."""

from __future__ import annotations

import logging
from typing import Any

import pythonjsonlogger.json  # noqa: F401  # a command line without one of its libraries says so at once
from gevent import get_hub

from greensmtp.log_writer import LogHandler


def set_up_logging(log_format: str, level: str, target: str) -> None:
    """Records of this level and above to standard error or a file: ``warning``; with ``info`` sessions and messages;
    with ``debug`` every command.

    What Python warns of, and what ends a greenlet that nobody waits for, goes there too, not past the format.

    :raises OSError: the file cannot be opened.
    """
    logging.basicConfig(level=level.upper(), handlers=[LogHandler(log_format, target)], force=True)
    logging.captureWarnings(True)
    get_hub().print_exception = _log_exception  # type: ignore[method-assign, assignment]


def _log_exception(context: Any, kind: Any, error: Any, traceback: Any) -> None:
    logging.getLogger("greensmtp").error("%s failed", context, exc_info=(kind, error, traceback))
