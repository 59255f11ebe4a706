"""Counting failures: so many in a time for each key, in memory that is bounded."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent.monkey import get_original

from greensmtp.errors import ArgumentError

_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_LIMIT = re.compile(r"([0-9]{1,9}) ?(?:/|per) ?(?:([0-9]{1,6}) ?)?(second|minute|hour|day)s?")


class AttemptLimiter:
    """Allows ``"10/minute"`` (``"5/15 minutes"``, ``"100/hour"``, ``"1000/day"``) failures for each key.

    An attempt counts as a failure from its beginning, and is given back when it is none: whoever tries many at once
    gets no further than one by one. ``settle`` says that it has ended, either way. The time begins with a key's first
    failure. At most ``max_keys`` keys are kept; beyond, the one that would be forgotten next is forgotten early.

    :raises ValueError: that is no limit; the text says what is taken.
    """

    def __init__(
        self, limit: Any, name: str = "limit", *, max_keys: int = 100_000, clock: Callable[[], float] = monotonic
    ) -> None:
        match = _LIMIT.fullmatch(limit) if isinstance(limit, str) else None
        self._count = int(match[1]) if match else 0
        self._seconds = int(match[2] or 1) * _UNITS[match[3]] if match else 0.0
        if not self._count or not self._seconds:
            raise ArgumentError(name, f"takes so many in a time, like '10/minute' or '5/15 minutes', not {limit!r}")
        self._limit = limit
        self._max_keys = max_keys
        self._clock = clock
        #: key -> how many, and until when they count; in the order of that.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        #: key -> attempts that have not ended.
        self._under_way: dict[str, int] = {}
        #: Servers may run in several native threads. (The real lock, in a patched process too; never held across a
        #: switch.)
        self._counting = get_original("_thread", "allocate_lock")()

    @property
    def count(self) -> int:
        """How many failures are allowed."""
        return self._count

    def take(self, key: str) -> bool:
        """Begin an attempt; False: there have been too many, and this is none."""
        with self._counting:
            count, until = self._failures.get(key, (0, 0.0))
            if count >= self._count and until > self._clock():
                return False
            self._add(key)
            return True

    def add(self, key: str) -> int:
        """Begin an attempt, however many there have been; give their number, with this one."""
        with self._counting:
            return self._add(key)

    def may_give_back(self, key: str) -> bool:
        """True if attempts are under way, and so some that count may turn out to be no failures."""
        return key in self._under_way

    def settle(self, key: str) -> None:
        """An attempt has ended."""
        with self._counting:
            left = self._under_way.pop(key, 0) - 1
            if left > 0:
                self._under_way[key] = left

    def give_back(self, key: str) -> None:
        """That attempt was no failure."""
        with self._counting:
            count, until = self._failures.get(key, (0, 0.0))
            if count > 1:
                self._failures[key] = (count - 1, until)
            else:
                self._failures.pop(key, None)

    def _add(self, key: str) -> int:
        self._under_way[key] = self._under_way.get(key, 0) + 1
        now = self._clock()
        count, until = self._failures.get(key, (0, 0.0))
        if until <= now:
            self._failures.pop(key, None)
            self._make_room(now)
            self._failures[key] = (1, now + self._seconds)
            return 1
        self._failures[key] = (count + 1, until)
        return count + 1

    def _make_room(self, now: float) -> None:
        failures = self._failures
        while failures:
            _, until = next(iter(failures.values()))
            if until > now and len(failures) < self._max_keys:
                return
            failures.popitem(last=False)

    def __len__(self) -> int:
        return len(self._failures)

    def __repr__(self) -> str:
        return f"Failures({self._limit!r})"
