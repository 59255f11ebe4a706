"""Run pyright over ``tests/typing``: ``python -m tests.pyright``, as ``make types`` does.

It is an npm package, pinned by ``tests/typing/package-lock.json`` and installed on first use under ``.bench/``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent / "typing"


def marked() -> set[tuple[str, int]]:
    """Return the file and the line of each error that a type checker must report."""
    return {
        (program.name, number)
        for program in PROGRAMS.glob("*.py")
        for number, line in enumerate(program.read_text().splitlines(), 1)
        if line.endswith("# error")
    }


def errors(program: Path) -> set[tuple[str, int]]:
    """Return the file and the line of each error that pyright reports."""
    command: list[str | Path] = [program, "--outputjson", "--project", PROGRAMS, "--pythonpath", sys.executable]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=50)
    result = json.loads(ran.stdout)
    assert result["summary"]["filesAnalyzed"] == len(list(PROGRAMS.glob("*.py"))), result["summary"]
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in result["generalDiagnostics"]
        if each["severity"] == "error"
    }


def main() -> str | None:
    """Compare, and print what differs; return why the exit status is 1.

    Without npm, pyright is skipped; in CI (``GREENSMTP_REQUIRE_PEERS=1``), that is a failure.
    """
    # Not at the top: pytest, which imports this module too, does not find the folder.
    from benchmarks import environments, machine

    try:
        modules = environments.node_modules("pyright", PROGRAMS)
    except machine.Missing as missing:
        if os.environ.get("GREENSMTP_REQUIRE_PEERS") == "1":
            return f"pyright: {missing}"
        print(f"pyright: skipped, since {missing}")
        return None
    found, wanted = errors(Path(modules, ".bin", "pyright")), marked()
    for what, places in (("reported, but not marked", found - wanted), ("marked, but not reported", wanted - found)):
        for file, number in sorted(places):
            print(f"tests/typing/{file}:{number}: {what}")
    if found != wanted:
        return "pyright: the programs have other errors than those marked"
    print(f"pyright: reported the {len(wanted)} marked errors in the programs, and no other")
    return None


if __name__ == "__main__":
    sys.exit(main())
