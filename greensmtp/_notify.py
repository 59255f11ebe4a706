"""Tell systemd how a service is doing: the protocol of ``sd_notify(3)``. Without systemd, nothing happens."""

from __future__ import annotations

import os
import socket as native
from time import clock_gettime_ns


def notify(state: str) -> bool:
    """Send a state to the service manager that started this process; return whether there is one.

    It never waits and never raises: a manager that does not read must not hold up a server.

    :param state: lines like ``READY=1``.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with native.socket(native.AF_UNIX, native.SOCK_DGRAM | native.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def ready(status: str) -> None:
    """The service is up, for the first time or after a reload.

    :param status: a line for ``systemctl status``.
    """
    notify(f"READY=1\nSTATUS={status}")


def reloading() -> None:
    """A reload begins; ``ready`` ends it. (``Type=notify-reload`` needs the time.)"""
    notify(f"RELOADING=1\nMONOTONIC_USEC={clock_gettime_ns(_MONOTONIC) // 1000}\nSTATUS=reloading")


def stopping(status: str = "letting transactions in progress finish") -> None:
    """The service drains."""
    notify(f"STOPPING=1\nSTATUS={status}")


_MONOTONIC = 1  # CLOCK_MONOTONIC, which time has on POSIX systems alone
