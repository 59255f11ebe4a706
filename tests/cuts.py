"""Choose where tests cut a stream of bytes: the result must not depend on how the bytes arrive."""

from __future__ import annotations

import random
import re

#: How many places are drawn besides the interesting ones. The length of the bytes is the seed: each run cuts alike.
DRAWN = 20

_LINE_END_OR_DOT = re.compile(rb"\r\n\.?|[\r\n.]")


def interesting_cuts(wire: bytes, start: int, stop: int) -> list[int]:
    """Return the places where a reader may go wrong, and some that are drawn.

    Interesting are the first and the last place, and those before, within and after a line end or a dot at a line's
    beginning, and one further to each side.
    """
    places = {start, start + 1, stop - 2, stop - 1}
    for match in _LINE_END_OR_DOT.finditer(wire):
        if match[0] != b"." or match.start() == 0:
            places.update(range(match.start() - 1, match.end() + 2))
    places.update(random.Random(len(wire)).sample(range(start, stop), min(DRAWN, max(0, stop - start))))
    return sorted(place for place in places if start <= place < stop)
