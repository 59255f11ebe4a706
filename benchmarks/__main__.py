"""The command line: choose, run in interleaved rounds, report."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import chart, curves, machine, report
from benchmarks.contenders import CONTENDERS, SPECIAL, add_before
from benchmarks.results import Results
from benchmarks.workloads import WORKLOADS, Subject, Workload

#: What a smoke run measures by default.
QUICK = {"only": ("kept", "each", "pipelined", "big"), "servers": ("bare", "tuned", "plain", "full", "sink")}

#: Failures of one server, after which the others are still measured.
FAILURES = (machine.Missing, RuntimeError, OSError, TimeoutError)


def names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argument type: names from ``known``, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        given = tuple(text.split(","))
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown name: {', '.join(unknown)}; choose from {', '.join(known)}")
        return given

    return parse


class Bench:
    """One run: workload by workload, in each of them round by round, in each of them server by server."""

    def __init__(self, *, quick: bool, rounds: int, servers: Sequence[str] | None) -> None:
        self.quick = quick
        self.rounds = rounds
        self.servers = servers
        self.results = Results(machine.describe())

    def measure(self, name: str) -> None:
        """Run one workload, and add it to the results."""
        workload = WORKLOADS[name]
        known = CONTENDERS | SPECIAL
        before = [f"{each}-before" for each in workload.servers if f"{each}-before" in known]
        subjects = [each for each in (*workload.servers, *before) if self._wanted(each)]
        rounds = min(self.rounds, workload.rounds or self.rounds)
        with ExitStack() as stack:
            running: dict[str, Subject] = {}
            if not workload.fresh:
                for each in subjects:
                    if (subject := self._start(name, workload, each, stack)) is not None:
                        running[each] = subject
            # One more round to warm up, which is not counted; not for workloads with new processes in each round.
            for number in range(0 if not workload.fresh else 1, rounds + 1):
                for each in subjects if workload.fresh else list(running):
                    progress(f"{name}: round {number} of {rounds}, {each}")
                    if workload.fresh:
                        with ExitStack() as once:
                            if (subject := self._start(name, workload, each, once)) is not None:
                                self._round(name, workload, subject, number)
                    elif not self._round(name, workload, running[each], number):
                        del running[each]
        progress("")

    def _wanted(self, server: str) -> bool:
        """Return whether a server is measured; subjects that are not contenders always are."""
        return self.servers is None or server.removesuffix("-before") in self.servers or server not in CONTENDERS

    def _start(self, name: str, workload: Workload, server: str, stack: ExitStack) -> Subject | None:
        if server in self.results.skipped.get(name, {}):
            return None
        try:
            subject = workload.start(server, workload.tls)
        except FAILURES as error:
            self.results.skip(name, server, str(error))
            return None
        stack.callback(subject.stop)
        return subject

    def _round(self, name: str, workload: Workload, subject: Subject, number: int) -> bool:
        """Run one round; return False if it failed."""
        count = workload.quick if self.quick or number == 0 else workload.count
        try:
            sample = workload.run(subject, count)
        except FAILURES as error:
            self.results.skip(name, subject.name, f"fails: {error}; {subject.last_words}".rstrip("; "))
            return False
        if number:
            self.results.add(name, subject.name, sample)
        return True


def progress(text: str) -> None:
    """Show a line of progress on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark; return the exit status: 1 if ``--check`` is given and a target is missed."""
    if sys.argv[1:2] == ["curves"]:
        return curves.main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__.splitlines()[0],
        epilog="`python -m benchmarks curves` measures how costs grow instead.",
    )
    parser.add_argument("--only", type=names(tuple(WORKLOADS)), metavar="WORK,...", help=", ".join(WORKLOADS))
    parser.add_argument("--servers", type=names(tuple(CONTENDERS)), metavar="NAME,...", help=", ".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, help="counted rounds of each workload (5; 1 when quick)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few workloads, which proves nothing")
    parser.add_argument(
        "--check", action="store_true", help="exit with status 1 if a target is missed, or a greensmtp server fails"
    )
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="also measure greensmtp of this checkout, which needs a .venv"
    )
    parser.add_argument("--output", type=Path, default=machine.WORK / "results.json", help="file for the JSON")
    parser.add_argument("--chart", type=Path, default=machine.WORK / "chart.svg", help="file for the chart")
    options = parser.parse_args()
    if options.quick:
        options.only = options.only or QUICK["only"]
        options.servers = options.servers or QUICK["servers"]
    if options.before:
        try:
            add_before(options.before)
        except ValueError as error:
            parser.error(str(error))
    machine.settle()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then, too
    bench = Bench(quick=options.quick, rounds=options.rounds or (1 if options.quick else 5), servers=options.servers)
    results = bench.results
    for line in results.machine.items():
        print("{}: {}".format(*line))
    for name in options.only or WORKLOADS:
        bench.measure(name)
        print(f"\n{report.table(results, name)}", flush=True)
    text, all_met = report.targets(results)
    print(f"\n{text}")
    results.save(options.output)
    print(f"\nAll samples: {options.output}")
    if (drawn := chart.draw(results)) is not None:
        options.chart.write_text(drawn)
        print(f"Chart: {options.chart}")
    return 1 if options.check and (results.failed or not all_met) else 0


if __name__ == "__main__":
    sys.exit(main())
