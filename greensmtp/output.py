"""Lines on standard output and records on standard error, neither of which holds up the hub."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import deque

from gevent import get_hub, spawn
from gevent.event import Event

#: Lines that may wait for whoever reads standard output; more are dropped, and counted.
MAX_WAITING = 10_000


class Announcer:
    """Writes lines to standard output in the thread pool: a pipe that nobody empties blocks a thread, not the hub."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._open = True
        self._something = Event()
        self._writer = spawn(self._write_all)

    def say(self, line: str) -> None:
        """One line, soon; never waits."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
        else:
            self._waiting.append(line)
        self._something.set()

    def finish(self, timeout: float = 1.0) -> None:
        """Write what is waiting, as far as that goes in this time."""
        self._open = False
        self._something.set()
        self._writer.join(timeout)

    def _write_all(self) -> None:
        while self._open or self._waiting:
            self._something.wait()
            self._something.clear()
            lines = list(self._waiting)
            self._waiting.clear()
            if self._dropped:
                lines.append(f"({self._dropped} lines dropped: nobody reads them)")
                self._dropped = 0
            if lines:
                get_hub().threadpool.apply(_write, ("\n".join(lines) + "\n",))


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the reader is gone: mail goes on
        sys.stdout.write(text)
        sys.stdout.flush()


def set_up_logging(log_format: str, verbosity: int) -> None:
    """Records to standard error: warnings; with ``-v`` sessions and messages; with ``-vv`` every command.

    :param log_format: ``text``, or ``json``: an object a line.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        from pythonjsonlogger.json import JsonFormatter

        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s",
                timestamp=True,
                rename_fields={"levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, handlers=[handler], force=True)
