"""What a process has cost so far, out of /proc: nanoseconds of CPU, octets of memory."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """CPU of all its threads that live; to the nanosecond, where the kernel keeps the scheduler's statistics."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            if task.exists():
                return _cpu_ticks(pid)
    return nanoseconds / 1e9


def _cpu_ticks(pid: int) -> float:
    """The same in hundredths of a second, which every kernel has."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Octets that are this process's alone (USS): what would be free without it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


def forget_peak(pid: int) -> None:
    """Let ``peak_memory`` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(pid: int) -> int:
    """The most octets that were resident since the beginning, or since ``forget_peak``."""
    return _status(pid, "VmHWM")


def resident_memory(pid: int) -> int:
    """Octets that are resident now, as ``peak_memory`` counts them."""
    return _status(pid, "VmRSS")


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(field)
