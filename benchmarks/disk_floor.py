"""The floor of the main job: only the system calls of stored messages. ``python -m benchmarks.disk_floor``.

Without server, client and threads: files of 1.4 kB are written in batches, flushed and moved, and their folder is
flushed, as greensmtp's disk thread does it. Pass a folder on the disk to measure; a new folder is created in it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import statistics
import time
from pathlib import Path

from benchmarks import machine

CONTENT = b"x" * 1_400
BATCHES = (1, 10, 20, 100)

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
#: Flags of sync_file_range: start to write what is not being written, and wait for what is.
_START, _WAIT = 2, 1 | 4

_library = ctypes.CDLL(None, use_errno=True)


def flushed(folder: Path, batch: int, messages: int) -> None:
    """Store messages, and flush each batch twice: its content, and the names."""
    new = os.open(folder / "new", os.O_RDONLY | os.O_DIRECTORY)
    for start in range(0, messages, batch):
        written = _write(folder, start, batch)
        if batch == 1:
            os.fsync(written[0][0])
        elif _library.syncfs(written[0][0]):
            raise OSError(ctypes.get_errno(), "syncfs")
        _move(folder, written)
        os.fsync(new)
    os.close(new)


def once(folder: Path, batch: int, messages: int) -> None:
    """Store messages with one flush, of content and names together, after the move.

    A crash before that flush may leave the name of a file without its content, unless the file system writes both in
    this order: ext4 with a journal does so after ``sync_file_range``, ext4 without one does not.
    """
    new = os.open(folder / "new", os.O_RDONLY | os.O_DIRECTORY)
    for start in range(0, messages, batch):
        written = _write(folder, start, batch)
        for flags in (_START, _START | _WAIT):
            for descriptor, _ in written:
                if _library.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), flags):
                    raise OSError(ctypes.get_errno(), "sync_file_range")
        _move(folder, written)
        if _library.syncfs(new):
            raise OSError(ctypes.get_errno(), "syncfs")
    os.close(new)


def unsafe(folder: Path, batch: int, messages: int) -> None:
    """Store messages without any flush."""
    for start in range(0, messages, batch):
        _move(folder, _write(folder, start, batch))


def _write(folder: Path, start: int, batch: int) -> list[tuple[int, str]]:
    written = []
    for number in range(start, start + batch):
        name = f"1700000000.661380bf{number:06x}-e1429a-18.mx.example.com"
        descriptor = os.open(f"{folder}/tmp/{name}", _CREATE, 0o600)
        os.write(descriptor, CONTENT)
        written.append((descriptor, name))
    return written


def _move(folder: Path, written: list[tuple[int, str]]) -> None:
    for descriptor, name in written:
        os.close(descriptor)
        source, target = os.fsencode(f"{folder}/tmp/{name}"), os.fsencode(f"{folder}/new/{name}")
        if _library.renameat2(-100, source, -100, target, 1):
            raise OSError(ctypes.get_errno(), "renameat2")


def main() -> None:
    """Measure each batch in interleaved rounds, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=machine.WORK, help="where to write (.bench)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=2_000, help="of each batch size; a tenth if it is 1")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    root = options.folder / f"disk-floor-{os.getpid()}"
    samples: dict[tuple[str, int], list[tuple[float, float]]] = {}
    try:
        for number in range(options.rounds):
            for store in (flushed, once, unsafe):
                for batch in BATCHES:
                    messages = options.messages // (10 if batch == 1 else 1)
                    folder = root / f"{store.__name__}-{batch}-{number}"
                    for name in ("tmp", "new"):
                        (folder / name).mkdir(parents=True)
                    os.sync()
                    cpu, began = time.process_time(), time.perf_counter()
                    store(folder, batch, messages)
                    seconds = time.perf_counter() - began
                    used = (time.process_time() - cpu) / messages
                    samples.setdefault((store.__name__, batch), []).append((messages / seconds, used))
    finally:
        shutil.rmtree(root, ignore_errors=True)  # at the end: ext4 searches long for inodes when some were just freed
    print(f"{'':10}{'batch':>6}{'messages/s':>12}{'CPU us':>8}")
    for (name, batch), those in samples.items():
        rate, cpu = (statistics.median(column) for column in zip(*those, strict=True))
        print(f"{name:10}{batch:6}{rate:12,.0f}{cpu * 1e6:8.1f}")


if __name__ == "__main__":
    main()
