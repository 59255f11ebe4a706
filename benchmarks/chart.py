"""Draw one chart as SVG: bars of CPU per message, a panel for each of a few workloads."""

from __future__ import annotations

from html import escape

from benchmarks.contenders import CONTENDERS
from benchmarks.report import seconds
from benchmarks.results import Results
from benchmarks.workloads import WORKLOADS

#: The workloads to draw, from left to right.
PANELS = ("kept", "each", "big")

_NAMES, _PANEL, _VALUE, _GAP = 190, 150, 62, 14
_LINE, _BAR, _TOP, _BOTTOM = 24, 14, 48, 26

#: Readable on a light page and on a dark one.
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .note { font-size: 11px; fill: #6e7781 }
.floor { fill: #8c959f } .ours { fill: #1a7f37 } .peer { fill: #9cb8d9 }
@media (prefers-color-scheme: dark) {
  text { fill: #d1d7e0 } .note { fill: #9198a1 }
  .floor { fill: #656c76 } .ours { fill: #3fb950 } .peer { fill: #40618a }
}
"""

_KINDS = {"bare": "floor", "tuned": "floor", "plain": "ours", "full": "ours", "logging": "ours"} | {
    f"{name}_compiled": "ours" for name in ("plain", "full", "logging")
}


def draw(results: Results) -> str | None:
    """Return the chart, or None if none of its workloads was measured."""
    panels = [name for name in PANELS if results.samples.get(name)]
    servers = [name for name in CONTENDERS if any(results.median(panel, name, "cpu") for panel in panels)]
    if not servers:
        return None
    width = _NAMES + len(panels) * (_PANEL + _VALUE + _GAP)
    height = _TOP + len(servers) * _LINE + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img" aria-label="CPU a message, by server">',
        f"<style>{_STYLE}</style>",
        '<text class="title" x="8" y="18">CPU a message: less is better</text>',
    ]
    for row, server in enumerate(servers):
        y = _TOP + row * _LINE + _BAR - 2
        parts.append(f'<text x="{_NAMES - 10}" y="{y}" text-anchor="end">{escape(CONTENDERS[server].title)}</text>')
    for number, panel in enumerate(panels):
        parts += _panel(results, panel, servers, _NAMES + number * (_PANEL + _VALUE + _GAP))
    about = results.machine
    note = f"One core for the server, the load on another. {about['cpu']}, Python {about['python']}; medians."
    parts.append(f'<text class="note" x="8" y="{height - 8}">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(results: Results, workload: str, servers: list[str], x: int) -> list[str]:
    """Draw the bars of a workload, scaled to the longest."""
    parts = [f'<text class="title" x="{x}" y="38">{escape(WORKLOADS[workload].title)}</text>']
    values = {server: value for server in servers if (value := results.median(workload, server, "cpu")) is not None}
    most = max(values.values(), default=1.0)
    for row, server in enumerate(servers):
        if server in values:
            y = _TOP + row * _LINE
            length = max(1.0, values[server] / most * _PANEL)
            kind = _KINDS.get(server, "peer")
            parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>')
            parts.append(f'<text x="{x + length + 6:.1f}" y="{y + _BAR - 2}">{seconds(values[server])}</text>')
    return parts
