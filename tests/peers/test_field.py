"""``python -m tests.field`` replays the corpus against servers in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.subprocess
def test_greensmtp_passes_every_dialogue_that_applies() -> None:
    command = [sys.executable, "-m", "tests.field", "--only", "greensmtp", "--verbose"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=55)
    assert ran.returncode == 0, ran.stderr
    table, differences = ran.stdout.split("\n\n")
    passed, _, applied = table.splitlines()[-1].removeprefix("| **all** | **").removesuffix("** |").split(" ")
    assert passed == applied, ran.stdout
    assert int(passed) > 140
    assert len(differences.splitlines()) == 2, differences
