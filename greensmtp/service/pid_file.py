"""The pid file: the process ID, for scripts that send signals."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greensmtp._log import logger
from greensmtp.service.errors import StartError


@contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Hold a pid file while the block runs, and remove it afterwards.

    The file is locked as long as the process lives. So a file that a killed process has left can be distinguished from
    that of a running one, even if another process has the same ID.

    :param path: None: no pid file.
    :raises StartError: it cannot be written, or another process holds it.
    """
    if path is None:
        yield
        return
    pid = os.getpid()
    descriptor = _hold(path, pid)
    try:
        yield
    finally:
        if os.getpid() == pid:  # not in a forked child
            _remove(path, descriptor)
        os.close(descriptor)


def _hold(path: str, pid: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise StartError(f"cannot write the pid file {path!r}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, os.pwrite(descriptor, f"{pid}\n".encode(), 0))
    except BlockingIOError:
        owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StartError(f"the pid file {path!r} is held by a running server, process {owner}") from None
    except OSError as error:
        os.close(descriptor)
        raise StartError(f"cannot write the pid file {path!r}: {error.strerror}") from error
    return descriptor


def _remove(path: str, descriptor: int) -> None:
    try:
        Path(path).unlink()
    except OSError as error:  # the folder belongs to root, and privileges have been dropped
        logger.debug("cannot remove the pid file: %s", error)
        os.ftruncate(descriptor, 0)
