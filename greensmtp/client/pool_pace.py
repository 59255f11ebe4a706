"""When a pool may begin its next message (``rate``), and when it tries a message again (``retries``)."""

from __future__ import annotations

import random
from time import monotonic

#: The most seconds between two tries.
MAX_RETRY_SECONDS = 300.0

_random = random.SystemRandom()


class Pace:
    """Gives each message of a pool its turn, at even intervals. All native threads share it.

    Two threads that ask at the same instant may get the same turn. That is not worth a lock.
    """

    def __init__(self, rate: float | None) -> None:
        """
        :param rate: messages in a second; None for no limit.
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
    """Return the seconds to wait after a try: ``delay``, doubled for each earlier one, and 50 to 100 % of that.

    The random part keeps programs that failed together from trying again together.

    :param tried: earlier tries again.
    """
    return min(delay * 2.0 ** min(tried, 30), MAX_RETRY_SECONDS) * _random.uniform(0.5, 1.0)
