"""Write lines in a thread, so that a full pipe or a slow disk never blocks the hub.

How it works. ``say`` appends a line to a deque, and wakes the thread if it is idle. The thread gathers lines for a few
milliseconds, then takes all of them and writes them in one piece. So most lines cost the caller one append, without a
lock or a wake-up.

A thread that ends says so first, and then looks for lines. A caller appends its line first, and then looks for a
thread. So one of the two finds the other.

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
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
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
        #: Held by the thread until its end; each thread has one of its own.
        self._at_work: Any = native("_thread", "allocate_lock")()
        self._starting: Any = native("_thread", "allocate_lock")()
        self._started = self._is_idle = self._is_ending = False
        self._dropped = 0
        #: What ends a line that a full disk has cut, so that the next line does not continue it.
        self._remedy = b""

    def say(self, line: str) -> None:
        """Queue a line to be written. Never wait, and never raise."""
        if len(self._lines) >= MAX_WAITING:
            self._dropped += 1
        elif self._descriptor is None:
            self._print(line)
        else:
            self._lines.append(line)
            if self._is_idle:
                self._is_idle = False
                self._wake.put(None)
            elif not self._started:
                self._start(self._descriptor)

    def redirect(self, stream: TextIO | None) -> None:
        """Write further lines to another stream."""
        self.finish()
        self._stream, self._descriptor = stream, _descriptor(stream)

    def finish(self, timeout: float = 1.0) -> bool:
        """Write the waiting lines and end the thread; return False if that takes longer than ``timeout`` seconds."""
        if not (self._started or self._lines):
            return True
        at_work = self._at_work
        self._is_ending = True
        self._wake.put(None)
        if not at_work.acquire(timeout=timeout):
            return False
        at_work.release()
        return True

    def _start(self, descriptor: int) -> None:
        """Start a thread for the waiting lines; if that is impossible, they wait for another line."""
        with self._starting:  # held very briefly
            if self._started:
                return
            before, self._at_work = self._at_work, native("_thread", "allocate_lock")()
            self._at_work.acquire()
            self._is_ending = False
            try:
                native("_thread", "start_new_thread")(self._write_all, (descriptor, before, self._at_work))
            except RuntimeError:  # no thread can be started
                self._at_work = before
                return
            self._started = True
            self._wake.put(None)

    def _print(self, line: str) -> None:
        try:
            if self._stream is not None:
                self._stream.write(f"{line}\n")
                self._stream.flush()
        except (OSError, ValueError):
            pass  # closed

    def _write_all(self, descriptor: int, before: Any, at_work: Any) -> None:
        """Write lines until ``finish``, once the thread before this one has ended."""
        pause, wake = native("time", "sleep"), self._wake
        most = _most_at_once(descriptor)
        with before:
            pass
        while True:
            wake.get()
            if not self._is_ending:
                pause(GATHER)
            is_ending = self._is_ending
            self._is_idle = True
            self._write_waiting(descriptor, most)
            if is_ending and not self._lines and self._has_ended():
                break
        at_work.release()

    def _has_ended(self) -> bool:
        """End the thread; return False if a line has come that no other thread will write."""
        self._is_idle = self._started = False
        if not self._lines:
            return True
        with self._starting:
            if not self._started:  # else the caller has started another thread
                self._started = True
                self._wake.put(None)
                return False
        return True

    def _write_waiting(self, descriptor: int, most: float) -> None:
        """Write all waiting lines, and the number of dropped ones."""
        take = self._lines.popleft
        lines = [take() for _ in range(len(self._lines))]
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(self._gap(dropped))
        if not lines:
            return
        written = -len(self._remedy)
        for piece in self._pieces(lines, most):
            data = self._remedy + piece
            done = _write(descriptor, data)
            written += done
            if done < len(data):
                if done:
                    self._remedy = b"" if data[:done].endswith(b"\n") else b"\n"
                self._dropped += self._lost(lines, written) + (dropped - 1 if dropped else 0)
                return
            self._remedy = b""

    def _pieces(self, lines: list[str], most: float) -> Iterator[bytes]:
        if most == math.inf:
            yield "\n".join([*lines, ""]).encode(self._encoding, "backslashreplace")
        else:
            yield from _pieces([self._encode(line) for line in lines], int(most))

    def _lost(self, lines: Sequence[str], written: int) -> int:
        """Return how many lines are missing, or are cut, if so many bytes of them were written."""
        return sum(end > written for end in accumulate(len(self._encode(line)) for line in lines))

    def _encode(self, line: str) -> bytes:
        return f"{line}\n".encode(self._encoding, "backslashreplace")


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


def _write(descriptor: int, data: bytes) -> int:
    """Write bytes; return how many were written, fewer if the reader is gone or the disk is full."""
    # Not through the stream: a line that it cannot write would stay in its buffer, and fail again at exit.
    done = 0
    try:
        while done < len(data):
            try:
                done += os.write(descriptor, data[done:] if done else data)
            except BlockingIOError:  # the descriptor is non-blocking, but this thread may wait
                waiting = native("select", "poll")()
                waiting.register(descriptor, select.POLLOUT)
                waiting.poll()
    except OSError:
        pass  # the server must go on
    return done
