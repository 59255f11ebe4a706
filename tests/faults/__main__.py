"""Run a fault, and print its figures: ``python -m tests.faults kill --full``."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys

from tests.faults.faults import FAULTS
from tests.faults.run import Fault, Run, Unavailable, run_fault

MODES = ("plain", "workers", "gunicorn")


def main() -> int:
    """Run the named faults; return 1 if a check has failed, 3 if a fault cannot be tried here."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("name", nargs="*", metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--list", action="store_true", help="list the faults, and what must hold")
    parser.add_argument("--full", action="store_true", help="as often and as long as docs/reliability says; else short")
    parser.add_argument("--mode", choices=MODES, default="plain", help="how the server runs (%(default)s)")
    parser.add_argument("--minutes", type=float, help="how long the soak runs")
    options = parser.parse_args()
    if unknown := set(options.name) - FAULTS.keys():
        parser.error(f"expected one of {', '.join(FAULTS)}; got {', '.join(sorted(unknown))}")
    if options.list or not options.name:
        for fault in FAULTS.values():
            print(f"{fault.name:12} {fault.does}\n{'':12} must: {fault.must}\n{'':12} modes: {', '.join(fault.modes)}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end like Ctrl-C, which leaves nothing behind
    status = 0
    for name in options.name:
        status = max(status, _run(FAULTS[name], options))
    return status


def _run(fault: Fault, options: argparse.Namespace) -> int:
    print(f"{fault.name}: {fault.does}")
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"  machine: {machine}, load before {os.getloadavg()[0]:.1f}", flush=True)
    try:
        if options.mode not in fault.modes:
            raise Unavailable(f"it is not tried in mode {options.mode}")
        run = run_fault(
            fault, full=options.full, mode=options.mode, minutes=options.minutes, verbose=sys.stderr.isatty()
        )
    except Unavailable as error:
        print(f"  cannot be tried here: {error}")
        return 3
    return _report(run)


def _report(run: Run) -> int:
    for name, value in run.figures.items():
        print(f"  {name:70} {value if isinstance(value, str) else _number(value):>12}")
    for what, detail in run.checks.items():
        print(f"  PASS  {what}" if detail is None else f"  FAIL  {what}: {detail}")
    return 1 if run.failures else 0


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if value < 10 else f"{value:,.1f}"


if __name__ == "__main__":
    sys.exit(main())
