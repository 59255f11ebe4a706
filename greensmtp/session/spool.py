"""Temporary storage for a body while it is handled: memory while it is small, then a temporary file.

No file is written or read in the hub: the thread pool does so, ``BATCH`` bytes at a time.
"""

from __future__ import annotations

import io
import os
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import Any, BinaryIO

from greensmtp._native import native
from greensmtp.thread_pool import Steps, in_thread_pool

get_ident = native("_thread", "get_ident")

#: Bytes that are collected in memory before the thread pool writes them.
BATCH = 256 * 1024


class SpooledFile(SpooledTemporaryFile[bytes]):
    """The file that ``MessageStream.spool`` returns. It may be closed while a thread is writing to it."""

    def __init__(self, max_memory: int) -> None:
        super().__init__(max_memory)
        self.steps = Steps()

    def close(self) -> None:
        """Close the file, once a thread that writes to it has finished."""
        if self.steps.busy:
            self.steps.end(super().close)
        else:
            super().close()


class SpoolPipe:
    """The pipe that fills a ``SpooledFile``."""

    def __init__(self, max_memory: int) -> None:
        self.file = SpooledFile(max_memory)
        self._room = max_memory
        self._batch = bytearray()
        self._on_disk = False

    def write(self, data: bytes, /) -> None:
        """Add bytes to the file, beyond ``max_memory`` in the thread pool.

        :raises OSError: the disk is full, or fails.
        """
        if not self._on_disk and len(data) <= self._room:
            self._room -= len(data)
            self.file.write(data)
            return
        self._on_disk = True
        self._batch += data
        if len(self._batch) >= BATCH:
            self._write_batch()

    def finish(self) -> None:
        """Write what is left, and seek to the beginning.

        :raises OSError: the disk is full, or fails.
        """
        if self._on_disk:
            self._write_batch(finish=True)
        else:
            self.file.seek(0)

    def _write_batch(self, *, finish: bool = False) -> None:
        batch, self._batch = self._batch, bytearray()
        self.file.steps.run(self._append, batch, finish)

    def _append(self, batch: bytearray, finish: bool) -> None:
        """Runs in a native thread."""
        self.file.rollover()
        self.file.write(batch)
        if finish:
            self.file.seek(0)


class Spool:
    """The storage of a ``Mail``: a body that several readers can read, each from its beginning."""

    def __init__(self) -> None:
        self._steps = Steps()
        self._thread = get_ident()
        self._batch = bytearray()
        self._file: Any = None
        self._written = 0
        self._closed = False
        #: The first bytes, enough for the first line.
        self.beginning = b""

    def write(self, data: bytes, /) -> None:
        """Add the next bytes.

        :raises OSError: the disk is full, or fails.
        """
        if len(self.beginning) < 1024:
            self.beginning += data[:1024]
        self._batch += data
        if len(self._batch) >= BATCH:
            self._write_batch()

    def finish(self) -> None:
        """Write what is left, if some of the body is on disk.

        :raises OSError: the disk is full, or fails.
        """
        if self._written and self._batch:
            self._write_batch()

    def open(self, head: bytes) -> BinaryIO:
        """Return a new file, at its beginning.

        :param head: bytes to put before the body.
        :raises ValueError: the spool has been closed.
        """
        if self._closed:
            raise ValueError("this message was deleted: it can be read only while its handler runs")
        if not self._written:
            return io.BytesIO(head + self._batch)
        return io.BufferedReader(_Reader(os.dup(self._file.fileno()), head, self._thread), BATCH)

    def close(self) -> None:
        """Delete the body, on disk in the thread pool. Open files stay readable."""
        self._closed = True
        self._batch = bytearray()
        if self._written:
            self._steps.end(self._close)

    def _write_batch(self) -> None:
        batch, self._batch = self._batch, bytearray()
        self._written += len(batch)
        self._steps.run(self._append, batch)

    def _append(self, batch: bytearray) -> None:
        """Runs in a native thread."""
        if self._file is None:
            self._file = TemporaryFile()  # noqa: SIM115 - it outlives this call
        self._file.write(batch)
        self._file.flush()

    def _close(self) -> None:
        """Runs in a native thread."""
        if self._file is not None:
            self._file.close()


class _Reader(io.RawIOBase):
    """Some bytes, then a file that other readers share: each has its own position.

    :param hub_thread: the thread whose hub must not be blocked: there, the thread pool reads.
    """

    def __init__(self, descriptor: int, head: bytes, hub_thread: int) -> None:
        self._descriptor = descriptor
        self._head = head
        self._hub_thread = hub_thread
        self._position = 0

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer from the head or from the file, not both at once."""
        if self._position < len(self._head):
            data = self._head[self._position : self._position + len(buffer)]
        else:
            place = self._descriptor, len(buffer), self._position - len(self._head)
            data = in_thread_pool(os.pread, *place) if get_ident() == self._hub_thread else os.pread(*place)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Return all that is left. (The inherited method reads a few kilobytes at a time.)"""
        return b"".join(iter(lambda: self.read(BATCH) or b"", b""))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position, and return it."""
        size = len(self._head) + os.fstat(self._descriptor).st_size
        self._position = max(0, offset + (0, self._position, size)[whence])
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the descriptor, once."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()
