"""Where a middleware applies, as a file says it: ``only = ["outside:10.0.0.0/8", "not over_tls"]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from greensmtp._suggest import did_you_mean
from greensmtp.predicates import Predicate, authenticated, inside, outside, over_tls, unauthenticated

_PLAIN = {"authenticated": authenticated, "unauthenticated": unauthenticated, "over_tls": over_tls}
_OF_NETWORKS: dict[str, Callable[..., Predicate]] = {"inside": inside, "outside": outside}

HELP = '"authenticated", "unauthenticated", "over_tls", "inside:192.0.2.0/24,2001:db8::/32,unix", "outside:..."'


def read_condition(text: str) -> Predicate:
    """One condition; ``not`` in front of it turns it round.

    :raises ValueError: there is no such condition; the text names the nearest, or all.
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
    """Every one of them must hold; None where there is none."""
    whole: Predicate | None = None
    for text in texts:
        condition = read_condition(text)
        whole = condition if whole is None else whole & condition
    return whole
