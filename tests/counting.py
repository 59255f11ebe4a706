"""Count what code does: system calls, Python frames, and what it leaves to the garbage collector. Never time."""

from __future__ import annotations

import collections
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import blinker
import greenlet
import pytest
from gevent import socket as gevent_socket

import greensmtp

#: Messages in which to count.
MESSAGES = 20


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Keep what exists already from the garbage collector, which looks at all of it in every collection otherwise."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def holds(bounds: Mapping[str, float], what: str, measured: float) -> None:
    """Assert that a bound holds, and that something was counted at all."""
    assert 0 < measured <= bounds[what], what


class Counted(gevent_socket.socket):
    """A gevent socket that counts the system calls of its input and output, tries that found nothing included, and
    keeps what it has received while ``keep`` is true."""

    class _gevent_sock_class(gevent_socket.socket._gevent_sock_class):  # type: ignore[name-defined, misc]
        """The class with which gevent makes system calls."""

        calls: collections.Counter[str]
        keep = False
        received: list[bytes]

        def recv(self, *arguments: Any) -> bytes:
            self.calls["recv"] += 1
            data: bytes = super().recv(*arguments)
            if self.keep:
                self.received.append(data)
            return data

        def recv_into(self, *arguments: Any) -> int:
            self.calls["recv"] += 1
            taken: int = super().recv_into(*arguments)
            return taken

        def send(self, *arguments: Any) -> int:
            self.calls["send"] += 1
            sent: int = super().send(*arguments)
            return sent

        def sendall(self, *arguments: Any) -> None:
            self.calls["send"] += 1
            super().sendall(*arguments)

    _sock: Any

    def __init__(self, other: Any) -> None:
        super().__init__(other.family, other.type, other.proto, other.detach())
        #: ``recv`` and ``send``, and how many of them.
        self.calls: collections.Counter[str] = collections.Counter()
        #: What recv gave, after ``keep``.
        self.received: list[bytes] = []
        self._sock.calls, self._sock.received = self.calls, self.received

    def keep(self) -> None:
        """Keep what is received from now on."""
        self._sock.keep = True


#: Where our frames run, by whatever name, and blinker's.
PACKAGE = Path(greensmtp.__file__).parent
OURS = (str(PACKAGE), str((PACKAGE / "middleware").resolve()))
BLINKER = str(Path(blinker.__file__).parent)


@contextmanager
def counted_frames() -> Iterator[collections.Counter[CodeType]]:
    """Count the calls of Python functions, whatever greenlet they run in."""
    counts: collections.Counter[CodeType] = collections.Counter()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            counts[frame.f_code] += 1

    def switched(event: str, arguments: Any) -> None:
        sys.setprofile(profile)  # which is each greenlet's own

    before, traced = sys.getprofile(), greenlet.gettrace()
    greenlet.settrace(switched)
    sys.setprofile(profile)
    try:
        yield counts
    finally:
        sys.setprofile(before)
        greenlet.settrace(traced)


def frames_below(counts: collections.Counter[CodeType], *folders: str) -> int:
    """Return the number of calls of code in these folders, resumed generators included."""
    return sum(number for code, number in counts.items() if code.co_filename.startswith(folders))


def left_to_the_collector(act: Callable[[], object]) -> list[Any]:
    """Do it a few times, and return the objects of greensmtp that are in a cycle afterwards."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            act()
        gc.collect()
        return [each for each in gc.garbage if type(each).__module__.startswith("greensmtp")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
