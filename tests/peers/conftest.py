"""Find and run real programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import find, need_capabilities


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Return a function that finds a program; without it, the test is skipped, or fails if all peers are required."""
    return find


@pytest.fixture
def run(program: Callable[[str], str], tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a program without the user's settings, and returns its output."""

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
