"""Write lines and log records without blocking the hub."""

from __future__ import annotations

import logging
import math
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakSet

from greensmtp._native import native
from greensmtp.protocol.log_text import printable

#: Maximum number of lines that wait to be written; further lines are dropped and counted.
MAX_WAITING = 10_000

#: Maximum number of lines in one write.
BATCH = 1_000

#: Targets of a log that are no files.
STREAMS = ("stderr", "stdout")

#: Seconds from the first line to the write, for more lines to come. To wake the thread for each line would take longer
#: than to write the line.
GATHER = 0.005


class LineWriter:
    """Write lines to a stream's descriptor in a native thread, so that a full pipe blocks that thread only.

    ``say`` may be called in any thread. The thread starts with the first line, and again with the first one after
    ``finish``; after a fork, the child starts another. A stream without a descriptor, such as one in memory, is
    written to directly. Lines for a closed stream are discarded.

    :param gap: formats the line that reports how many lines were dropped.
    """

    def __init__(self, stream: TextIO | None, gap: Callable[[int], str] = "({} lines dropped)".format) -> None:
        self._gap = gap
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self.forget()
        _writers.add(self)

    def forget(self) -> None:
        """Drop all waiting lines and start anew: after a fork the thread is gone, and locks may be held."""
        # Unpatched, since gevent's replacements belong to the hub of one thread.
        self._lines: Any = native("queue", "SimpleQueue")()
        self._at_work: Any = native("_thread", "allocate_lock")()
        self._starting: Any = native("_thread", "allocate_lock")()
        self._started = False
        self._dropped = 0

    def say(self, line: str) -> None:
        """Queue a line to be written. Never wait, and never raise."""
        if self._descriptor is None:
            self._print(line)
        elif self._lines.qsize() < MAX_WAITING and (self._started or self._start(self._descriptor)):
            self._lines.put(line)
        else:
            self._dropped += 1

    def redirect(self, stream: TextIO | None) -> None:
        """Write further lines to another stream."""
        self.finish()
        self._stream, self._descriptor = stream, _descriptor(stream)

    def finish(self, timeout: float = 1.0) -> bool:
        """Write the waiting lines and end the thread; return False if that takes longer than ``timeout`` seconds."""
        if not self._started:
            return True
        self._lines.put(None)
        if not self._at_work.acquire(timeout=timeout):
            return False
        self._at_work.release()
        return True

    def _start(self, descriptor: int) -> bool:
        with self._starting:  # held very briefly
            if not self._started:
                self._at_work.acquire()
                try:
                    native("_thread", "start_new_thread")(self._write_all, (descriptor,))
                except RuntimeError:  # no thread can be started
                    self._at_work.release()
                    return False
                self._started = True
        return True

    def _print(self, line: str) -> None:
        try:
            if self._stream is not None:
                self._stream.write(f"{line}\n")
                self._stream.flush()
        except (OSError, ValueError):
            pass  # closed

    def _write_all(self, descriptor: int) -> None:
        pause = native("time", "sleep")
        is_ending = False
        most = _most_at_once(descriptor)
        while not (is_ending and self._lines.empty()):
            lines = []
            line = self._lines.get()
            if line is not None and not is_ending:
                pause(GATHER)
            while line is not None:
                lines.append(line)
                if len(lines) == BATCH or self._lines.empty():
                    break
                line = self._lines.get()
            is_ending = is_ending or line is None
            if self._dropped and self._lines.empty():
                lines.append(self._gap(self._dropped))
                self._dropped = 0
            encoded = [f"{line}\n".encode(self._encoding, "backslashreplace") for line in lines]
            for piece in _pieces(encoded, most):
                _write(descriptor, piece)
        self._started = False
        self._at_work.release()


_writers: WeakSet[LineWriter] = WeakSet()


def _forget_all() -> None:
    for writer in _writers:
        writer.forget()


os.register_at_fork(after_in_child=_forget_all)


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return None


def _most_at_once(descriptor: int) -> float:
    """Return how many bytes one write keeps together when several processes write to the same place.

    A file that is appended to takes a write of any size as a whole, a pipe ``PIPE_BUF`` bytes.
    """
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return select.PIPE_BUF
    return math.inf if is_file else select.PIPE_BUF


