"""Lines on standard output and records on standard error, neither of which holds up the hub."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from gevent import get_hub
from pythonjsonlogger.json import JsonFormatter

from greensmtp.native import native

#: Lines that may wait for whoever reads them; more are dropped, and counted.
MAX_WAITING = 10_000

#: Lines that are written at once, at most.
BATCH = 1_000


class LineWriter:
    """Writes lines to a stream's descriptor in a native thread: a pipe that nobody empties holds up that thread alone.

    ``say`` may be called in any thread. A stream that is closed takes everything, and shows nothing.

    :param gap: the line that stands for so many which were dropped.
    """

    def __init__(self, stream: TextIO | None, gap: Callable[[int], str] = "({} lines dropped)".format) -> None:
        self._gap = gap
        # The real things: what monkey patching puts in their place belongs to one thread's hub.
        self._lines: Any = native("queue", "SimpleQueue")()
        self._at_work: Any = native("_thread", "allocate_lock")()
        self._dropped = 0
        self._descriptor = _descriptor(stream)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        if self._descriptor is not None:
            self._at_work.acquire()
            native("_thread", "start_new_thread")(self._write_all, (self._descriptor,))

    def say(self, line: str) -> None:
        """One line, soon; never waits."""
        if self._descriptor is None:
            return
        if self._lines.qsize() < MAX_WAITING:
            self._lines.put(line)
        else:
            self._dropped += 1

    def finish(self, timeout: float = 1.0) -> None:
        """Write what is waiting, as far as that goes in this time; what is said after it is not written."""
        self._lines.put(None)
        if self._at_work.acquire(timeout=timeout):
            self._at_work.release()

    def _write_all(self, descriptor: int) -> None:
        line = ""
        while line is not None:
            lines = []
            line = self._lines.get()
            while line is not None:
                lines.append(line)
                if len(lines) == BATCH or self._lines.empty():
                    break
                line = self._lines.get()
            if self._dropped and self._lines.empty():
                lines.append(self._gap(self._dropped))
                self._dropped = 0
            text = "".join(f"{line}\n" for line in lines)
            _write(descriptor, text.encode(self._encoding, "backslashreplace"))
        self._at_work.release()


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):  # closed, or no file at all
        return None


def _write(descriptor: int, data: bytes) -> None:
    # Not through the stream: what it could not write would stay in its buffer, and fail once more at exit.
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        pass  # the reader is gone, or the disk is full: mail goes on


class LogHandler(logging.Handler):
    """Records as lines on standard error, or at the end of a file.

    :param log_format: ``text``, or ``json``: an object a line.
    :param target: ``stderr``, or the path of a file.
    :raises OSError: the file cannot be opened.
    """

    def __init__(self, log_format: str, target: str = "stderr") -> None:
        # (Before logging knows of this handler, and would close it at the end.)
        self._file = None if target == "stderr" else Path(target).open("a", encoding="utf-8")  # noqa: SIM115
        super().__init__()
        self.setFormatter(_json_formatter() if log_format == "json" else _text_formatter())
        self._writer = LineWriter(self._file or sys.stderr, self._format_gap)

    def emit(self, record: logging.LogRecord) -> None:
        """Soon, and never waiting."""
        try:
            self._writer.say(self.format(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write what is waiting; ``logging`` calls it when the process ends."""
        self._writer.finish()
        if self._file is not None:
            self._file.close()
        super().close()

    def _format_gap(self, lines: int) -> str:
        record = {"name": "greensmtp", "levelname": "WARNING", "msg": f"{lines} records dropped: nobody read them"}
        return self.format(logging.makeLogRecord(record))


def _text_formatter() -> logging.Formatter:
    return logging.Formatter("%(asctime)s %(levelname)s %(message)s")


def _json_formatter() -> logging.Formatter:
    names = {"levelname": "level", "name": "logger"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp=True, rename_fields=names)


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
