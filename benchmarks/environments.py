"""What the peers need, made on first use under ``.bench/``: virtual environments, node's modules, a certificate.

Nothing of it is installed anywhere else, and what cannot be had is named and skipped.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine

PEERS = Path(__file__).resolve().parent / "peers"


class Certificate(NamedTuple):
    """PEM files."""

    cert: Path
    key: Path


@functools.cache
def python(name: str) -> str:
    """The interpreter of a virtual environment with what ``peers/NAME.txt`` pins.

    :raises Missing: it could not be made.
    """
    folder = machine.WORK / name
    wanted = PEERS / f"{name}.txt"
    stamp = folder / ".made-of"
    interpreter = str(folder / "bin" / "python")
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        _run(f"an environment for {name}", [sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(f"an environment for {name}", [*pip, "--requirement", str(wanted)])
        stamp.write_text(wanted.read_text())
    return interpreter


@functools.cache
def node_modules(name: str = "node", pins: Path = PEERS) -> str:
    """The folder of node's modules, as the ``package-lock.json`` in ``pins`` pins them.

    :raises Missing: it could not be made.
    """
    folder = machine.WORK / name
    wanted = (pins / "package-lock.json").read_text()
    stamp = folder / ".made-of"
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        for each in ("package.json", "package-lock.json"):
            shutil.copy(pins / each, folder)
        quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        _run(f"node's modules for {name}", [machine.find("npm"), "ci", *quiet], cwd=folder)
        stamp.write_text(wanted)
    return str(folder / "node_modules")


@functools.cache
def certificate() -> Certificate:
    """A certificate (ECDSA) that nobody else trusts, with its key."""
    import trustme

    files = Certificate(machine.WORK / "cert.pem", machine.WORK / "key.pem")
    machine.WORK.mkdir(exist_ok=True)
    issued = trustme.CA().issue_cert("mx.example.com", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(files.key))
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(files.cert), append=number > 0)
    return files


def _run(what: str, command: list[str], cwd: Path | None = None) -> None:
    print(f"making {what} ...", file=sys.stderr)
    try:
        ran = subprocess.run(
            command, check=False, cwd=cwd, timeout=300, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise machine.Missing(f"could not make {what}: {error}") from error
    if ran.returncode:
        last = ran.stdout.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise machine.Missing(f"could not make {what}: {last[-1]}")
