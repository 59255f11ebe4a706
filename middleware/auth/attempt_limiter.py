"""A limit on failed attempts for each key, in bounded memory.

``RateLimit(on="auth_failures")`` counts failed logins too, in the storages and windows of the ``limits`` library. Auth
has its own counter because it works without that library, and because a failure can be given back here. Both use
``Records`` and ``InFlight``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent.monkey import get_original

from greensmtp.errors import ArgumentError
from greensmtp.middleware._in_flight import InFlight
from greensmtp.middleware._records import KEY_WEIGHT, Counter, Records

_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_LIMIT = re.compile(r"([0-9]{1,9}) ?(?:/|per) ?(?:([0-9]{1,6}) ?)?(second|minute|hour|day)s?")


class AttemptLimiter:
    """Allows ``"10/minute"`` (``"5/15 minutes"``, ``"100/hour"``, ``"1000/day"``) failures for each key.

    An attempt counts as a failure from its beginning, and is given back if it was none: many attempts at once get no
    further than one after the other. The window begins with a key's first failure.

    :param limit: the number of failures and the window.
    :param name: the argument's name, for the error.
    :param max_keys: how many keys are kept. Beyond, the key that was not used for longest is forgotten.
    :raises ValueError: the limit is malformed.
    """

    def __init__(
        self, limit: Any, name: str = "limit", *, max_keys: int = 100_000, clock: Callable[[], float] = monotonic
    ) -> None:
        match = _LIMIT.fullmatch(limit) if isinstance(limit, str) else None
        #: How many failures are allowed.
        self.count = int(match[1]) if match else 0
        self._seconds = int(match[2] or 1) * _UNITS[match[3]] if match else 0.0
        if not self.count or not self._seconds:
            raise ArgumentError(
                name, f"takes a number of failures and a time, like '10/minute' or '5/15 minutes', not {limit!r}"
            )
        self._limit = limit
        self._clock = clock
        self._failures: Records[Counter] = Records(max_keys * KEY_WEIGHT)
        self._in_flight = InFlight()
        # The unpatched lock, since servers may run in several native threads. It is never held across a switch.
        self._lock = get_original("_thread", "allocate_lock")()

    def take(self, key: str) -> CountedAttempt | None:
        """Begin an attempt; None if the limit is reached, and no attempt has begun."""
        with self._lock:
            counter = self._failures.find(key, self._clock())
            if counter is not None and counter.count >= self.count:
                return None
            return self._add(key)

    def add(self, key: str) -> CountedAttempt:
        """Begin an attempt even beyond the limit."""
        with self._lock:
            return self._add(key)

    def has_attempts_in_flight(self, key: str) -> bool:
        """True if attempts are under way: some of them may turn out not to be failures."""
        return key in self._in_flight

    def _add(self, key: str) -> CountedAttempt:
        self._in_flight.begin(key)
        now = self._clock()
        counter = self._failures.find(key, now) or Counter(now + self._seconds)
        counter.count += 1
        self._failures.keep(key, counter, now)
        return CountedAttempt(self, key, counter)

    def _give_back(self, key: str, counter: Counter) -> None:
        with self._lock:
            counter.count -= 1
            if not counter.count and self._failures.find(key, self._clock()) is counter:
                self._failures.drop(key)

    def __len__(self) -> int:
        """The number of keys with failures."""
        return len(self._failures)

    def __repr__(self) -> str:
        return f"AttemptLimiter({self._limit!r})"


class CountedAttempt:
    """An attempt under way, which counts as a failure unless it is given back.

    It is given back to the window in which it began. A client must not keep logins waiting and then use them to undo
    failures of a later window.
    """

    __slots__ = ("_counter", "_key", "_limiter", "failures")

    def __init__(self, limiter: AttemptLimiter, key: str, counter: Counter) -> None:
        self._limiter = limiter
        self._key = key
        self._counter = counter
        #: The failures of the key when this attempt began, itself included.
        self.failures = counter.count

    def give_back(self) -> None:
        """Subtract it: it was not a failure."""
        self._limiter._give_back(self._key, self._counter)

    def end(self) -> None:
        """End it, whether it failed or not."""
        self._limiter._in_flight.end(self._key)
