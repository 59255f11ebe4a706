"""Compute when a pool may begin its next message (``rate``), and when it tries a message again (``retries``)."""

from __future__ import annotations

import random
from time import monotonic

#: Maximum number of seconds between two attempts.
MAX_RETRY_SECONDS = 300.0

_random = random.SystemRandom()


class Pace:
    """Assign each message of a pool its turn, at even intervals. All native threads share it.

    Two threads that ask at the same instant may get the same turn; avoiding that is not worth a lock.
    """

    def __init__(self, rate: float | None) -> None:
        """
        :param rate: messages per second; None for no limit.
        """
        self._interval = 0.0 if rate is None else 1 / rate
        self._next = 0.0

    def take_turn(self, most: float | None) -> float | None:
        """Return the seconds until the turn of the next message; None if they are more than ``most``."""
        if not self._interval:
            return 0.0
        now = monotonic()
        turn = max(self._next, now)
        if most is not None and turn - now > most:
            return None
        self._next = turn + self._interval
        return turn - now


def retry_seconds(tried: int, delay: float) -> float:
    """Return the seconds before a retry: a random 50 to 100 % of ``delay``, doubled for each earlier retry.

    The random part keeps programs that failed together from trying again together.

    :param tried: number of earlier retries.
    """
    return min(delay * 2.0 ** min(tried, 30), MAX_RETRY_SECONDS) * _random.uniform(0.5, 1.0)
