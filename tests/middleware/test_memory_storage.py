"""The storage in memory: it answers as the limits library's does, without threads, and is bounded."""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import Any

import pytest
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage as Reference
from limits.storage import memory as reference
from limits.strategies import STRATEGIES

from greensmtp.middleware.rate_limit import memory
from greensmtp.middleware.rate_limit.memory import MemoryStorage
from tests import forked


class Clock:
    """One clock for both storages: the library's calls ``time.time``."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(memory, "monotonic", clock.time)
    monkeypatch.setattr(memory, "time", clock.time)
    monkeypatch.setattr(reference, "time", clock)
    return clock


@pytest.fixture
def library(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Reference:
    """The library's own storage, without its thread."""

    class NoTimer:
        def __init__(self, *arguments: Any) -> None: ...
        def start(self) -> None: ...
        def is_alive(self) -> bool:
            return True

    monkeypatch.setattr(threading, "Timer", NoTimer)
    return Reference()


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("seed", range(5))
def test_it_answers_as_the_librarys_own_does(strategy: str, seed: int, clock: Clock, library: Reference) -> None:
    ours, theirs = STRATEGIES[strategy](MemoryStorage()), STRATEGIES[strategy](library)
    items = [RateLimitItemPerSecond(5, 10), RateLimitItemPerSecond(20, 60)]
    chance = random.Random(seed)
    answers = set()
    for _ in range(1000):
        # (No round numbers: where a count is just about whole, the library rounds otherwise.)
        clock.now += chance.uniform(0, chance.choice([0.0, 0.5, 3, 9.75]))
        item, key, cost = chance.choice(items), chance.choice("abc"), chance.choice([1, 1, 1, 2, 6])
        ask = chance.choice(["hit", "hit", "test"])
        answer = getattr(ours, ask)(item, key, cost=cost)
        assert answer == getattr(theirs, ask)(item, key, cost=cost)
        answers.add((ask, answer))
        left, same = ours.get_window_stats(item, key), theirs.get_window_stats(item, key)
        assert left.remaining == same.remaining
    assert len(answers) == 4


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_it_keeps_is_bounded_and_what_is_used_is_kept(strategy: str, clock: Clock) -> None:
    storage = MemoryStorage(max_weight=1000)
    limiter = STRATEGIES[strategy](storage)
    item = RateLimitItemPerSecond(50, 3600)
    for number in range(50):
        assert limiter.hit(item, "busy")
        for stranger in range(20):
            limiter.hit(item, f"{number}-{stranger}")
        assert storage._records.weight <= 1000
        assert storage._records.weight == sum(record.weight for record in storage._records.values())
    assert not limiter.test(item, "busy")
    assert len(storage) <= 100


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_is_over_makes_room(strategy: str, clock: Clock) -> None:
    storage = MemoryStorage()
    limiter = STRATEGIES[strategy](storage)
    item = RateLimitItemPerSecond(5)
    for number in range(1000):
        limiter.hit(item, str(number))
    clock.now += 10
    for number in range(600):
        limiter.hit(item, f"new {number}")
    assert len(storage) <= 601
    clock.now += 10
    limiter.hit(item, "one", cost=5)
    assert not limiter.hit(item, "one")
    limiter.clear(item, "one")
    assert limiter.hit(item, "one")
    storage.reset()
    assert (len(storage), storage._records.weight) == (0, 0)


def test_the_machines_clock_moves_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = STRATEGIES["moving-window"](MemoryStorage())
    item = RateLimitItemPerSecond(1, 3600)
    assert limiter.hit(item, "a")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not limiter.hit(item, "a")


THREADS = """
import os, sys, threading
from pathlib import Path
import gevent
from greensmtp import SMTPServer
from greensmtp.middleware import RateLimit
from greensmtp.testing import dial

def native():
    return len(os.listdir("/proc/self/task"))

gevent.get_hub()
before = native(), threading.enumerate()
stack = [RateLimit("2/second", strategy=strategy, on=on)
         for strategy in ("moving-window", "fixed-window", "sliding-window-counter")
         for on in ("connections", "messages", "recipients")]
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", middleware=stack)
server.on("message", lambda session, stream, ack: ack.accept())
for _ in range(2):
    with dial(server, source=("192.0.2.1", 1)) as peer:
        peer.hello()
        peer.deliver()
with dial(server, source=("192.0.2.1", 1)) as peer:
    peer.expect("421")
gevent.sleep(0.05)  # the library's own would have started its timer thread long since
print((native(), threading.enumerate()) == before, before[0])
"""


@pytest.mark.subprocess
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the threads that the kernel sees")
def test_counting_in_memory_starts_no_thread() -> None:
    ran = forked.run(forked.python(THREADS), how=forked.UNPATCHED)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "True 1\n"
