"""The results of a run: samples by workload and server, and their medians."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.workloads import Sample

#: The servers that may not be skipped.
OURS = frozenset({"plain", "full", "logging", "slow", "pipe", "storing", "relay", "workers_1", "workers_2"})


@dataclass
class Results:
    """All samples of a run, and the servers that were skipped, with the reasons."""

    machine: Mapping[str, str] = field(default_factory=dict)
    #: workload -> server -> samples, without warm-up
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    #: workload -> server -> reason
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, workload: str, server: str, sample: Sample) -> None:
        """Add the sample of one round."""
        self.samples.setdefault(workload, {}).setdefault(server, []).append(sample)

    def skip(self, workload: str, server: str, why: str) -> None:
        """Note that a server cannot be measured, or fails, and drop its samples."""
        self.skipped.setdefault(workload, {})[server] = why
        self.samples.get(workload, {}).pop(server, None)

    @property
    def failed(self) -> bool:
        """True if a greensmtp server was skipped, so that its targets are not met."""
        return any(server in OURS for servers in self.skipped.values() for server in servers)

    def median(self, workload: str, server: str, metric: str) -> float | None:
        """Return the median of a metric, or None if there are no samples."""
        values = [each[metric] for each in self.samples.get(workload, {}).get(server, ()) if metric in each]
        return statistics.median(values) if values else None

    def metrics(self, workload: str) -> list[str]:
        """Return a workload's metrics, in the order in which its function returns them."""
        return list(dict.fromkeys(name for those in self.samples[workload].values() for each in those for name in each))

    def save(self, path: Path) -> None:
        """Write all results as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        medians = {
            workload: {
                server: {metric: self.median(workload, server, metric) for metric in self.metrics(workload)}
                for server in servers
            }
            for workload, servers in self.samples.items()
        }
        document = {
            "machine": self.machine,
            "medians": medians,
            "samples": self.samples,
            "skipped": self.skipped,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
