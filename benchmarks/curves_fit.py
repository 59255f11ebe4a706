"""Determine how a cost grows: fit the exponent of a power law to its largest sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

#: The exponent up to which a cost counts as linear: for a size ten times larger, it may grow by a quarter more than ten
#: times, since memory that no longer fits the caches is slower.
LINEAR = 1.1

#: The exponent is fitted to the sizes within this factor of the largest: at smaller ones, constant costs hide it.
DECADE = 10


def exponent(costs: Mapping[int, float]) -> float:
    """Return the slope of the regression line of log(cost) over log(size): 1 is linear, 2 quadratic.

    :param costs: size -> cost.
    :raises ValueError: there are fewer than two sizes within a factor of ten, or a cost is not positive.
    """
    largest = max(costs, default=0)
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items() if size * DECADE >= largest]
    if len(points) < 2:
        raise ValueError(f"expected costs at two sizes within a factor of ten; got {len(points)}")
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def is_linear(costs: Mapping[int, float]) -> bool:
    """Return whether a cost grows linearly or slower."""
    return exponent(costs) <= LINEAR
