"""Cost curves: how CPU and memory grow with connections, recipients, bytes and so on.

``python -m benchmarks curves``: each cost is measured at sizes that are a power of ten apart, in CPU time of the
server, and must grow linearly or slower.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import curves_chart, curves_load, machine
from benchmarks.curves_fit import LINEAR, exponent
from benchmarks.report import seconds

#: Seconds after which no further group is begun.
MAX_SECONDS = 270.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """Curves that are measured together.

    :param quick: the sizes of a smoke run.
    """

    run: Callable[[Sequence[int]], curves_load.Points]
    sizes: tuple[int, ...]
    quick: tuple[int, ...]


GROUPS: Mapping[str, Group] = {
    "connections": Group(run=curves_load.connections, sizes=(1, 10, 100, 1_000, 10_000), quick=(10, 100)),
    "listeners": Group(run=curves_load.listeners, sizes=(1, 10, 30, 100), quick=(1, 10)),
    "middleware": Group(
        run=curves_load.messages("middleware", "middleware"), sizes=(1, 5, 10, 20, 50, 100), quick=(1, 10)
    ),
    "recipients": Group(run=curves_load.recipients, sizes=(1, 10, 100, 1_000), quick=(10, 100)),
    "sizes": Group(run=curves_load.sizes, sizes=tuple(10**power for power in range(3, 10)), quick=(10**5, 10**6)),
    "keys": Group(run=curves_load.keys, sizes=(1, 10, 100, 1_000, 10_000, 100_000), quick=(10, 100)),
    "handlers": Group(run=curves_load.messages("handlers", "handlers"), sizes=(1, 10, 50, 100, 200), quick=(10, 50)),
    "session_handlers": Group(
        run=curves_load.messages("session_handlers", "session_handlers"), sizes=(1, 10, 50, 100, 200), quick=(10, 50)
    ),
    "routes": Group(run=curves_load.messages("routes", "routes"), sizes=(1, 10, 100, 300, 1_000), quick=(10, 100)),
}

#: curve -> its title, the unit of its sizes (empty: bytes), and the unit of its cost
CURVES: Mapping[str, tuple[str, str, str]] = {
    "connect": ("Connecting, with EHLO", "connections", "s"),
    "memory": ("Memory of idle connections", "connections", "B"),
    "beside": ("A message beside idle ones", "connections", "s"),
    "top": ("A snapshot of greensmtp top", "connections", "s"),
    "listeners": ("Starting listeners", "listeners", "s"),
    "listeners_memory": ("Memory of listeners", "listeners", "B"),
    "middleware": ("A message by middleware", "middleware", "s"),
    "handlers": ("A message by signal handlers", "handlers", "s"),
    "session_handlers": ("The same, of one session", "handlers", "s"),
    "recipients": ("A message by recipients", "recipients", "s"),
    "lmtp": ("The same by LMTP", "recipients", "s"),
    "routes": ("A message by deliveries", "domains", "s"),
    "size": ("A message by size", "", "s"),
    "size_memory": ("Memory for it", "", "B"),
    "keys": ("Counting keys of a RateLimit", "keys", "s"),
    "with_keys": ("A message beside them", "keys", "s"),
}

#: curve -> an allowed exponent above LINEAR. Python's garbage collector visits all objects whenever a quarter of them
#: is new. Measured in one run, CPU of a connection with 1,000 and with 10,000: 66 and 77 us; with the
#: collector off 60 and 60 us.
ALLOWED: Mapping[str, float] = {"connect": 1.2}

Results = dict[str, dict[int, float]]


def run(groups: Sequence[str], *, quick: bool) -> tuple[Results, list[str]]:
    """Measure groups; return the results, and the groups that were skipped for lack of time."""
    results: Results = {}
    began = time.monotonic()
    left_out = []
    for name in groups:
        if time.monotonic() - began > MAX_SECONDS:
            left_out.append(name)
            continue
        group = GROUPS[name]
        for curve, size, cost in group.run(group.quick if quick else group.sizes):
            results.setdefault(curve, {})[size] = cost
    return results, left_out


def shown(curve: str, cost: float) -> str:
    """Return a cost as text."""
    if CURVES[curve][2] == "B":
        return octets(cost)
    return seconds(cost) if cost < 1 else f"{cost:.2f} s"


def octets(number: float) -> str:
    """Return a number of bytes as text."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"


def shown_size(curve: str, size: int) -> str:
    """Return a size as text."""
    return f"{size:,}" if CURVES[curve][1] else octets(size)


def panels(results: Results) -> list[curves_chart.Panel]:
    """Return the panels of the chart."""
    return [
        curves_chart.Panel(title, unit, results[curve], partial(shown, curve), partial(shown_size, curve))
        for curve, (title, unit, _) in CURVES.items()
        if curve in results
    ]


def report(results: Results) -> tuple[str, list[str]]:
    """Return a table, and the titles of the curves that grow faster than linearly."""
    lines, worse = [], []
    for curve, costs in results.items():
        title, unit, _ = CURVES[curve]
        slope = exponent(costs)
        is_worse = slope > ALLOWED.get(curve, LINEAR)
        verdict = "WORSE than linear" if is_worse else "linear or better" if slope <= LINEAR else "linear and GC"
        if is_worse:
            worse.append(f"{title} (by {unit or 'bytes'}): exponent {slope:.2f}")
        points = "  ".join(f"{shown_size(curve, size)}: {shown(curve, cost)}" for size, cost in costs.items())
        lines.append(f"{title:<30} {slope:5.2f}  {verdict:<17}  {points}")
    return "\n".join(lines), worse


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report and draw; return 1 if a cost grows faster than linearly, or was not measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks curves", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="GROUP,...", help=", ".join(GROUPS))
    parser.add_argument("--quick", action="store_true", help="two sizes of each curve, which proves nothing")
    parser.add_argument("--output", type=Path, default=machine.WORK / "curves.json", help="file for the JSON")
    parser.add_argument("--chart", type=Path, default=machine.WORK / "curves.svg", help="file for the chart")
    options = parser.parse_args(arguments)
    groups = options.only.split(",") if options.only else list(GROUPS)
    if unknown := [name for name in groups if name not in GROUPS]:
        parser.error(f"unknown group: {', '.join(unknown)}; choose from {', '.join(GROUPS)}")
    machine.settle()
    about = machine.describe()
    for line in about.items():
        print("{}: {}".format(*line))
    results, left_out = run(groups, quick=options.quick)
    text, worse = report(results)
    print(f"\n{text}\n")
    for file in (options.output, options.chart):
        file.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": about, "costs": results}, indent=1) + "\n")
    note = f"One core for the server, the load on another. {about['cpu']}, Python {about['python']}; medians."
    options.chart.write_text(curves_chart.draw(panels(results), note))
    print(f"Chart: {options.chart}")
    for each in worse:
        print(f"grows faster than linearly: {each}")
    for each in left_out:
        print(f"not measured, for lack of time: {each}")
    # A smoke run shows only that everything can be measured.
    return 1 if left_out or (worse and not options.quick) else 0
