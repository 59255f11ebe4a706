"""The machine: a core for the server, another for the load, and the programs there are."""

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
#: What is made on first use, or by running: the peers' environments, certificates, results.
WORK = ROOT / ".bench"

#: Where distributions hide what no user calls by hand.
_PLACES = ("/usr/sbin", "/usr/lib/postfix/sbin", "/usr/libexec/postfix", "/usr/local/sbin")

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = _CORES[0], _CORES[-1]


class Missing(Exception):
    """The machine lacks something; the text names it."""


def find(name: str) -> str:
    """A program's path.

    :raises Missing: it is not installed.
    """
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_PLACES)))
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def settle() -> None:
    """This process, and all that it starts, to the load's core; ahead of others where that is allowed; and as many
    descriptors as may be had."""
    os.sched_setaffinity(0, {LOAD_CORE})
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def on_server_core() -> Iterator[None]:
    """What is started in here stays on the server's core, with all threads that it will ever have."""
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})


def free_port() -> int:
    """One that nobody has just now, and that no client will be given as its own in the meantime."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def describe() -> dict[str, str]:
    """For the report."""
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
        "load before": f"{os.getloadavg()[0]:.1f} (above 0.5, others were at work too: take the ratios, not the times)",
    }
