"""Types help users: good programs pass mypy and pyright, and each mistake in a bad one is reported."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from greensmtp.server.limits import Limits, LimitsDict
from tests.programs import missing
from tests.pyright import PROGRAMS, marked

ROOT = Path(__file__).parent.parent


def mypy(*programs: Path) -> set[tuple[str, int]]:
    """Return the file and the line of each error."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *map(str, programs)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert result.returncode < 2, result.stdout + result.stderr
    found = (re.match(r"(.+?):(\d+): error:", line) for line in result.stdout.splitlines())
    return {(Path(each[1]).name, int(each[2])) for each in found if each}


@pytest.mark.subprocess
def test_mypy_reports_each_mistake_in_the_programs_and_nothing_else() -> None:
    assert len(marked()) > 20
    assert mypy(*sorted(PROGRAMS.glob("*.py"))) == marked()


@pytest.mark.subprocess
def test_pyright_reports_each_mistake_in_the_programs_and_nothing_else() -> None:
    command = [sys.executable, "-m", "tests.pyright"]
    ran = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=55
    )
    if "pyright: skipped" in ran.stdout:
        missing(ran.stdout)
    assert ran.returncode == 0, ran.stdout


def test_the_keywords_of_limits_are_its_fields() -> None:
    assert get_type_hints(LimitsDict) == {each.name: get_type_hints(Limits)[each.name] for each in fields(Limits)}
