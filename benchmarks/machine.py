"""The machine: a core for the server, another for the load, and the installed programs."""

from __future__ import annotations

import os
import platform
import random
import resource
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The folder of files that runs create: the peers' environments, certificates, results.
WORK = ROOT / ".bench"
#: The compiled build of greensmtp: make .compiled/.stamp.
COMPILED = ROOT / ".compiled" / "greensmtp"

#: Folders in which distributions install programs for administrators.
_PLACES = ("/usr/sbin", "/usr/lib/postfix/sbin", "/usr/libexec/postfix", "/usr/local/sbin")

#: Debian's packages of programs with another name.
_PACKAGES = {
    "dovecot": "dovecot-lmtpd",
    "go": "golang-go",
    "node": "nodejs",
    "smtp-sink": "postfix",
    "smtp-source": "postfix",
}

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = _CORES[0], _CORES[-1]
#: True if there are enough cores for two workers and the load.
ROOM_FOR_TWO = len(_CORES) >= 3


class Missing(Exception):
    """The machine lacks something; the text names it."""


def find(name: str) -> str:
    """Return a program's path.

    :raises Missing: it is not installed.
    """
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_PLACES)))
    if path is None:
        raise Missing(f"{name} is not installed: it is in Debian's {_PACKAGES.get(name, name)}")
    return path


def settle() -> None:
    """Pin this process and its children to the load's core, raise their priority if allowed, and raise the limit of
    descriptors to its maximum."""
    os.sched_setaffinity(0, {LOAD_CORE})
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def on_all_cores() -> Iterator[None]:
    """Let processes that are started in this block use every core."""
    os.sched_setaffinity(0, set(_CORES))
    try:
        yield
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})


@contextmanager
def on_server_core() -> Iterator[None]:
    """Pin processes that are started in this block, with their threads, to the server's core."""
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})


def free_port() -> int:
    """Return a free port outside the range that the kernel assigns to clients."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def describe() -> dict[str, str]:
    """Return facts about the machine for the report."""
    cpu = "unknown CPU"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
    return {
        "cpu": cpu,
        "cores": f"server on {SERVER_CORE}, load on {LOAD_CORE}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.1f} (above 0.5, other processes were running: compare ratios, not times)",
    }
