"""A storage for the ``limits`` library, in memory: bounded, and without a thread or a timer.

The library's own storage starts a native thread for each round of expiry. This module imports the library, so it is
imported when a RateLimit is made.
"""

from __future__ import annotations

from collections import deque
from time import monotonic, time

from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage

from greensmtp.middleware._native_lock import native_lock
from greensmtp.middleware._records import KEY_WEIGHT, Counter, Records

#: How much one limit may keep, in hits that a moving window remembers. A key weighs as much as ten hits: there are at
#: most 100,000 keys, in some 40 MB.
MAX_WEIGHT = 1_000_000


class _Window:
    """The times of the hits in a moving window."""

    __slots__ = ("ends", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque()
        self.ends = 0.0

    @property
    def weight(self) -> int:
        return KEY_WEIGHT + len(self.times)


class MemoryStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """Counts of this process. Safe to use from several native threads.

    Times are of the monotonic clock: setting the machine's clock moves no window.

    :param max_weight: the bound of ``Records``.
    """

    #: The library cannot open this storage by a URI.
    STORAGE_SCHEME = None

    def __init__(self, max_weight: int = MAX_WEIGHT) -> None:
        super().__init__()
        self._records: Records[Counter | _Window] = Records(max_weight)
        self._lock = native_lock()

    def __len__(self) -> int:
        """The number of keys."""
        return len(self._records)

    @property
    def base_exceptions(self) -> type[Exception]:
        """The errors of a storage that fails; this one raises none."""
        return ValueError

    # The fixed window

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a counter, and return its count; a new counter begins a window of ``expiry`` seconds."""
        with self._lock:
            return self._add(key, expiry, amount)

    def get(self, key: str) -> int:
        """Return a counter's count."""
        with self._lock:
            return self._count(key)

    def get_expiry(self, key: str) -> float:
        """Return when a counter's window ends, in seconds since the epoch."""
        with self._lock:
            now = monotonic()
            record = self._records.find(key, now)
            return time() + (0.0 if record is None else record.ends - now)

    # The moving window

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add hits, unless there would be more than ``limit`` in the last ``expiry`` seconds."""
        with self._lock:
            now = monotonic()
            window = self._window(key, expiry, now) or _Window()
            times = window.times
            if len(times) + amount > limit:
                return False
            if amount == 1:
                times.append(now)
            else:
                times.extend([now] * amount)
            window.ends = now + expiry
            self._records.keep(key, window, now, amount)
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return the time of the first hit in the last ``expiry`` seconds, since the epoch, and the number of hits."""
        with self._lock:
            now = monotonic()
            window = self._window(key, expiry, now)
            if window is None:
                return time(), 0
            return time() - (now - window.times[0]), len(window.times)

    # The sliding counter: two fixed windows; the previous one counts by the share of it that is left

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add to the current window's counter, unless the weighted count would exceed ``limit``."""
        with self._lock:
            before, before_ends, current, _ = self._sliding_window(key, expiry)
            if int(before * before_ends / expiry + current) + amount > limit:
                return False
            self._add(self._keys(key, expiry)[1], 2 * expiry, amount)
            return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return count and remaining seconds of the previous window, then of the current one."""
        with self._lock:
            return self._sliding_window(key, expiry)

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget both windows of a key."""
        for each in self._keys(key, expiry):
            self.clear(each)

    # All strategies

    def clear(self, key: str) -> None:
        """Forget a key."""
        with self._lock:
            self._records.drop(key)

    def check(self) -> bool:
        """Return True: memory is always available."""
        return True

    def reset(self) -> int:
        """Forget all keys; return how many there were."""
        with self._lock:
            return self._records.clear()

    # With the lock held

    def _count(self, key: str) -> int:
        record = self._records.find(key, monotonic())
        return record.count if isinstance(record, Counter) else 0

    def _add(self, key: str, expiry: float, amount: int) -> int:
        now = monotonic()
        counter = self._records.find(key, now)
        if not isinstance(counter, Counter):
            counter = Counter(now + expiry)
            self._records.keep(key, counter, now)
        counter.count += amount
        return counter.count

    def _window(self, key: str, expiry: int, now: float) -> _Window | None:
        """Return a window without the hits that have left it; None if no hit is left."""
        window = self._records.find(key, now)
        if not isinstance(window, _Window):
            return None
        times, over = window.times, now - expiry
        while times and times[0] <= over:
            times.popleft()
            self._records.weight -= 1
        if not times:
            self._records.drop(key)
            return None
        return window

    def _sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        before, current = self._keys(key, expiry)
        left = expiry - monotonic() % expiry
        return self._count(before), left, self._count(current), left + expiry

    def _keys(self, key: str, expiry: int) -> tuple[str, str]:
        number = int(monotonic() // expiry)
        return f"{key}/{number - 1}", f"{key}/{number}"
