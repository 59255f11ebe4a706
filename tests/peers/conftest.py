"""Real programs at the other end: how they are found, and run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import find, need_capabilities


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Find a program: its path. Without it the test is skipped, or fails where all peers must be there."""
    return find


@pytest.fixture
def run(program: Callable[[str], str], tmp_path: Path) -> Callable[..., str]:
    """Run a program with arguments and an input, and without settings of anybody's; give all that it prints."""

    def run(name: str, *arguments: str | Path, stdin: bytes = b"", status: int = 0) -> str:
        path = program(name)
        need_capabilities(name, arguments)
        ran = subprocess.run(
            [path, *arguments],
            check=False,
            input=stdin,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=40,
        )
        output = ran.stdout.decode(errors="replace")
        assert ran.returncode == status, output[-4000:]
        return output

    return run
