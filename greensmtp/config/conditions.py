"""Conditions on a middleware in a configuration file: ``only = ["outside:10.0.0.0/8", "not over_tls"]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from operator import and_

from greensmtp._suggest import did_you_mean
from greensmtp.predicates import Predicate, authenticated, inside, outside, over_tls, unauthenticated

_PLAIN = {"authenticated": authenticated, "unauthenticated": unauthenticated, "over_tls": over_tls}
_OF_NETWORKS: dict[str, Callable[..., Predicate]] = {"inside": inside, "outside": outside}

HELP = '"authenticated", "unauthenticated", "over_tls", "inside:192.0.2.0/24,2001:db8::/32,unix", "outside:..."'


def read_condition(text: str) -> Predicate:
    """Return the predicate for one condition; ``not`` in front negates it.

    :raises ValueError: there is no such condition; the text names the nearest one, or all of them.
    """
    text = text.strip()
    condition = _read(text.removeprefix("not ").lstrip())
    return ~condition if text.startswith("not ") else condition


def _read(text: str) -> Predicate:
    name, colon, networks = text.partition(":")
    if colon and name in _OF_NETWORKS:
        return _OF_NETWORKS[name](*(network.strip() for network in networks.split(",")))
    if not colon and name in _PLAIN:
        return _PLAIN[name]
    names = (*_PLAIN, *_OF_NETWORKS)
    hint = "" if name in names else did_you_mean(name, names)
    raise ValueError(f"there is no condition {text!r}{hint or f': write {HELP}'}")


def all_of(texts: Iterable[str]) -> Predicate | None:
    """Return a predicate that requires all of the conditions; None if there are none."""
    conditions = [*map(read_condition, texts)]
    return reduce(and_, conditions) if conditions else None
