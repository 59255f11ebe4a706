"""Lines to a stream, and log records as lines, neither of which holds up the hub."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakSet

from greensmtp._native import native
from greensmtp.protocol.log_text import printable

#: Lines that may wait for whatever reads them; more are dropped, and counted.
MAX_WAITING = 10_000

#: Lines that are written at once, at most.
BATCH = 1_000


class LineWriter:
    """Writes lines to a stream's descriptor in a native thread: a pipe that nothing reads holds up that thread alone.

    ``say`` may be called in any thread. The thread begins with the first line, and anew with the first one after
    ``finish``; after a fork, the child has one of its own. A stream without a descriptor (one in memory, say) is
    written to at once; a closed one takes everything, and shows nothing.

    :param gap: the line that stands for so many which were dropped.
    """

    def __init__(self, stream: TextIO | None, gap: Callable[[int], str] = "({} lines dropped)".format) -> None:
        self._gap = gap
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self.forget()
        _writers.add(self)

    def forget(self) -> None:
        """Begin anew, with nothing waiting and no thread: a fork leaves threads and held locks behind."""
        # The real things: what monkey patching puts in their place belongs to one thread's hub.
        self._lines: Any = native("queue", "SimpleQueue")()
        self._at_work: Any = native("_thread", "allocate_lock")()
        self._starting: Any = native("_thread", "allocate_lock")()
        self._started = False
        self._dropped = 0

    def say(self, line: str) -> None:
        """Have one line written, soon. Never wait, and raise nothing."""
        if self._descriptor is None:
            self._print(line)
        elif self._lines.qsize() < MAX_WAITING and (self._started or self._start(self._descriptor)):
            self._lines.put(line)
        else:
            self._dropped += 1

    def finish(self, timeout: float = 1.0) -> bool:
        """Write what is waiting, and end the thread; False: that takes longer than so many seconds."""
        if not self._started:
            return True
        self._lines.put(None)
        if not self._at_work.acquire(timeout=timeout):
            return False
        self._at_work.release()
        return True

    def _start(self, descriptor: int) -> bool:
        with self._starting:  # for an instant
            if not self._started:
                self._at_work.acquire()
                try:
                    native("_thread", "start_new_thread")(self._write_all, (descriptor,))
                except RuntimeError:  # no more threads are to be had
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
        is_ending = False
        while not (is_ending and self._lines.empty()):
            lines = []
            line = self._lines.get()
            while line is not None:
                lines.append(line)
                if len(lines) == BATCH or self._lines.empty():
                    break
                line = self._lines.get()
            is_ending = is_ending or line is None
            if self._dropped and self._lines.empty():
                lines.append(self._gap(self._dropped))
                self._dropped = 0
            text = "".join(f"{line}\n" for line in lines)
            _write(descriptor, text.encode(self._encoding, "backslashreplace"))
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


def _write(descriptor: int, data: bytes) -> None:
    # Not through the stream: what it could not write would stay in its buffer, and fail once more at exit.
    try:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # it is non-blocking, and this thread may wait
                waiting = native("select", "poll")()
                waiting.register(descriptor, select.POLLOUT)
                waiting.poll()
    except OSError:
        pass  # the reader is gone, or the disk is full: mail goes on


class LogHandler(logging.Handler):
    """Records as lines on standard error, or at the end of a file.

    :param log_format: ``text``, or ``json``: an object a line.
    :param target: ``stderr``, or the path of a file.
    :raises OSError: the file cannot be opened.
    :raises ModuleNotFoundError: ``json`` without python-json-logger.
    """

    def __init__(self, log_format: str, target: str = "stderr") -> None:
        # (Before logging knows of this handler, and would close it at the end.)
        formatter = (
            _json_formatter() if log_format == "json" else _TextFormatter("%(asctime)s %(levelname)s %(message)s")
        )
        self._path = None if target == "stderr" else Path(target).absolute()
        self._writer, self._file = self._open()
        super().__init__()
        self.log_format = log_format
        self.setFormatter(formatter)

    def _open(self) -> tuple[LineWriter, TextIO | None]:
        file = None if self._path is None else self._path.open("a", encoding="utf-8")
        return LineWriter(file or sys.stderr, self._format_gap), file

    def emit(self, record: logging.LogRecord) -> None:
        """Have it written, soon. Never wait."""
        try:
            if self._file is not None and self._file.closed:
                self._writer, self._file = self._open()
            self._writer.say(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Log that a record cannot be formatted. (logging's own way waits for standard error.)"""
        if self._file is not None and self._file.closed:
            return  # it cannot be opened again
        text = f"a record of {record.name}, line {record.lineno} of {record.pathname}, cannot be formatted"
        made = {"name": "greensmtp", "levelname": "ERROR", "msg": f"{text}: {sys.exc_info()[1]!r}"}
        self._writer.say(self.format(logging.makeLogRecord(made)))

    def close(self) -> None:
        """Write what is waiting.

        ``logging`` calls it when the process ends, and when ``logging.config`` reads a configuration: the handler stays
        with its logger then, so that later records are written as before.
        """
        is_done = self._writer.finish()
        if is_done and self._file is not None:  # else the thread would write to whatever gets its descriptor next
            self._file.close()
        super().close()

    def _format_gap(self, lines: int) -> str:
        record = {
            "name": "greensmtp",
            "levelname": "WARNING",
            "msg": f"{lines} records dropped: the output was not read",
        }
        return self.format(logging.makeLogRecord(record))


class _TextFormatter(logging.Formatter):
    """A record begins with its time, and no further line of it does: no text can pass for another record."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if text.isprintable():
            return text
        first, *others = map(printable, text.split("\n"))
        return "\n".join((first, *(f"  {line}" if line[:1].isdigit() else line for line in others)))


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    names = {"levelname": "level", "name": "logger"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp=True, rename_fields=names)
