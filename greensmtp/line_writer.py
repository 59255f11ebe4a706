"""Write lines in a thread, so that a full pipe or a slow disk never blocks the hub.

How it works. ``say`` appends a line to a deque, and wakes the thread if it is idle. The thread gathers lines for a few
milliseconds, then takes all of them and writes them in one piece. So most lines cost the caller one append, without a
lock or a wake-up.

Rules of this file:

- Nothing is formatted in the thread: it would compete with the hub for the GIL.
- The thread marks itself idle before it takes the lines. So a caller that appends a line afterwards wakes it again, and
  no line is left behind. A superfluous wake-up is harmless.
"""

from __future__ import annotations

import math
import os
import select
import stat
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TextIO
from weakref import WeakSet

from greensmtp._native import native

#: Maximum number of lines that wait to be written; further lines are dropped and counted.
MAX_WAITING = 10_000

#: Seconds from the first line to the write, for more lines to come. At each wake-up, the thread and the hub wait for
#: each other. With 5 ms, that cost as much as all other work for a line.
GATHER = 0.02


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
        """Drop all waiting lines and reset the writer: after a fork the thread is gone, and locks may be held."""
        # Unpatched, since gevent's replacements belong to the hub of one thread.
        self._lines: deque[str] = deque()
        #: Wakes the thread, once for each item.
        self._wake: Any = native("queue", "SimpleQueue")()
        self._at_work: Any = native("_thread", "allocate_lock")()
        self._starting: Any = native("_thread", "allocate_lock")()
        self._started = self._is_idle = self._is_ending = False
        self._dropped = 0

    def say(self, line: str) -> None:
        """Queue a line to be written. Never wait, and never raise."""
        lines = self._lines
        if self._is_idle and self._started:  # the most common case
            self._is_idle = False
            lines.append(line)
            self._wake.put(None)
        elif self._descriptor is None:
            self._print(line)
        elif len(lines) < MAX_WAITING and (self._started or self._start(self._descriptor)):
            lines.append(line)
            if self._is_idle:
                self._is_idle = False
                self._wake.put(None)
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
        self._is_ending = True
        self._wake.put(None)
        if not self._at_work.acquire(timeout=timeout):
            return False
        self._at_work.release()
        return True

    def _start(self, descriptor: int) -> bool:
        with self._starting:  # held very briefly
            if not self._started:
                self._at_work.acquire()
                try:
                    self._is_ending = False
                    self._is_idle = True
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
        pause, wake = native("time", "sleep"), self._wake
        most = _most_at_once(descriptor)
        while True:
            wake.get()
            if not self._is_ending:
                pause(GATHER)
            is_ending = self._is_ending
            self._is_idle = True
            self._write_waiting(descriptor, most)
            if is_ending and not self._lines:
                break
        self._is_idle = False
        self._started = False
        self._at_work.release()

    def _write_waiting(self, descriptor: int, most: float) -> None:
        """Write all waiting lines, and the number of dropped ones."""
        take = self._lines.popleft
        lines = [take() for _ in range(len(self._lines))]
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lines.append(self._gap(dropped))
        if not lines:
            return
        if most == math.inf:
            lines.append("")
            _write(descriptor, "\n".join(lines).encode(self._encoding, "backslashreplace"))
            return
        for piece in _pieces([f"{line}\n".encode(self._encoding, "backslashreplace") for line in lines], int(most)):
            _write(descriptor, piece)


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
    """Return how many bytes one write keeps together while several processes write to the same descriptor.

    A write to a file in append mode is atomic at any size, to a pipe up to ``PIPE_BUF`` bytes.
    """
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return select.PIPE_BUF
    return math.inf if is_file else select.PIPE_BUF


def _pieces(lines: list[bytes], most: int) -> Iterator[bytes]:
    """Yield the lines, joined into pieces of at most ``most`` bytes. A longer line is its own piece."""
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
