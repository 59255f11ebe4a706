"""Checks of the numbers among a delivery's options."""

from __future__ import annotations

from math import inf

from greensmtp.errors import ArgumentError


def check_numbers(**given: object) -> None:
    """Check that each option is a number above 0.

    :raises ArgumentError: one is not.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise ArgumentError(name, f"expected a number above 0; got {value!r}")


def check_counts(least: int = 1, **given: object) -> None:
    """Check that each option is a whole number.

    :raises ArgumentError: one is not, or it is too small.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(name, f"expected a whole number of at least {least}; got {value!r}")
