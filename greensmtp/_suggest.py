"""The nearest right name, for error messages about a wrong one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name that is most like the given one; case, ``_`` and ``-`` make no difference.

    :param cutoff: how alike the names must be, from 0 to 1.
    """
    from difflib import get_close_matches  # only errors need it

    folded = {_fold(each): each for each in names}
    near = get_close_matches(_fold(name), folded, 1, cutoff)
    return folded[near[0]] if near else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` with the nearest name, to end a sentence; nothing if no name is near."""
    near = nearest(name, names)
    return "" if near is None else f"; did you mean {near!r}?"


def _fold(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")
