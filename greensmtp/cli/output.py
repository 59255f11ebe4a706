"""The log and the standard output of ``serve``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pythonjsonlogger.json  # noqa: F401  # so that a missing library is reported at the start
from gevent import get_hub

from greensmtp._hostport import join
from greensmtp.config.probe import probe_special_log
from greensmtp.line_writer import LineWriter
from greensmtp.log_writer import LogHandler
from greensmtp.protocol.log_text import printable

if TYPE_CHECKING:
    from greensmtp.config.load import Loaded


def set_up_logging(stdout: LineWriter, log_format: str, level: str, target: str) -> None:
    """Send log records to a standard stream or a file.

    Python's warnings, exceptions that end a greenlet, and those that cannot be raised become log records too.

    :param stdout: what else is printed. It goes to standard error if the log takes standard output.
    :param log_format: ``text`` or ``json``.
    :param level: the lowest level: ``warning``; ``info`` includes sessions and messages, ``debug`` every command.
    :param target: ``stderr``, ``stdout``, or the path of a file.
    :raises OSError: the file cannot be opened.
    """
    logging.basicConfig(level=level.upper(), handlers=[LogHandler(log_format, target)], force=True)
    stdout.redirect(sys.stderr if target == "stdout" else sys.stdout)
    logging.captureWarnings(True)
    sys.unraisablehook = _log_unraisable
    get_hub().print_exception = _log_exception  # type: ignore[method-assign, assignment]


def _log_exception(context: Any, kind: Any, error: Any, traceback: Any) -> None:
    logging.getLogger("greensmtp").error("%s failed", context, exc_info=(kind, error, traceback))


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Log an exception that Python cannot raise: in a finalizer, or for a host name (SNI) that is not ASCII."""
    logging.getLogger("greensmtp").warning(
        "exception ignored in %r: %s: %s", unraisable.object, unraisable.exc_type.__name__, unraisable.exc_value
    )


def start_logging(stdout: LineWriter, loaded: Loaded) -> None:
    """Send the log where the configuration says.

    :raises ConfigError: it cannot be written.
    """
    from greensmtp.config.problems import Problem

    log = loaded.config.logging
    try:
        probe_special_log(log.target)
        set_up_logging(stdout, log.format, log.level, log.target)
    except (OSError, ValueError) as error:
        text = f"cannot write to {log.target!r}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise loaded.source.error([Problem(("logging", "target"), text)]) from error


def say_places(stdout: LineWriter, maildirs: Iterable[str], urls: Iterable[str], http: tuple[str, int] | None) -> None:
    """Print where mail is stored, where the listeners are, and where to ask for the health."""
    for maildir in maildirs:
        stdout.say(f"storing mail in {printable(str(Path(maildir).absolute()))}/new, one file per message")
    for url in urls:
        stdout.say(f"listening {url}")
    if http is not None:
        stdout.say(f"health http://{join(*http)}/readyz")
