"""CPU and memory of a process, from /proc."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all live threads: in nanoseconds if the kernel has the scheduler's statistics."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            if task.exists():
                return _cpu_ticks(pid)
    return nanoseconds / 1e9


def _cpu_ticks(pid: int) -> float:
    """Return the CPU time with a resolution of 10 ms, which every kernel supports."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_family(pid: int) -> float:
    """Return the CPU time of a process and of all its descendants, also of those that have ended."""
    parents: dict[int, list[int]] = {}
    ended: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        process = int(stat.parent.name)
        parents.setdefault(int(fields[1]), []).append(process)
        ended[process] = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    family = [pid]
    for each in family:
        family += parents.get(each, ())
    total = 0.0
    for each in family:
        try:
            total += cpu_seconds(each) + ended[each]
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended; its parent's times include it the next time
    return total


def memory(pid: int) -> int:
    """Return the bytes that only this process uses (USS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def forget_peak(pid: int) -> None:
    """Reset ``peak_memory``."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(pid: int) -> int:
    """Return the maximum of resident bytes since the start, or since ``forget_peak``."""
    return _status(pid, "VmHWM")


def resident_memory(pid: int) -> int:
    """Return the resident bytes, as ``peak_memory`` counts them."""
    return _status(pid, "VmRSS")


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(field)
