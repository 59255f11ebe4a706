"""The quota of a RateLimit: one or several limits in windows of time, by the ``limits`` library.

``test``, ``hit`` and ``spend`` are the questions that a Store is asked. They may run in the thread pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from greensmtp.errors import ArgumentError
from greensmtp.middleware._validate import check_choice

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.storage import Storage

#: Stands for a key.
_KEY = "\0"

#: The most that a moving window, which remembers every hit, may allow.
_MAX_MOVING = 100_000


class _Limit:
    """What the library's strategies ask of a RateLimitItem, without its work for each key.

    :param name: the prefix of the keys.
    """

    def __init__(self, item: RateLimitItem, name: str) -> None:
        self.amount = item.amount
        self._expiry = item.get_expiry()
        self._before, _, self._after = item.key_for(name, _KEY).rpartition(_KEY)

    def key_for(self, key: str) -> str:
        """Return the item's key in the storage."""
        return f"{self._before}{key}{self._after}"

    def get_expiry(self) -> int:
        """Return the length of the window in seconds."""
        return self._expiry


class Quota:
    """Counts by key in a storage.

    :param limit: one or several limits: ``"100/minute; 1000/hour"``.
    :param name: the prefix of the keys in the storage.
    :param of_bytes: the hits are bytes, too many for a moving window to remember.
    :raises ValueError: a limit is malformed, or the strategy is unknown or does not go with the limits.
    """

    def __init__(self, limit: str, strategy: str | None, storage: Storage, name: str, *, of_bytes: bool) -> None:
        from limits.strategies import STRATEGIES

        strategy = strategy or ("sliding-window-counter" if of_bytes else "moving-window")
        check_choice("strategy", strategy, STRATEGIES)
        items = _read_limits(limit)
        amounts = [item.amount for item in items]
        #: The largest cost that can ever pass.
        self.largest = min(amounts)
        if strategy == "moving-window" and of_bytes:
            raise ValueError(
                'on="bytes" takes "sliding-window-counter" or "fixed-window": a moving window remembers every byte'
            )
        if strategy == "moving-window" and max(amounts) > _MAX_MOVING:
            raise ValueError(f'a "moving-window" takes up to {_MAX_MOVING}; pass "sliding-window-counter" for more')
        # Each strategy stores another type of value: of one key, Redis would refuse the second.
        self._limits = [cast("RateLimitItem", _Limit(item, f"{name}/{strategy}")) for item in items]
        self._limiter = STRATEGIES[strategy](storage)

    def test(self, key: str, cost: int) -> bool:
        """Return whether this cost would pass, without counting it."""
        return all(self._limiter.test(limit, key, cost=cost) for limit in self._limits)

    def hit(self, key: str, cost: int) -> bool:
        """Count the cost; return whether it passes."""
        limits = self._limits
        if len(limits) == 1:
            return self._limiter.hit(limits[0], key, cost=cost)
        # Test first: a command that one limit refuses must not use up the others.
        return self.test(key, cost) and all(self._limiter.hit(limit, key, cost=cost) for limit in limits)

    def spend(self, key: str, cost: int) -> bool:
        """Count bytes that have arrived already: what exceeds a limit uses it up."""
        if self.hit(key, cost):
            return True
        for limit in self._limits:
            left = self._limiter.get_window_stats(limit, key).remaining
            if left > 0:
                self._limiter.hit(limit, key, cost=min(left, cost))
        return False


def _read_limits(limit: str) -> list[RateLimitItem]:
    from limits import parse_many

    try:
        items = parse_many(limit)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise ArgumentError("limit", f"takes '100/minute', or several: '100/minute; 1000/hour', not {limit!r}")
    return items
