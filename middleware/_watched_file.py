"""A file that is read again when it has changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from gevent.monkey import get_original

Content = TypeVar("Content")


class WatchedFile(Generic[Content]):
    """The content of a file. If the file cannot be read again, or is malformed, the content read before stays in force.

    :param read: reads the file; a ValueError says what is malformed.
    :raises OSError, ValueError: the file cannot be read the first time, or is malformed.
    """

    def __init__(self, path: Path, read: Callable[[Path], Content]) -> None:
        self.path = path
        self._read = read
        # The version is taken first: a change during the read is then read the next time, rather than missed.
        self._version: tuple[int, int, int] | None = _version_of(path)
        #: What was read last.
        self.content = read(path)
        #: What is to be logged, in the thread of the hub: loggers belong to it.
        self.problems: deque[str] = deque()
        self._problem = ""
        # The unpatched lock, for threads of the pool.
        self._lock = get_original("_thread", "allocate_lock")()

    def refresh(self) -> Content:
        """Read the file if it has changed, and return the content. Call it in the thread pool."""
        with self._lock:
            try:
                version = _version_of(self.path)
                if version != self._version:
                    self._version = version  # a malformed file is read once
                    self.content = self._read(self.path)
                    self._problem = ""
            except (OSError, ValueError) as error:
                if isinstance(error, OSError):
                    self._version = None  # permissions may return without another change
                if str(error) != self._problem:
                    self._problem = str(error)
                    self.problems.append(f"{error}; what was read before stays in force")
            return self.content


def _version_of(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
