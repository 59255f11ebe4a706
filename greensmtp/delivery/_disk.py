"""Group commit: one thread that writes, flushes and moves the files of many messages at once.

How it works. A connection submits a ``Job`` and waits. At the end of each loop iteration of the hub, the thread gets
all jobs of that iteration at once. It takes all waiting jobs, writes their files, flushes them together, moves them to
their places, flushes the folders, and wakes the connections. Meanwhile, further jobs arrive. So one flush, which takes
a millisecond, and one switch between threads serve all messages of a batch.

Rules of this file:

- A job fails alone. If flushing several files together fails, each file is flushed separately.
- If the wait of a connection is interrupted, it abandons its job. Once the thread has claimed the job for its move, it
  is too late for that, and the connection waits for the end. So there is a file and 250, or neither.
- A failed job is undone before its connection goes on.
- The thread starts with the first job, and ends after some seconds without a job. After a fork there is a new thread.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gevent import GreenletExit, get_hub, getcurrent
from gevent.hub import Waiter
from gevent.monkey import get_original

logger = logging.getLogger("greensmtp")

_allocate_lock = get_original("_thread", "allocate_lock")
_start_new_thread = get_original("_thread", "start_new_thread")
#: gevent's ``os.close`` first asks whether the descriptor is a regular file, which takes two more system calls.
close = get_original("os", "close")

#: Seconds without a job after which the thread ends.
_IDLE = 10.0

#: Number of files from which the whole file system is flushed at once. On ext4, 20 files take 4 times as long if each
#: is flushed separately.
_TOGETHER = 4

_NOREPLACE, _AT_FDCWD = 1, -100


class Job:
    """Work on the file of one message. Its methods, but for ``wait``, are called in the disk thread."""

    #: Guards the steps between the states of all jobs, very briefly.
    _lock = _allocate_lock()

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._abandoned = self._claimed = self._done = False
        hub = get_hub()
        self.loop = hub.loop
        self.waiter: Waiter[None] = Waiter(hub)

    # For subclasses

    #: The device of the file system.
    device = 0

    def write(self) -> int | None:
        """Write the file; return the descriptor to flush, which ``close`` closes, or None."""
        return None

    def close(self) -> None:
        """Close the file."""

    def move(self) -> Iterable[str]:
        """Move the file to its place; return the folders to flush."""
        return ()

    def undo(self) -> None:
        """Remove what is there: the job has failed, or was abandoned."""

    # The states

    def abandon(self) -> bool:
        """Ask the thread to undo the work. Return False if it is too late."""
        with self._lock:
            if self._claimed or self._done:
                return False
            self._abandoned = True
            return True

    def claim(self) -> bool:
        """Mark the job as no longer abandonable. Return False if it has been abandoned."""
        with self._lock:
            self._claimed = not self._abandoned
            return self._claimed

    def end(self) -> None:
        """Undo the work if it has failed or was abandoned; the connection goes on only afterwards."""
        if self._abandoned or self.error is not None:
            try:
                self.undo()
            except OSError as error:
                logger.error("maildir: %s", error)
        self._done = True

    # In the connection's greenlet

    def wait(self) -> None:
        """Wait for the end of the job.

        :raises BaseException: the interruption of the wait, if the job could be abandoned; or the error of the job.
        """
        killed: GreenletExit | None = None
        while not self._done:
            try:
                self.waiter.get()
            except BaseException as interruption:
                if self.abandon():
                    raise
                # After the move the file exists, or is about to. Any reply except 250 would make
                # a duplicate. So a timeout comes too late, and a kill has to wait.
                if isinstance(interruption, GreenletExit):
                    killed = interruption
        if killed is not None:
            self.loop.run_callback(getcurrent().throw, killed)
        if self.error is not None:
            raise self.error


class DiskThread:
    """The thread, for the jobs of one delivery.

    :param whole: flush the file system as a whole if there are several files.
    """

    def __init__(self, *, whole: bool = True) -> None:
        self._whole = whole
        self._forget()
        _threads.add(self)

    def _forget(self) -> None:
        self._lock = _allocate_lock()
        #: Held while the thread has nothing to do.
        self._idle = _allocate_lock()
        self._idle.acquire()
        #: The jobs of the current loop iteration, by hub; only the thread of that hub uses its list.
        self._round: dict[Any, list[Job]] = {}
        self._jobs: list[Job] = []
        self._runs = self._sleeps = False

    def run(self, job: Job) -> None:
        """Submit a job, and wait for its end like ``Job.wait``."""
        jobs = self._round.get(job.loop)
        if jobs is None:
            # At the end of the loop iteration, so that jobs of other connections join this one.
            self._round[job.loop] = [job]
            job.loop.run_callback(self._hand_over, job.loop)
        else:
            jobs.append(job)
        job.wait()

    def _hand_over(self, loop: Any) -> None:
        """Pass the jobs of a loop iteration to the thread, and wake it if it sleeps."""
        jobs = self._round.pop(loop, None)
        if jobs is None:
            return  # the jobs belonged to the parent process
        with self._lock:
            self._jobs += jobs
            if not self._runs:
                self._runs = True
                _start_new_thread(self._work, ())
            elif self._sleeps:
                self._sleeps = False
                self._idle.release()

    # In the thread

    def _work(self) -> None:
        while True:
            with self._lock:
                jobs, self._jobs = self._jobs, []
                self._sleeps = not jobs
            if jobs:
                try:
                    self._do(jobs)
                except BaseException as error:  # a bug in this file: no connection must wait for ever
                    logger.exception("maildir: the disk thread failed")
                    _fail(jobs, error)
                    for job in jobs:
                        job.end()
                _wake(jobs)
                del jobs
            elif not self._idle.acquire(timeout=_IDLE):
                with self._lock:
                    if self._sleeps:
                        self._runs = False
                        return
                self._idle.acquire()  # it was released at the last moment

    def _do(self, jobs: Sequence[Job]) -> None:
        written: list[tuple[Job, int]] = []
        for job in jobs:
            if not job._abandoned:
                descriptor = _try(job, job.write)
                if descriptor is not None:
                    written.append((job, descriptor))
        self._flush(written)
        folders: dict[str, list[Job]] = {}
        for job in jobs:
            job.close()
            if job.error is None and job.claim():
                for folder in _try(job, job.move) or ():
                    folders.setdefault(folder, []).append(job)
        self._flush_folders(folders)
        for job in jobs:
            job.end()

    def _flush(self, files: Sequence[tuple[Job, int]]) -> None:
        if (
            self._whole
            and len(files) >= _TOGETHER
            and flush_file_systems({job.device: descriptor for job, descriptor in files})
        ):
            return
        for job, descriptor in files:
            _try(job, os.fsync, descriptor)

    def _flush_folders(self, folders: dict[str, list[Job]]) -> None:
        descriptors: list[tuple[list[Job], int]] = []
        try:
            for folder, jobs in folders.items():
                try:
                    descriptors.append((jobs, os.open(folder, os.O_RDONLY | os.O_DIRECTORY)))
                except OSError as error:
                    _fail(jobs, error)
            devices = {jobs[0].device: descriptor for jobs, descriptor in descriptors}
            if self._whole and len(descriptors) >= _TOGETHER and flush_file_systems(devices):
                return
            for jobs, descriptor in descriptors:
                try:
                    os.fsync(descriptor)
                except OSError as error:
                    _fail(jobs, error)
        finally:
            for _, descriptor in descriptors:
                close(descriptor)


#: For ``_forget``.
_threads: weakref.WeakSet[DiskThread] = weakref.WeakSet()


def _forget_all() -> None:
    """Reset all threads in a forked child, which has none of its parent's threads."""
    Job._lock = _allocate_lock()
    for thread in _threads:
        thread._forget()


