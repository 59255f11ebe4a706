"""Log files: opened again after logrotate has renamed them, and whole lines from several processes."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from greensmtp.line_writer import LineWriter
from greensmtp.log_writer import LogHandler, reopen_logs
from tests import forked
from tests.helpers import until


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Return a logger for one test; its handlers are closed afterwards."""
    logger = logging.getLogger("greensmtp.tests.log_writer")
    logger.setLevel(logging.INFO)
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def texts(path: Path) -> list[str]:
    """Return the last word of each line."""
    return [line.split()[-1] for line in path.read_text().splitlines()]


def test_a_file_that_was_renamed_is_opened_again(logger: logging.Logger, tmp_path: Path) -> None:
    path, old = tmp_path / "mail.log", tmp_path / "mail.log.1"
    handler = LogHandler("text", str(path))
    logger.addHandler(handler)
    logger.info("one")
    handler.close()  # so that it is written; the next record opens the file again
    logger.info("two")
    path.rename(old)
    handler.reopen()
    logger.info("three")
    handler.close()
    assert texts(old) + texts(path) == ["one", "two", "three"]
    assert "three" in texts(path)
    handler.reopen()  # a handler without an open file has nothing to open again


def test_no_line_is_lost_or_cut_while_files_are_rotated(logger: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    handler = LogHandler("text", str(path))
    logger.addHandler(handler)
    over = threading.Event()

    def log() -> None:
        for number in range(2_000):
            logger.info("%s-%d", "x" * 200, number)
        over.set()

    thread = threading.Thread(target=log)
    thread.start()
    turn = 0
    while not over.is_set():
        path.rename(tmp_path / f"mail.log.{turn}")
        handler.reopen()
        turn += 1
    thread.join()
    handler.close()
    found = [text for file in tmp_path.iterdir() for text in texts(file)]
    assert sorted(int(text.removeprefix("x" * 200 + "-")) for text in found) == list(range(2_000))


def test_all_logs_are_opened_again_at_once(
    logger: logging.Logger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, lost = tmp_path / "good.log", tmp_path / "gone" / "lost.log"
    lost.parent.mkdir()
    for path in (lost, good):
        logger.addHandler(LogHandler("text", str(path)))
    logger.addHandler(LogHandler("text"))  # standard error is left as it is
    for path in (lost, good):
        path.rename(path.with_suffix(".1"))
    lost.parent.rename(tmp_path / "elsewhere")
    reopen_logs()
    assert good.exists()
    assert "the log cannot be opened again" in caplog.text
    assert str(lost) in caplog.text
    logger.info("kept")
    for handler in logger.handlers:
        handler.close()
    assert texts(tmp_path / "elsewhere" / "lost.1")[-1] == "kept"


WRITING = """
import logging, sys
from greensmtp.log_writer import LogHandler
handler = LogHandler("text", sys.argv[1])
logger = logging.getLogger("many")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(handler)
for number in range(1000):
    logger.info("%s %d %s", sys.argv[2], number, sys.argv[2] * 150)
handler.close()
"""


def whole_lines(data: str) -> None:
    """Assert that each line is one that a process has written, and that none is missing."""
    seen = set()
    for line in data.splitlines():
        _, _, _, who, number, filling = line.split()
        assert filling == who * 150
        seen.add((who, int(number)))
    assert len(seen) == 3_000


@pytest.mark.subprocess
def test_lines_of_several_processes_to_one_file_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    processes = [forked.start(forked.python(WRITING, path, who)) for who in "abc"]
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    whole_lines(path.read_text())


@pytest.mark.subprocess
def test_lines_of_several_processes_to_one_pipe_stay_whole() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)  # so that the processes wait for room at the same time
    program = WRITING.replace('LogHandler("text", sys.argv[1])', 'LogHandler("text")')
    processes = [forked.start(forked.python(program, "-", who), stderr=writing) for who in "abc"]
    os.close(writing)
    data = b""
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    whole_lines(data.decode())


class Racing(deque[str]):
    """Waiting lines; when the writer's thread finds none at its end, another thread adds one right after that."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self.added: list[str] = []
        self._adds = False

    def __len__(self) -> int:
        size = super().__len__()
        if not size and self._writer._is_ending and len(self.added) < 9 and not self._adds:
            self._adds = True
            self.added.append(f"late {len(self.added)}")
            other = threading.Thread(target=self._writer.say, args=(self.added[-1],))
            other.start()
            other.join()
            self._adds = False
        return size

    def __bool__(self) -> bool:
        return len(self) > 0


def test_a_line_of_another_thread_at_the_last_moment_is_not_lost(tmp_path: Path) -> None:
    with (tmp_path / "log").open("a") as file:
        writer = LineWriter(file)
        lines = writer._lines = Racing(writer)
        writer.say("first")
        until(lambda: writer.finish() and len(lines.added) == 9, "all lines")
        assert writer.finish()
    assert (tmp_path / "log").read_text().splitlines() == ["first", *lines.added]


#: Lines for a file that must not grow for some time, as on a full disk.
FULL_DISK = """
import resource, sys
from greensmtp.line_writer import LineWriter
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with open(sys.argv[1], "a") as file:
    writer = LineWriter(file)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15, most))
    for line in ("one", "two", "three", "four"):
        writer.say(line)
    writer.finish()
    writer.say("five")
    writer.finish()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    writer.say("six")
    writer.finish()
"""


@pytest.mark.subprocess
def test_what_a_full_disk_has_no_room_for_is_counted_and_joins_no_other_line(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "log")], check=True, timeout=60)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["one", "two", "three", "f", "six", "(2 lines dropped)"]


def test_a_line_longer_than_a_pipe_takes_at_once_is_written(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        for line in ("a", "x" * 10_000, "b"):
            writer.say(line)
        assert writer.finish()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"a\n" + b"x" * 10_000 + b"\nb\n"


def test_a_pipe_gets_whole_lines_of_as_much_as_it_takes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        pieces.append(data)
        return len(data)

    monkeypatch.setattr("greensmtp.line_writer._write", write)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "w") as stream:
        writer = LineWriter(stream)
        for number in range(500):
            writer.say(f"{number} {'x' * 100}")
        assert writer.finish()
    assert max(map(len, pieces)) <= select.PIPE_BUF
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert b"".join(pieces).count(b"\n") == 500
