"""Find and run real programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers.postfix import Postfix
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


@pytest.fixture
def postfix() -> Iterator[Callable[..., Postfix]]:
    """Return a function that starts postfix with settings in ``main.cf``; stop it at the end."""
    # Its processes run as another user, which may not enter pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    folder.chmod(0o755)
    running: list[Postfix] = []

    def start(**settings: str) -> Postfix:
        running.append(Postfix(folder, **settings))
        return running[-1]

    yield start
    for each in running:
        each.stop()
    shutil.rmtree(folder)
