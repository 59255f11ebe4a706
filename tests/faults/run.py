"""One run of a fault: its size, its folder, what it has measured, and which checks have failed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic


class Unavailable(Exception):
    """The fault cannot be tried here; the text says what is missing."""


class NotPermitted(Unavailable):
    """This user, or this container, may not do what the fault needs."""


@dataclass
class Run:
    """What a fault is given, and what it reports."""

    folder: Path
    #: The form that docs/reliability quotes; otherwise the short one, of a few seconds.
    full: bool = False
    mode: str = "plain"
    minutes: float | None = None
    #: Print progress to standard error.
    verbose: bool = False
    figures: dict[str, float | str] = field(default_factory=dict)
    #: What must hold -> the detail of its first failure; None: it has held each time.
    checks: dict[str, str | None] = field(default_factory=dict)
    cleanup: ExitStack = field(default_factory=ExitStack)
    _shown_at: float = 0.0

    def size(self, short: int, full: int) -> int:
        """Return how many there are in this form."""
        return full if self.full else short

    def figure(self, name: str, value: float | str) -> None:
        """Report a measured figure."""
        self.figures[name] = value

    def worst(self, name: str, value: float) -> None:
        """Report a figure that is measured several times; the greatest counts."""
        self.figures[name] = max(value, float(self.figures.get(name, value)))

    def check(self, what: str, holds: bool, detail: object = "") -> None:
        """Report whether something holds that must; once it has failed, it has failed."""
        if self.checks.setdefault(what, None) is None and not holds:
            self.checks[what] = str(detail)

    def progress(self, done: float, of: float, what: str = "") -> None:
        """Show how far the run has come."""
        if not self.verbose or (monotonic() - self._shown_at < 0.2 and done < of):
            return
        self._shown_at = monotonic()
        bar = "#" * int(30 * done / of)
        end = "\n" if done >= of else ""
        print(f"\r[{bar:30}] {done:g}/{of:g} {what:40}", end=end, file=sys.stderr, flush=True)

    @property
    def failures(self) -> list[str]:
        """The checks that have failed, each with its detail."""
        return [f"{what}: {detail}" for what, detail in self.checks.items() if detail is not None]


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    name: str
    does: str
    must: str
    run: Callable[[Run], None]
    #: The ways to run ``serve`` in which it is tried.
    modes: tuple[str, ...] = ("plain",)


def run_fault(fault: Fault, *, full: bool, mode: str, minutes: float | None, verbose: bool) -> Run:
    """Run a fault in a temporary folder, and return the run.

    :raises Unavailable: the machine lacks something that it needs.
    """
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        run = Run(Path(folder), full, mode, minutes, verbose)
        with run.cleanup:
            fault.run(run)
    return run
