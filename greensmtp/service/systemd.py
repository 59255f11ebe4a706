"""systemd's interface for services: passed listening sockets, and the watchdog."""

from __future__ import annotations

import os
import socket as native
from collections.abc import Iterator
from contextlib import contextmanager

from gevent import get_hub, socket

from greensmtp import _notify
from greensmtp._log import logger
from greensmtp.server.run import notifications_retried
from greensmtp.service.errors import StartError

#: The first passed descriptor (``sd_listen_fds(3)``).
FIRST = 3


def inherited_sockets() -> list[socket.socket]:
    """Return the listening sockets that systemd has passed to this process, and forget them in the environment.

    As in ``sd_listen_fds(3)``, they belong only to the process with the ID in ``LISTEN_PID``. If another program that
    systemd has activated starts this one, its variables may be inherited, but not its sockets.

    :raises StartError: ``LISTEN_FDS`` is not a number, or a descriptor is not a listening stream socket.
    """
    number, pid = os.environ.pop("LISTEN_FDS", None), os.environ.pop("LISTEN_PID", None)
    os.environ.pop("LISTEN_FDNAMES", None)
    if number is None:
        return []
    if pid != str(os.getpid()):
        given = "there is no LISTEN_PID" if pid is None else f"LISTEN_PID is {pid!r}"
        logger.warning("ignoring LISTEN_FDS: %s, but the ID of this process is %d", given, os.getpid())
        return []
    if not number.isdecimal():
        raise StartError(f"expected a number of sockets in LISTEN_FDS; got {number!r}")
    return [_adopt(descriptor) for descriptor in range(FIRST, FIRST + int(number))]


def _adopt(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        with native.socket(fileno=os.dup(descriptor)) as probe:
            listens = probe.getsockopt(native.SOL_SOCKET, native.SO_ACCEPTCONN)
            family, kind = probe.family, probe.type
    except OSError as error:
        raise StartError(f"descriptor {descriptor}, passed by LISTEN_FDS, is no socket: {error.strerror}") from None
    if kind != native.SOCK_STREAM or not listens:
        raise StartError(f"descriptor {descriptor}, passed by LISTEN_FDS, is no listening stream socket")
    found: socket.socket = socket.socket(family, kind, fileno=descriptor)
    return found


@contextmanager
def notifying() -> Iterator[None]:
    """Retry notifications to systemd, and tell its watchdog that the hub runs, while the block runs."""
    with notifications_retried(), _watchdog():
        yield


@contextmanager
def _watchdog() -> Iterator[None]:
    """Tell systemd's watchdog that the hub runs, if the unit has ``WatchdogSec=``. A blocked hub does not."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or not int(microseconds) or (pid is not None and pid != str(os.getpid())):
        yield
        return
    seconds = int(microseconds) / 1e6 / 2
    timer = get_hub().loop.timer(seconds, repeat=seconds)
    timer.start(_notify.notify, "WATCHDOG=1")
    logger.debug("telling the watchdog every %g s that the hub runs", seconds)
    try:
        yield
    finally:
        timer.stop()
        timer.close()
