"""Tell systemd how a service is doing: the protocol of ``sd_notify(3)``. Without systemd, nothing happens."""

from __future__ import annotations

import os
import socket as native
from collections import deque
from time import clock_gettime_ns

#: Seconds between two attempts to send a state while the manager's socket is full.
RETRY_SECONDS = 1.0

#: States that could not be sent, the oldest first. They are kept because a start fails without READY=1.
_unsent: deque[str] = deque(maxlen=8)
os.register_at_fork(after_in_child=_unsent.clear)


def notify(state: str) -> bool:
    """Send a state to the service manager that started this process; return whether it has been sent.

    It never waits and never raises: a manager that does not read must not hold up a server.

    :param state: lines like ``WATCHDOG=1``.
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


def retry() -> None:
    """Send the states that could not be sent before, in order. Call it every ``RETRY_SECONDS``."""
    while _unsent and notify(_unsent[0]):
        _unsent.popleft()


def _tell(state: str) -> None:
    """Send a state that must arrive, after those that still wait to be sent."""
    if is_managed():
        _unsent.append(state)
        retry()


def is_managed() -> bool:
    """Return True if a service manager expects notifications."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def ready(status: str) -> None:
    """The service is up, for the first time or after a reload.

    :param status: a line for ``systemctl status``.
    """
    _tell(f"READY=1\nSTATUS={status}")


def reloading() -> None:
    """A reload begins; ``ready`` ends it. (``Type=notify-reload`` needs the time.)"""
    _tell(f"RELOADING=1\nMONOTONIC_USEC={clock_gettime_ns(_MONOTONIC) // 1000}\nSTATUS=reloading")


def stopping(status: str = "letting transactions in progress finish") -> None:
    """The service drains."""
    _tell(f"STOPPING=1\nSTATUS={status}")


_MONOTONIC = 1  # CLOCK_MONOTONIC, which time has on POSIX systems alone
