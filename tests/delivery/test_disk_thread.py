"""The disk thread: in which order it flushes, moves and wakes, and what it does if a flush fails."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import spawn

from greensmtp.delivery import _disk
from greensmtp.delivery._disk import DiskThread, Job
from tests.delivery.helpers import wait_until


class Journal:
    """What the thread has done, in order; a flush can be held up, or fail."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "tmp").mkdir()
        (folder / "new").mkdir()
        self.folder = folder
        self.steps: list[str] = []
        #: Errors for the next flushes of ``new``.
        self.failures: list[int] = []
        self.go_on = threading.Semaphore(1000)
        monkeypatch.setattr(_disk, "flush_file_systems", self._flush_all)
        monkeypatch.setattr(os, "fsync", self._flush_one)

    def _flush_all(self, devices: Mapping[int, int]) -> bool:
        self._flush("all")
        return True

    def _flush_one(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._flush(path.name)
        if path.name == "new" and self.failures:
            raise OSError(self.failures.pop(), "as asked for")

    def _flush(self, what: str) -> None:
        self.steps.append(f"flush {what}")
        assert self.go_on.acquire(timeout=20)


class FileJob(Job):
    """A file that is written to ``tmp`` and moved to ``new``."""

    def __init__(self, journal: Journal, name: str) -> None:
        super().__init__()
        self._journal = journal
        self.name = name
        self._source, self._target = journal.folder / "tmp" / name, journal.folder / "new" / name

    def write(self) -> int:
        self._journal.steps.append(f"write {self.name}")
        self._descriptor = os.open(self._source, os.O_CREAT | os.O_WRONLY)
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def move(self) -> Iterable[str]:
        self._journal.steps.append(f"move {self.name}")
        self._source.rename(self._target)
        return (str(self._target.parent),)

    def undo(self) -> None:
        self._journal.steps.append(f"undo {self.name}")
        self._source.unlink(missing_ok=True)
        self._target.unlink(missing_ok=True)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    return Journal(tmp_path, monkeypatch)


def store(thread: DiskThread, journal: Journal, name: str) -> None:
    """Have one file stored; note when the connection goes on."""
    try:
        thread.run(FileJob(journal, name))
        journal.steps.append(f"250 {name}")
    except OSError:
        journal.steps.append(f"451 {name}")


def store_all(thread: DiskThread, journal: Journal, names: Sequence[str]) -> None:
    """Have files stored by as many connections, whose messages end in one round of the hub."""
    connections = [spawn(store, thread, journal, name) for name in names]
    gevent.joinall(connections, timeout=20, raise_error=True)
    assert all(each.dead for each in connections)


def steps(what: str, names: Iterable[str]) -> list[str]:
    return [f"{what} {name}" for name in names]


def test_one_message_is_flushed_moved_and_flushed_before_its_connection_goes_on(journal: Journal) -> None:
    store_all(DiskThread(), journal, ["a"])
    assert journal.steps == ["write a", "flush a", "move a", "flush new", "250 a"]


def test_many_messages_are_flushed_together_and_then_their_names(journal: Journal) -> None:
    names = [f"{number:02}" for number in range(16)]
    store_all(DiskThread(), journal, names)
    before = [*steps("write", names), "flush all", *steps("move", names), "flush new"]
    assert journal.steps == [*before, *steps("250", names)]


def test_a_folder_that_cannot_be_flushed_takes_its_messages_back_before_the_reply(journal: Journal) -> None:
    journal.failures = [errno.EIO]
    thread = DiskThread()
    store_all(thread, journal, ["a"])
    assert journal.steps[-3:] == ["flush new", "undo a", "451 a"]
    assert [*(journal.folder / "new").iterdir()] == []
    store_all(thread, journal, ["b"])
    assert journal.steps[-1] == "250 b"


def test_a_folder_that_is_gone_fails_its_messages_alone(journal: Journal, tmp_path: Path) -> None:
    class Elsewhere(FileJob):
        def move(self) -> Iterable[str]:
            super().move()
            return (str(tmp_path / "gone"),)

    def fail() -> None:
        with pytest.raises(FileNotFoundError):
            thread.run(Elsewhere(journal, "lost"))

    thread = DiskThread()
    failing, storing = spawn(fail), spawn(store, thread, journal, "a")
    failing.get(timeout=20)
    storing.get(timeout=20)
    assert "undo lost" in journal.steps
    assert [path.name for path in (journal.folder / "new").iterdir()] == ["a"]


def test_a_connection_goes_on_only_behind_the_removal_of_its_file(journal: Journal) -> None:
    """Even one that is woken for another reason meanwhile."""
    undoing, go_on = threading.Event(), threading.Event()

    class Slow(FileJob):
        def undo(self) -> None:
            undoing.set()
            assert go_on.wait(20)
            super().undo()

    job = Slow(journal, "a")
    journal.failures = [errno.EIO]
    outcome: list[Any] = []

    def wait() -> None:
        with pytest.raises(OSError, match="as asked for") as raised:
            DiskThread().run(job)
        outcome.append(raised.value)

    connection = spawn(wait)
    wait_until(undoing.is_set)
    job.loop.run_callback(job.waiter.switch, None)
    gevent.idle()
    assert outcome == []
    go_on.set()
    connection.join(20)
    assert len(outcome) == 1
    assert [*(journal.folder / "new").iterdir()] == []


def test_the_thread_is_given_the_jobs_of_a_round_at_once(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    hand_over = DiskThread._hand_over

    def counted(thread: DiskThread, loop: Any) -> None:
        given.append(len(thread._round[loop]))
        hand_over(thread, loop)

    monkeypatch.setattr(DiskThread, "_hand_over", counted)
    store_all(DiskThread(), journal, ["a", "b", "c"])
    assert given == [3]


def test_a_fault_of_the_thread_ends_all_jobs_and_the_thread_goes_on(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{number:02}" for number in range(16)]
    thread = DiskThread()
    flush, faults = DiskThread._flush_folders, [OSError("a fault")]

    def faulty(this: DiskThread, *given: Any) -> None:
        if faults:
            raise faults.pop()
        flush(this, *given)

    monkeypatch.setattr(DiskThread, "_flush_folders", faulty)
    store_all(thread, journal, names)
    assert {*steps("451", names)} <= {*journal.steps}
    assert "the disk thread failed" in caplog.text
    assert [*(journal.folder / "new").iterdir()] == []
    store_all(thread, journal, ["b"])
    assert journal.steps[-1] == "250 b"


def test_a_forked_process_has_a_thread_of_its_own(journal: Journal) -> None:
    """Also if the parent has jobs that are not done, and its thread holds the lock."""
    journal.go_on = threading.Semaphore(0)
    thread = DiskThread()
    waiting = spawn(store, thread, journal, "a")
    wait_until(lambda: journal.steps[-1:] == ["flush a"])
    with thread._lock:
        child = gevent.os.fork()
        if child == 0:  # pragma: no cover - another process
            signal.alarm(20)
            journal.go_on = threading.Semaphore(10)
            status = 1
            try:
                with gevent.Timeout(10):
                    store(thread, journal, "b")
                status = 0 if journal.steps[-1] == "250 b" else 2
            finally:
                os._exit(status)
    with gevent.Timeout(20):
        assert gevent.os.waitpid(child, 0)[1] == 0
    journal.go_on.release(10)
    waiting.join(20)
    assert sorted(path.name for path in (journal.folder / "new").iterdir()) == ["a", "b"]
    assert "250 b" not in journal.steps
