"""Draw the cost curves as SVG: small multiples with logarithmic axes, a panel for each curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.curves_fit import exponent

_COLUMNS = 4
_PANEL_WIDTH, _PANEL_HEIGHT = 225, 170
#: The area of the curve in its panel.
_LEFT, _TOP, _WIDTH, _HEIGHT = 14, 40, 150, 88
_HEAD, _FOOT = 46, 10

#: Readable on a light page and on a dark one.
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .note { font-size: 11px; fill: #6e7781 }
.frame { fill: none; stroke: #d0d7de } .linear { stroke: #8c959f; stroke-dasharray: 3 3 }
.curve { fill: none; stroke: #1a7f37; stroke-width: 2 } .dot { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
  text { fill: #d1d7e0 } .note { fill: #9198a1 }
  .frame { stroke: #3d444d } .linear { stroke: #656c76 }
  .curve { stroke: #3fb950 } .dot { fill: #3fb950 }
}
"""


@dataclass(frozen=True)
class Panel:
    """A curve.

    :param unit: the unit of the sizes.
    :param costs: size -> cost.
    :param show_cost: returns a cost as text; ``show_size``: a size.
    """

    title: str
    unit: str
    costs: Mapping[int, float]
    show_cost: Callable[[float], str]
    show_size: Callable[[int], str]


def draw(panels: Sequence[Panel], note: str) -> str:
    """Return the chart.

    :param note: the last line.
    """
    rows = -(-len(panels) // _COLUMNS)
    width, height = _COLUMNS * _PANEL_WIDTH + 16, _HEAD + rows * _PANEL_HEIGHT + _FOOT + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-label="Cost by size, one panel for each curve">',
        f"<style>{_STYLE}</style>",
        '<text class="title" x="8" y="18">Cost by size</text>',
        '<text class="note" x="8" y="36">Both axes are logarithmic. The dashed line is linear growth; a flatter curve'
        " grows more slowly. The exponent is that of the largest sizes.</text>",
    ]
    for number, panel in enumerate(panels):
        x, y = 8 + number % _COLUMNS * _PANEL_WIDTH, _HEAD + number // _COLUMNS * _PANEL_HEIGHT
        parts += _draw_panel(panel, x, y)
    parts.append(f'<text class="note" x="8" y="{height - 8}">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _draw_panel(panel: Panel, x: int, y: int) -> list[str]:
    """Draw a curve. Both axes have the same number of decades, so that linear growth is the diagonal."""
    costs = panel.costs
    points = [(math.log10(size), math.log10(cost)) for size, cost in sorted(costs.items())]
    span = max(points[-1][0] - points[0][0], max(b for _, b in points) - min(b for _, b in points))
    bottom = min(b for _, b in points)
    if points[-1][1] - bottom < span:  # flat curves lie low in the frame, not on its border
        bottom -= 0.1 * span

    def at(a: float, b: float) -> tuple[float, float]:
        across = (a - points[0][0]) / (points[-1][0] - points[0][0])
        up = (b - bottom) / (1.1 * span)
        return round(x + _LEFT + across * _WIDTH, 1), round(y + _TOP + _HEIGHT - up * _HEIGHT, 1)

    places = [at(*each) for each in points]
    last_a, last_b = points[-1]
    # Back along the linear line, to the left border or to the bottom, whatever comes first.
    back = min(last_a - points[0][0], last_b - bottom)
    (from_x, from_y), (to_x, to_y) = at(last_a - back, last_b - back), places[-1]
    sizes = sorted(costs)
    base = y + _TOP + _HEIGHT
    return [
        f'<text class="title" x="{x + _LEFT}" y="{y + 14}">{escape(panel.title)}</text>',
        f'<text class="note" x="{x + _LEFT}" y="{y + 30}">exponent {max(exponent(costs), 0):.2f}</text>',
        f'<rect class="frame" x="{x + _LEFT}" y="{y + _TOP}" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<line class="linear" x1="{from_x}" y1="{from_y}" x2="{to_x}" y2="{to_y}"/>',
        f'<polyline class="curve" points="{" ".join(f"{a},{b}" for a, b in places)}"/>',
        *(f'<circle class="dot" cx="{a}" cy="{b}" r="2.5"/>' for a, b in places),
        f'<text x="{to_x + 6}" y="{to_y + 4}">{escape(panel.show_cost(costs[sizes[-1]]))}</text>',
        # In the corner of the frame that curves rarely reach.
        f'<text class="note" x="{x + _LEFT + 5}" y="{y + _TOP + 14}">'
        f"from {escape(panel.show_cost(costs[sizes[0]]))}</text>",
        f'<text class="note" x="{x + _LEFT}" y="{base + 14}">{escape(panel.show_size(sizes[0]))}</text>',
        f'<text class="note" x="{x + _LEFT + _WIDTH}" y="{base + 14}" text-anchor="end">'
        f"{escape(f'{panel.show_size(sizes[-1])} {panel.unit}'.rstrip())}</text>",
    ]
