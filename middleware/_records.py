"""Records in bounded memory: what the limits in this process count by.

Rules of this file:

- Nothing here locks. The caller holds a lock around every call, and passes the time.
- A record is over when its ``ends`` has come. It is found no more, and makes room for others.
- The record that was used last is at the end. Beyond ``max_weight``, the one that was not used for longest is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

#: What a key weighs: as much as ten hits that a moving window remembers, of 32 bytes each.
KEY_WEIGHT = 10


class Record(Protocol):
    """A count, or whatever else is kept for a key until ``ends``."""

    ends: float

    @property
    def weight(self) -> int:
        """The memory that it takes, its key included."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


class Counter:
    """A number of events in the window that ends at ``ends``."""

    __slots__ = ("count", "ends")

    weight = KEY_WEIGHT

    def __init__(self, ends: float) -> None:
        self.count = 0
        self.ends = ends


class Records(Generic[AnyRecord]):
    """Records by key, at most ``max_weight`` of them by weight."""

    def __init__(self, max_weight: int) -> None:
        self.max_weight = max_weight
        #: The sum of all weights.
        self.weight = 0
        self._records: OrderedDict[str, AnyRecord] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys, the one used last at the end."""
        return iter(self._records)

    def values(self) -> Iterable[AnyRecord]:
        """Return the records, in the same order."""
        return self._records.values()

    def find(self, key: str, now: float) -> AnyRecord | None:
        """Return the record of a key, and mark it as used; None if there is none, or it is over."""
        record = self._records.get(key)
        if record is None:
            return None
        if record.ends <= now:
            self.drop(key)
            return None
        self._records.move_to_end(key)
        return record

    def keep(self, key: str, record: AnyRecord, now: float, more: int = 0) -> None:
        """Store a record that is new, or has become heavier by ``more``, and make room for it."""
        if key in self._records:
            self.weight += more
        else:
            self._records[key] = record
            self.weight += record.weight
            # Two for each new one: the records that are over disappear, and no call takes long.
            self._drop_over(2, now)
        while self.weight > self.max_weight and len(self._records) > 1:
            self.drop(next(iter(self._records)))

    def drop(self, key: str) -> None:
        """Forget a key."""
        record = self._records.pop(key, None)
        if record is not None:
            self.weight -= record.weight

    def clear(self) -> int:
        """Forget all keys; return how many there were."""
        count = len(self._records)
        self._records.clear()
        self.weight = 0
        return count

    def _drop_over(self, most: int, now: float) -> None:
        for _ in range(most):
            key, record = next(iter(self._records.items()))
            if record.ends > now:
                return
            self.drop(key)