os.register_at_fork(after_in_child=_forget_all)


def _try(job: Job, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a step of a job, and record its error."""
    try:
        return call(*arguments)
    except BaseException as error:
        job.error = error
        return None


def _fail(jobs: Iterable[Job], error: BaseException) -> None:
    for job in jobs:
        job.error = job.error or error


def _wake(jobs: Sequence[Job]) -> None:
    """Wake the connections that wait for these jobs, those of one hub together."""
    hubs: dict[Any, list[Job]] = {}
    for job in jobs:
        hubs.setdefault(job.loop, []).append(job)
    for loop, theirs in hubs.items():
        try:
            loop.run_callback_threadsafe(_switch, theirs)
        except Exception:  # its hub, with all waiting greenlets, has been destroyed
            pass


def _switch(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.waiter.switch(None)


# The system's calls


@cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _syncfs_tells_errors() -> bool:
    """Return True if ``syncfs`` reports that a write has failed: on Linux since 5.8 (syncfs(2))."""
    system = os.uname()
    numbers = tuple(int(each) for each in re.findall(r"\d+", system.release)[:2])
    return system.sysname == "Linux" and numbers >= (5, 8)


def flush_file_systems(devices: Mapping[int, int]) -> bool:
    """Flush file systems (device -> an open file on it); return False unless it is known to have worked."""
    if not _syncfs_tells_errors():
        return False
    try:
        syncfs = _library().syncfs
    except (AttributeError, OSError):
        return False
    return all(syncfs(descriptor) == 0 for descriptor in devices.values())


def move(source: str, target: str) -> None:
    """Rename a file without replacing another one.

    :raises FileExistsError: the target exists.
    """
    try:
        renameat2 = _library().renameat2
    except (AttributeError, OSError):
        pass
    else:
        if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):  # those say that the file system cannot
            raise OSError(number, os.strerror(number), source, None, target)
    os.link(source, target)
    os.unlink(source)  # noqa: PTH108 - as it came


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that its entries survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
