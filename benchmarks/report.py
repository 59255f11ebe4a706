"""Tables for the terminal: a workload's medians with their ratios to the floor, and the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest

from benchmarks.contenders import CONTENDERS, SPECIAL
from benchmarks.results import Results
from benchmarks.targets import TARGETS
from benchmarks.workloads import WORKLOADS

Format = Callable[[float], str]


def seconds(value: float) -> str:
    """Return seconds as text: 61.3 us, 4.20 ms."""
    return f"{value * 1e6:.1f} us" if value < 1e-3 else f"{value * 1e3:.2f} ms"


def size(value: float) -> str:
    """Return bytes as text: 9.4 kB, 1.2 MB."""
    return f"{value / 1e3:.1f} kB" if abs(value) < 1e6 else f"{value / 1e6:.1f} MB"


#: metric -> column title and format; any other metric is a CPU time with its name as the title
COLUMNS: dict[str, tuple[str, Format]] = {
    "cpu": ("CPU", seconds),
    "cpu_single": ("CPU, one by one", seconds),
    "rate": ("messages/s", "{:,.0f}".format),
    "rate_1": ("1: messages/s", "{:,.0f}".format),
    "cpu_1": ("1: CPU", seconds),
    "rate_100": ("100: messages/s", "{:,.0f}".format),
    "cpu_100": ("100: CPU", seconds),
    "rate_single": ("one by one", "{:,.0f}".format),
    "capacity": ("a core each", "{:,.0f}/s".format),
    "gain": ("gain", "{:.2f}x".format),
    "memory": ("memory each", size),
    "newcomer": ("a new client", seconds),
    "grown": ("grows by", size),
    "p50": ("p50", seconds),
    "p95": ("p95", seconds),
    "p99": ("p99", seconds),
    "max": ("longest", seconds),
    "p50_without": ("p50 without", seconds),
    "p99_without": ("p99 without", seconds),
}


#: Servers with a column of ratios to them, besides the ratio to the first: the minimum in Python and in C.
_FLOORS = {"tuned": "to tuned", "sink": "to smtp-sink"}


def title(server: str) -> str:
    """Return a server's name in tables."""
    contender = CONTENDERS.get(server) or SPECIAL.get(server)
    return contender.title if contender else server


def tables(results: Results) -> Iterator[str]:
    """Return a table for each workload."""
    for workload in results.samples | results.skipped:
        yield table(results, workload)


def table(results: Results, workload: str) -> str:
    """Return the table of a workload: a line for each server, with its ratio to the first one's."""
    servers = results.samples.get(workload, {})
    metrics = results.metrics(workload) if servers else []
    head = [WORKLOADS[workload].title, *(COLUMNS.get(name, (name, seconds))[0] for name in metrics)]
    if len(servers) > 1:
        head.insert(2, "ratio")
    lines = [head]
    base: float | None = None
    floors = {each: value for each in _FLOORS if metrics and (value := results.median(workload, each, metrics[0]))}
    head[3:3] = [_FLOORS[each] for each in floors]
    for server in servers:
        values = [results.median(workload, server, name) for name in metrics]
        cells = [
            "" if value is None else COLUMNS.get(name, (name, seconds))[1](value)
            for name, value in zip(metrics, values, strict=True)
        ]
        if len(servers) > 1:
            base = values[0] if base is None else base
            cells.insert(1, f"{values[0] / base:.2f}x" if base and values[0] is not None else "")
        cells[2:2] = [f"{values[0] / floor:.2f}x" if values[0] is not None else "" for floor in floors.values()]
        lines.append([f"  {title(server)}", *cells])
    notes = [f"  {title(server)}: skipped: {why}" for server, why in results.skipped.get(workload, {}).items()]
    return "\n".join([*aligned(lines), *notes])


def targets(results: Results) -> tuple[str, bool]:
    """Return the table of targets, and True if no measured target is missed."""
    lines = [["Targets", "must", "measured", ""]]
    all_met = True
    for target in TARGETS:
        value = target.measured(results)
        sign = ">=" if target.at_least else "<="
        must = f"{sign} {target.bound:g}{target.unit}"
        if value is None:
            lines.append([f"  {target.what}", must, "-", "not measured"])
            continue
        met = target.met(value)
        all_met = all_met and met
        lines.append([f"  {target.what}", must, f"{value:.2f}{target.unit}", "met" if met else "MISSED"])
    return "\n".join(aligned(lines)), all_met


def aligned(lines: list[list[str]]) -> list[str]:
    """Align the first column to the left, and the others to the right."""
    widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    ]
