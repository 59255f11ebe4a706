"""Types help users: good programs pass mypy and pyright, and each mistake in a bad one is reported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from greensmtp.server.limits import Limits, LimitsDict

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "tests" / "typing"


def mypy(*programs: Path) -> set[tuple[str, int]]:
    """Return the file and the line of each error."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *map(str, programs)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert result.returncode < 2, result.stdout + result.stderr
    found = (re.match(r"(.+?):(\d+): error:", line) for line in result.stdout.splitlines())
    return {(Path(each[1]).name, int(each[2])) for each in found if each}


def pyright(*programs: Path) -> set[tuple[str, int]]:
    """Return the file and the line of each error."""
    program = shutil.which("pyright")
    if program is None:
        pytest.skip("pyright is not installed")
    command = [program, "--outputjson", "--pythonpath", sys.executable, *map(str, programs)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    found = json.loads(result.stdout)["generalDiagnostics"]
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in found if each["severity"] == "error"
    }


@pytest.mark.parametrize("check", [mypy, pyright])
def test_each_mistake_in_a_program_is_reported_and_nothing_else(check: object) -> None:
    assert callable(check)
    programs = sorted(PROGRAMS.glob("*.py"))
    marked = {
        (program.name, number)
        for program in programs
        for number, line in enumerate(program.read_text().splitlines(), 1)
        if line.endswith("# error")
    }
    assert len(marked) > 20
    assert check(*programs) == marked


def test_the_keywords_of_limits_are_its_fields() -> None:
    assert get_type_hints(LimitsDict) == {each.name: get_type_hints(Limits)[each.name] for each in fields(Limits)}