def _pieces(lines: list[bytes], most: float) -> Iterator[bytes]:
    """Yield lines joined to pieces of at most ``most`` bytes; a longer line is a piece of its own."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > most:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    yield b"".join(piece)


def _write(descriptor: int, data: bytes) -> None:
    # Not through the stream: a line that it cannot write would stay in its buffer, and fail again at exit.
    try:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # the descriptor is non-blocking, but this thread may wait
                waiting = native("select", "poll")()
                waiting.register(descriptor, select.POLLOUT)
                waiting.poll()
    except OSError:
        pass  # the reader is gone, or the disk is full; the server must go on


class LogHandler(logging.Handler):
    """Write log records as lines to a standard stream, or append them to a file.

    :param log_format: ``text``, or ``json`` for one object per line.
    :param target: ``stderr``, ``stdout``, or the path of a file.
    :raises OSError: the file cannot be opened.
    :raises ModuleNotFoundError: the format is ``json``, and python-json-logger is not installed.
    """

    def __init__(self, log_format: str, target: str = "stderr") -> None:
        # Before super().__init__, which registers this handler to be closed at exit.
        formatter = (
            _json_formatter() if log_format == "json" else _TextFormatter("%(asctime)s %(levelname)s %(message)s")
        )
        self._stream = {"stderr": sys.stderr, "stdout": sys.stdout}.get(target)
        self._path = None if target in STREAMS else Path(target).absolute()
        self._writer, self._file = self._open()
        super().__init__()
        self.log_format = log_format
        self.setFormatter(formatter)
        _handlers.add(self)

    def _open(self) -> tuple[LineWriter, TextIO | None]:
        file = None if self._path is None else self._path.open("a", encoding="utf-8")
        return LineWriter(file or self._stream, self._format_gap), file

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record to be written. Never wait."""
        try:
            if self._file is not None and self._file.closed:
                self._writer, self._file = self._open()
            self._writer.say(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Log that a record cannot be formatted. The method of ``logging`` would block on standard error."""
        if self._file is not None and self._file.closed:
            return  # it cannot be opened again
        text = f"cannot format a record of {record.name} ({record.pathname}, line {record.lineno})"
        made = {"name": "greensmtp", "levelname": "ERROR", "msg": f"{text}: {sys.exc_info()[1]!r}"}
        self._writer.say(self.format(logging.makeLogRecord(made)))

    def close(self) -> None:
        """Write the waiting records.

        ``logging`` calls this when the process ends, and when ``logging.config`` reads a configuration. In the latter
        case the handler stays with its logger, and later records are written as before.
        """
        is_done = self._writer.finish()
        if is_done and self._file is not None:  # else the thread would write to whatever gets its descriptor next
            self._file.close()
        super().close()

    def reopen(self) -> None:
        """Open the file again by its path, after it was renamed, for instance by logrotate.

        Lines that wait are written to the new file. A standard stream is left as it is.

        :raises OSError: the file cannot be opened; lines are still written to the old one.
        """
        if self._path is None or self._file is None or self._file.closed:
            return
        with self._path.open("a", encoding="utf-8") as file:
            # The thread keeps its descriptor, now the new file's: no write is cut, and none is waited for.
            os.dup2(file.fileno(), self._file.fileno(), inheritable=False)

    def _format_gap(self, lines: int) -> str:
        record = {
            "name": "greensmtp",
            "levelname": "WARNING",
            "msg": f"{lines} records dropped: the log is read too slowly",
        }
        return self.format(logging.makeLogRecord(record))


#: All of this process.
_handlers: WeakSet[LogHandler] = WeakSet()


def reopen_logs() -> None:
    """Open the files of all LogHandlers again, after logrotate has renamed them. What fails is logged.

    ``greensmtp serve`` does it at SIGHUP. A program calls it in a greenlet, as a handler of its own signal:
    ``gevent.signal_handler(signal.SIGUSR1, reopen_logs)``.
    """
    for handler in list(_handlers):
        try:
            handler.reopen()
        except OSError as error:
            logging.getLogger("greensmtp").error(
                "the log cannot be opened again: %s; the file that is open is written to", error
            )


#: The beginning of a line that could be a record's, with its time or without.
_PASSES_FOR_RECORD = re.compile(r"\d| (?! )")


class _TextFormatter(logging.Formatter):
    """Start a record with its time, and indent further lines that begin with a digit or a single blank.

    So no text in a record can pass for another record. (fail2ban takes a line without a time for one of the same time,
    and a time that is cut out leaves a blank.)
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if text.isprintable():
            return text
        first, *others = map(printable, text.split("\n"))
        return "\n".join((first, *(f"  {line}" if _PASSES_FOR_RECORD.match(line) else line for line in others)))


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    names = {"levelname": "level", "name": "logger"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp=True, rename_fields=names)
