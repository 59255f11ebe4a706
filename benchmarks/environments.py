"""The environments of the peers, created on first use in ``.bench/``: virtualenvs, node modules, a certificate.

Nothing is installed elsewhere. A peer that cannot be installed is named in the report and skipped.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine

PEERS = Path(__file__).resolve().parent / "peers"


class Certificate(NamedTuple):
    """Paths of PEM files."""

    cert: Path
    key: Path


@functools.cache
def python(name: str) -> str:
    """Return the interpreter of a virtual environment with the versions of ``peers/NAME.txt``.

    :raises Missing: the environment cannot be created.
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
    """Return the folder of node modules with the versions of ``package-lock.json`` in ``pins``.

    :raises Missing: they cannot be installed.
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


#: Where Debian keeps the sources of packages for Go, so that nothing is downloaded.
_GOPATH = Path("/usr/share/gocode")


@functools.cache
def go_smtp() -> str:
    """Build the server of ``peers/go_smtp``, and return its path.

    :raises Missing: Go or go-smtp is not installed, or it cannot be built.
    """
    if not (_GOPATH / "src" / "github.com" / "emersion" / "go-smtp").is_dir():
        raise machine.Missing("install golang-github-emersion-go-smtp-dev and golang-github-emersion-go-sasl-dev")
    source, binary = PEERS / "go_smtp" / "main.go", machine.WORK / "go_smtp"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        machine.WORK.mkdir(exist_ok=True)
        cache = str(machine.WORK / "go-cache")
        env = {"GO111MODULE": "off", "GOPATH": str(_GOPATH), "GOCACHE": cache, "GOFLAGS": "", "HOME": cache}
        _run("go-smtp's server", [machine.find("go"), "build", "-o", str(binary), str(source)], env=os.environ | env)
    return str(binary)


@functools.cache
def certificate() -> Certificate:
    """Create an ECDSA certificate of a throw-away authority, with its key."""
    import trustme

    files = Certificate(machine.WORK / "cert.pem", machine.WORK / "key.pem")
    machine.WORK.mkdir(exist_ok=True)
    issued = trustme.CA().issue_cert("mx.example.com", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(files.key))
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(files.cert), append=number > 0)
    return files


@functools.cache
def unpacked(package: str) -> str:
    """Return a folder with the unpacked content of a Debian package. It is not installed, so none of its daemons start.

    :raises Missing: it cannot be downloaded.
    """
    folder = machine.WORK / "debian"
    root = folder / package
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(f"a folder for {package}", [machine.find("apt-get"), "--quiet", "download", package], cwd=folder)
        file = next(folder.glob(f"{package}_*.deb"))
        _run(f"a folder for {package}", [machine.find("dpkg"), "-x", str(file), str(root)])
    return str(root)


def _run(what: str, command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    print(f"creating {what} ...", file=sys.stderr)
    try:
        ran = subprocess.run(
            command, check=False, cwd=cwd, env=env, timeout=300, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise machine.Missing(f"cannot create {what}: {error}") from error
    if ran.returncode:
        last = ran.stdout.decode(errors="replace").strip().splitlines() or ["no output"]
        raise machine.Missing(f"cannot create {what}: {last[-1]}")
