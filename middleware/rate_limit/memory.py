"""A storage for the ``limits`` library, in memory: bounded, and without a thread or a timer.

(The library's own starts a native thread for each round of expiry.) Imported when a RateLimit is made, since it needs
the library.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from time import monotonic, time

from gevent.monkey import get_original
from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage

#: How much is kept for a limit, in hits that a moving window remembers, 32 octets each; a key takes as much as ten of
#: them. So no more than 100,000 keys, and some 40 MB, whoever comes with whatever keys.
MAX_WEIGHT = 1_000_000
_KEY_WEIGHT = 10


class _Counter:
    """How many hits there were up to a moment."""

    __slots__ = ("count", "ends")

    weight = _KEY_WEIGHT

    def __init__(self, ends: float) -> None:
        self.count = 0
        self.ends = ends


class _Window:
    """When each hit of a moving window was."""

    __slots__ = ("ends", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque()
        self.ends = 0.0

    @property
    def weight(self) -> int:
        return _KEY_WEIGHT + len(self.times)


class MemoryStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """Counts of this process. Safe to use from several native threads.

    What is over is dropped when something new needs room, and so is, beyond ``max_weight``, what nobody has asked for
    the longest. Times are of the monotonic clock: setting the machine's clock moves no window.
    """

    #: None of the library's: it is not to be found by a URI there.
    STORAGE_SCHEME = None

    def __init__(self, max_weight: int = MAX_WEIGHT) -> None:
        super().__init__()
        self._max_weight = max_weight
        self._weight = 0
        #: The key used last is at the end.
        self._records: OrderedDict[str, _Counter | _Window] = OrderedDict()
        # (The real lock, in a patched process too; held for an instant, never across a switch.)
        self._lock = get_original("_thread", "allocate_lock")()

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._records)

    @property
    def base_exceptions(self) -> type[Exception]:
        """What a failure of the storage raises: nothing of this one's."""
        return ValueError

    # The fixed window

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a counter, which begins a window of ``expiry`` seconds where there is none; give what it has."""
        with self._lock:
            return self._add(key, expiry, amount)

    def get(self, key: str) -> int:
        """What a counter has."""
        with self._lock:
            return self._count(key)

    def get_expiry(self, key: str) -> float:
        """When a counter's window is over, in seconds since the epoch."""
        with self._lock:
            record = self._records.get(key)
            left = 0.0 if record is None else max(0.0, record.ends - monotonic())
            return time() + left

    # The moving window

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add hits, if there are no more than ``limit`` in the last ``expiry`` seconds then."""
        with self._lock:
            window = self._window(key, expiry)
            if window is None:
                window = _Window()
            if len(window.times) + amount > limit:
                return False
            now = monotonic()
            window.times.extend([now] * amount)
            window.ends = now + expiry
            self._keep(key, window, amount)
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the first hit of the last ``expiry`` seconds was, since the epoch, and how many there are."""
        with self._lock:
            window = self._window(key, expiry)
            if window is None or not window.times:
                return time(), 0
            return time() - (monotonic() - window.times[0]), len(window.times)

    # The sliding counter: two fixed windows, the one before weighing as much as is left of it

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add to the counter of the window that runs, if the weighted count is no more than ``limit`` then."""
        with self._lock:
            before, before_ends, current, _ = self._sliding_window(key, expiry)
            if int(before * before_ends / expiry + current) + amount > limit:
                return False
            self._add(self._keys(key, expiry)[1], 2 * expiry, amount)
            return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """The window before, and the one that runs: the count of each, and the seconds for which it still counts."""
        with self._lock:
            return self._sliding_window(key, expiry)

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget both."""
        for each in self._keys(key, expiry):
            self.clear(each)

    # All of them

    def clear(self, key: str) -> None:
        """Forget a key."""
        with self._lock:
            self._drop(key)

    def check(self) -> bool:
        """It is always well."""
        return True

    def reset(self) -> int:
        """Forget all; gives how many keys there were."""
        with self._lock:
            count = len(self._records)
            self._records.clear()
            self._weight = 0
            return count

    # Within, with the lock held

    def _count(self, key: str) -> int:
        record = self._records.get(key)
        if not isinstance(record, _Counter):
            return 0
        if record.ends <= monotonic():
            self._drop(key)
            return 0
        self._records.move_to_end(key)
        return record.count

    def _add(self, key: str, expiry: float, amount: int) -> int:
        self._count(key)
        counter = self._records.get(key)
        if not isinstance(counter, _Counter):
            counter = _Counter(monotonic() + expiry)
        counter.count += amount
        self._keep(key, counter)
        return counter.count

    def _window(self, key: str, expiry: int) -> _Window | None:
        """A window, without what has moved out of it."""
        window = self._records.get(key)
        if not isinstance(window, _Window):
            return None
        times = window.times
        oldest = monotonic() - expiry
        while times and times[0] <= oldest:
            times.popleft()
            self._weight -= 1
        if not times:
            self._drop(key)
            return None
        self._records.move_to_end(key)
        return window

    def _sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        before, current = self._keys(key, expiry)
        left = expiry - monotonic() % expiry
        return self._count(before), left, self._count(current), left + expiry

    def _keys(self, key: str, expiry: int) -> tuple[str, str]:
        number = int(monotonic() // expiry)
        return f"{key}/{number - 1}", f"{key}/{number}"

    def _keep(self, key: str, record: _Counter | _Window, more: int = 0) -> None:
        """Store what is new or has grown, and make room."""
        if key not in self._records:
            self._records[key] = record
            self._weight += record.weight
            # What nobody has asked for lately is in front; most of what is over is found there in time.
            self._drop_what_is_over(2)
        else:
            self._weight += more
        while self._weight > self._max_weight and len(self._records) > 1:
            self._drop(next(iter(self._records)))

    def _drop_what_is_over(self, most: int) -> None:
        now = monotonic()
        for _ in range(most):
            key, record = next(iter(self._records.items()))
            if record.ends > now:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        record = self._records.pop(key, None)
        if record is not None:
            self._weight -= record.weight
