"""Every cut of an input, for the parts of the protocol that take bytes as they come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

#: What the fixture ``every_cut`` gives: bytes -> all lists of pieces to be tried.
EveryCut = Callable[[bytes], Iterator[list[bytes]]]

#: Bytes up to which an input is cut at every pair of places too.
SHORT = 80


def cut_at(wire: bytes, *places: int) -> list[bytes]:
    """Cut bytes at these places, which are in order."""
    return [wire[start:end] for start, end in itertools.pairwise((0, *places, len(wire)))]


def cuts_of(wire: bytes) -> Iterator[list[bytes]]:
    """Yield the input whole, byte by byte, cut at every place, and, if it is short, at every pair of places."""
    yield [wire]
    yield [wire[index : index + 1] for index in range(len(wire))]
    for place in range(1, len(wire)):
        yield cut_at(wire, place)
    if len(wire) <= SHORT:
        for first, second in itertools.combinations(range(1, len(wire)), 2):
            yield cut_at(wire, first, second)


@pytest.fixture(scope="session")
def every_cut() -> EveryCut:
    """Give all ways to cut an input that are worth trying."""
    return cuts_of
