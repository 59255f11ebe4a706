"""Where a body is kept while it is handled: in memory while it is small, in a temporary file when it is not.

No file work is done in the hub. What arrives is collected, and written in the thread pool, ``BATCH`` octets at a time.
"""

from __future__ import annotations

import io
import os
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import Any, BinaryIO

from greensmtp.thread_pool import Steps

#: Octets that are collected in memory before the thread pool writes them.
BATCH = 256 * 1024


class SpooledFile(SpooledTemporaryFile[bytes]):
    """What ``MessageStream.spool`` returns: a file that may be closed while a thread is writing to it."""

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
    """What the body flows to, to fill a ``SpooledFile``."""

    def __init__(self, max_memory: int) -> None:
        self.file = SpooledFile(max_memory)
        self._room = max_memory
        self._batch = bytearray()
        self._on_disk = False

    def write(self, data: bytes, /) -> None:
        """Add to the file; beyond ``max_memory`` that is done in the thread pool.

        :raises OSError: there is no room, or the disk fails.
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
        """Write what is left, and go to the beginning.

        :raises OSError: there is no room, or the disk fails.
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
    """A body that can be read again and again, by several readers: what ``Mail`` stands on."""

    def __init__(self) -> None:
        self._steps = Steps()
        self._batch = bytearray()
        self._file: Any = None
        self._written = 0
        self._closed = False
        #: Enough to tell what the first line is.
        self.beginning = b""

    def write(self, data: bytes, /) -> None:
        """Add the next octets.

        :raises OSError: there is no room, or the disk fails.
        """
        if len(self.beginning) < 1024:
            self.beginning += data[:1024]
        self._batch += data
        if len(self._batch) >= BATCH:
            self._write_batch()

    def finish(self) -> None:
        """Write what is left, where some of it is on the disk.

        :raises OSError: there is no room, or the disk fails.
        """
        if self._written and self._batch:
            self._write_batch()

    def open(self, head: bytes) -> BinaryIO:
        """Return a new file of its own, at its beginning.

        :param head: octets that go before the body.
        :raises ValueError: the spool has been closed.
        """
        if self._closed:
            raise ValueError("this message is gone: it can be read as long as its handler runs")
        if not self._written:
            return io.BytesIO(head + self._batch)
        return io.BufferedReader(_Reader(os.dup(self._file.fileno()), head))

    def close(self) -> None:
        """Forget the body, in the thread pool where it is on the disk. Files that are open stay readable."""
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
    """A few octets, then a file that others read too: each reader has a place of its own."""

    def __init__(self, descriptor: int, head: bytes) -> None:
        self._descriptor = descriptor
        self._head = head
        self._at = 0

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as one piece goes."""
        if self._at < len(self._head):
            data = self._head[self._at : self._at + len(buffer)]
        else:
            data = os.pread(self._descriptor, len(buffer), self._at - len(self._head))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, which is returned."""
        size = len(self._head) + os.fstat(self._descriptor).st_size
        self._at = max(0, offset + (0, self._at, size)[whence])
        return self._at

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Close the descriptor, once."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()
