"""Combine the snapshots of several processes: totals, rates and their history."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

#: Number of snapshots from which rates are computed, and of rates that are kept for the curve.
SPAN = 5
HISTORY = 30

#: The keys of a snapshot's ``totals`` that have rates.
RATES = ("connections", "messages", "bytes", "rejections")

#: Values of a snapshot that are added up over processes.
_SUMS = ("connections", "tls", "transactions", "messages_in_flight", "memory")


class Overview:
    """The last snapshots of a server's processes, and the rates of their counts."""

    def __init__(self) -> None:
        #: process ID -> its last snapshots
        self._snapshots: dict[int, deque[Mapping[str, Any]]] = {}
        #: The rates of all processes together, one value for each snapshot of the first process.
        self.history: dict[str, deque[float]] = {name: deque(maxlen=HISTORY) for name in RATES}

    def add(self, pid: int, snapshot: Mapping[str, Any]) -> None:
        """Add a snapshot of a process."""
        self._snapshots.setdefault(pid, deque(maxlen=SPAN)).append(snapshot)

    def keep(self, pids: Iterable[int]) -> None:
        """Forget the processes that have ended."""
        alive = {*pids}
        self._snapshots = {pid: its for pid, its in self._snapshots.items() if pid in alive}

    def mark(self) -> None:
        """Add the current rates to the history."""
        for name, rate in self._rates(2).items():
            self.history[name].append(rate)

    def _rates(self, span: int = SPAN) -> dict[str, float]:
        return dict(sum((Counter(_rates([*its][-span:])) for its in self._snapshots.values()), Counter()))

    def report(self) -> dict[str, Any]:
        """Return totals and rates of all processes together, and of each process."""
        newest = [its[-1] for its in self._snapshots.values()]
        no_rates = dict.fromkeys(RATES, 0.0)
        return {
            "total": {
                **{name: sum(each[name] for each in newest) for name in _SUMS},
                "lag": max((each["lag"] for each in newest), default=0.0),
                "cpu": sum(_cpu([*its]) for its in self._snapshots.values()),
                "seconds": max((each["seconds"] for each in newest), default=0.0),
                "totals": dict(sum((Counter(each["totals"]) for each in newest), Counter())),
                "rates": no_rates | self._rates(),
                "senders": _merge((each["senders"] for each in newest), 1),
                "peers": _merge((each["peers"] for each in newest), 1),
                "rejections": _merge((each["rejections"] for each in newest), 3),
                "sessions": [{"pid": each["pid"], **session} for each in newest for session in each["sessions"]],
            },
            "processes": [
                {
                    **{name: its[-1][name] for name in ("pid", "listeners", "lag", *_SUMS)},
                    "cpu": _cpu([*its]),
                    "rates": no_rates | _rates([*its]),
                }
                for its in self._snapshots.values()
            ],
        }


def _rates(snapshots: list[Mapping[str, Any]]) -> dict[str, float]:
    """Return the growth of each count per second."""
    first, last = snapshots[0], snapshots[-1]
    seconds = last["time"] - first["time"]
    if seconds <= 0:
        return {}
    return {name: max(0.0, last["totals"][name] - first["totals"][name]) / seconds for name in RATES}


def _cpu(snapshots: list[Mapping[str, Any]]) -> float:
    """Return the share of one core that a process has used."""
    first, last = snapshots[0], snapshots[-1]
    seconds = last["time"] - first["time"]
    return max(0.0, last["cpu"] - first["cpu"]) / seconds if seconds > 0 else 0.0


def _merge(tables: Iterable[list[list[Any]]], keys: int) -> list[list[Any]]:
    """Add up the rows with the same keys, and sort them, the largest first."""
    added: dict[tuple[Any, ...], list[int]] = {}
    for row in [row for table in tables for row in table]:
        key, amounts = tuple(row[:keys]), row[keys:]
        known = added.get(key)
        added[key] = amounts if known is None else [a + b for a, b in zip(known, amounts, strict=True)]
    return sorted(([*key, *amounts] for key, amounts in added.items()), key=lambda row: -sum(row[keys : keys + 2]))
