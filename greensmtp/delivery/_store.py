"""Store large messages in a shared folder or an S3 bucket, for programs that get only a path or a URL."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from greensmtp.delivery._disk import flush_folder
from greensmtp.delivery._s3 import THREADS, S3Message, S3Store, write_or_remove
from greensmtp.thread_pool import BoundedPool, in_thread_pool

logger = logging.getLogger("greensmtp")

#: Seconds after which a stored message is one that no program will fetch.
STALE = 7 * 86400

#: Bytes that are copied at once.
_PIECE = 256 * 1024


def open_store(place: str | Path) -> Store | S3Store:
    """Return the store in a folder, or in a bucket: ``s3://bucket/prefix``."""
    return S3Store(str(place)) if str(place).startswith("s3://") else Store(place)


def stored_message(location: str) -> StoredMessage | S3Message:
    """Return a stored message by its path or its URL."""
    return S3Message(location) if location.startswith("s3://") else StoredMessage(Path(location))


class StoredMessage:
    """A stored message as the receiving program sees it, by its path. Its methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        """Return the content.

        :raises OSError: it cannot be read.
        """
        return self._path.read_bytes()

    def remove(self) -> None:
        """Remove the message if it still exists."""
        self._path.unlink(missing_ok=True)

    def settle(self) -> None:
        """Remove the message, and leave a mark that it has been processed.

        A worker that is killed before it acknowledges the task gets the task again, and finds the mark.
        """
        self._path.with_suffix(".done").touch()
        self.remove()
        self._path.with_suffix(".task").unlink(missing_ok=True)

    def is_done(self) -> bool:
        """Return True if it has been settled.

        Without the mark, a message that is missing is an error: the folder may not be mounted.
        """
        return not self._path.exists() and self._path.with_suffix(".done").exists()


class Store:
    """Messages in a folder; its methods are called in the hub and run in the thread pool."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).absolute()
        self._pool = BoundedPool(THREADS)

    def start(self) -> None:
        """Create the folder, and remove messages that no program has fetched in a week."""
        in_thread_pool(_start, self._folder, time.time() - STALE)

    def write(self, identifier: str, open_message: Callable[[], BinaryIO]) -> str:
        """Store a message durably, and return its path.

        :param open_message: called in a thread of the pool.
        :raises OSError: it cannot be stored; nothing is left of it.
        """
        path = self._folder / f"{identifier}.eml"
        write_or_remove(self._pool, partial(_copy, path, open_message), StoredMessage(path).remove)
        return str(path)

    def note(self, identifier: str, text: str) -> None:
        """Store what to do with a message, durably, until the message is settled.

        :raises OSError: it cannot be written.
        """
        self._pool.call(write_durably, self._folder / f"{identifier}.task", text.encode())

    def overdue(self, seconds: float) -> list[str]:
        """Return the notes of unsettled messages whose notes are older than ``seconds``.

        Each note that is returned is touched, so that its age starts at 0.
        """
        return in_thread_pool(_overdue, self._folder, time.time() - seconds)

    def remove(self, path: str) -> None:
        """Remove a stored message, if it is still there."""
        self._pool.call(StoredMessage(Path(path)).remove)


def _copy(path: Path, open_message: Callable[[], BinaryIO]) -> None:
    with open_message() as source:
        write_durably(path, b"", source)


def write_durably(path: Path, beginning: bytes, source: BinaryIO | None = None) -> None:
    """Write a file under its name only when it is complete, and flush both."""
    unfinished = path.with_suffix(f"{path.suffix}.partial")
    try:
        with unfinished.open("wb") as file:
            file.write(beginning)
            while source is not None and (piece := source.read(_PIECE)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def _overdue(folder: Path, before: float) -> list[str]:
    found = []
    for path in folder.glob("*.task"):
        with contextlib.suppress(FileNotFoundError):  # settled, or being handled by another server
            if path.with_suffix(".done").exists():
                path.unlink()
            elif path.stat().st_mtime < before:
                text = path.read_text("utf-8")
                path.touch()
                found.append(text)
    return found


def _start(folder: Path, before: float) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o770)
    for path in [*folder.glob("*.eml"), *folder.glob("*.partial"), *folder.glob("*.done")]:
        with contextlib.suppress(FileNotFoundError):  # another program has removed it
            if path.stat().st_mtime < before and not path.with_suffix(".task").exists():
                path.unlink()
                if path.suffix == ".eml":
                    logger.warning("%s: no program has fetched it in %d days; removed", path, STALE // 86400)
