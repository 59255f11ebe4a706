"""Attempts under way, counted by key."""

from __future__ import annotations

from greensmtp.middleware._native_lock import native_lock


class InFlight:
    """Counts attempts that have begun and not ended. Safe to use from several native threads."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = native_lock()

    def begin(self, key: str) -> int:
        """Count an attempt in; return how many are under way."""
        with self._lock:
            count = self._counts[key] = self._counts.get(key, 0) + 1
            return count

    def end(self, key: str) -> int:
        """Count an attempt out; return how many are still under way."""
        with self._lock:
            count = self._counts.pop(key, 0) - 1
            if count > 0:
                self._counts[key] = count
            return max(0, count)

    def __contains__(self, key: str) -> bool:
        return key in self._counts

    def __len__(self) -> int:
        """The number of keys with attempts under way."""
        return len(self._counts)
