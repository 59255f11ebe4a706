"""Parse a retry schedule: ``1m, 5m*2, 1h*3``."""

from __future__ import annotations

import re

from greensmtp.errors import ArgumentError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])(?:\*([0-9]{1,3}))?")

#: The longest schedule.
MAX_TRIES = 1000


def parse_schedule(text: str) -> tuple[float, ...]:
    """Return the seconds to wait before each retry.

    :param text: times with a unit (``s``, ``m``, ``h``, ``d``), separated by commas; ``5m*2`` is ``5m, 5m``.
    :raises ArgumentError: the text is not a schedule.
    """
    pauses: list[float] = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
        if found is None or not seconds:
            raise ArgumentError("schedule", f"expected times like '1m, 5m*2, 1h*3'; got {part.strip()!r} in it")
        pauses += [seconds] * int(found[3] or 1)
    if not 0 < len(pauses) <= MAX_TRIES:
        raise ArgumentError("schedule", f"expected 1 to {MAX_TRIES} tries; got {len(pauses)}")
    return tuple(pauses)


def parse_duration(name: str, text: object) -> float:
    """Parse a duration like ``4h``, and return its seconds.

    :param name: the argument's name, for the error.
    :raises ArgumentError: the text is not a duration.
    """
    found = _PART.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or found[3] or not float(found[1]):
        raise ArgumentError(name, f"expected a duration like '4h', or False to disable; got {text!r}")
    return float(found[1]) * _UNITS[found[2]]
