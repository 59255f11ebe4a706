"""LoadShed: refuse new mail while the server is overloaded or out of disk space.

How it works. One sampler for each hub measures for all LoadSheds of its servers, with a timer: the hub's lag every
``INTERVAL``, memory and stores every ``SLOW_INTERVAL`` in the thread pool. A LoadShed keeps the
current problems in ``reasons``. A command only tests whether there are any.

Rules of this file:

- One measurement near a limit does not add or remove a reason. The hub must be late twice within ``LATE_SECONDS``, and
  then on time for ``QUIET_SECONDS``. Memory and disk space must exceed the limit by 5 %.
- A failed measurement is a reason too: a store whose file system fails or does not answer cannot store anything.
- Each change of the reasons is one line in the log.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from time import monotonic
from typing import Any, ClassVar

from gevent import get_hub, spawn

from greensmtp import health
from greensmtp.chain.chain import Proceed
from greensmtp.middleware._validate import check_count, check_number
from greensmtp.protocol.command import ACCEPT, Command, PathCommand
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.thread_pool import in_thread_pool

logger = logging.getLogger("greensmtp")

#: Seconds between two measurements of the hub's lag.
INTERVAL = 0.25

#: Seconds between two measurements of memory and stores.
SLOW_INTERVAL = 2.0

#: Seconds within which the hub must be late twice: a single handler that computes for long is not an overload.
LATE_SECONDS = 10.0

#: Mail is accepted again after the hub has been late by less than half of the limit for so many seconds.
QUIET_SECONDS = 5.0

#: Seconds after which an unfinished measurement is a reason.
STALLED_SECONDS = 15.0

#: The free bytes and inodes of a store, or the error of the measurement.
Space = tuple[int, int] | str

#: Share of a container's memory limit at which mail is refused, if ``max_memory`` is not given.
SHARE_OF_LIMIT = 0.9

#: Free bytes above which no message is too large.
NEAR = 1 << 32

_BUSY = Reply(421, "4.3.2 Too busy at the moment, try again later")
_BUSY_MAIL = Reply(452, "4.3.1 Too busy at the moment, try again later")
_NO_SPACE = Reply(452, "4.3.1 No space for mail at the moment, try again later")


class LoadShed:
    """Refuse connections and mail while the hub is late, memory is short, or a store is full or fails.

    While the hub is late or memory is short, new connections get 421 4.3.2, and MAIL on open ones gets 452 4.3.1.
    While a store lacks space or inodes, or cannot be examined, MAIL gets 452 4.3.1; so does a message whose SIZE would
    not leave enough. A line is logged when a reason is added or removed.

    The stores are those of deliveries (``greensmtp.health.add_store``).

    :param max_lag: seconds by which the hub may be late; None: no limit. Mail is refused when it has been late twice
        within ten seconds, until it has been late by no more than half of that for five seconds.
    :param max_memory: maximum memory of the process in bytes; None: 90 % of the container's limit, if there is one.
    :param min_free: bytes that must be free in each store; None: no limit.
    :param min_inodes: the same for inodes.
    :raises ValueError: an argument is out of range.
    """

    verbs = (ACCEPT, "MAIL")

    def __init__(
        self,
        *,
        max_lag: float | None = 1.0,
        max_memory: int | None = None,
        min_free: int | None = 64 * 1024 * 1024,
        min_inodes: int | None = 1000,
    ) -> None:
        self.max_lag = None if max_lag is None else check_number("max_lag", max_lag, least=0.01)
        self.max_memory = None if max_memory is None else check_count("max_memory", max_memory)
        self.min_free = None if min_free is None else check_count("min_free", min_free)
        self.min_inodes = None if min_inodes is None else check_count("min_inodes", min_inodes)
        #: The current problems, by measurement: ``{"hub": "late by 2.3 s"}``.
        self.reasons: dict[str, str] = {}
        #: Number of refused connections and messages.
        self.refused = 0
        #: Maximum size in bytes of a message, by the fullest store; None: there is plenty of space.
        self.room: int | None = None
        self._began = 0.0
        self._refused_before = 0
        #: The times when the hub was last late by the limit, and by half of it.
        self._late = self._half_late = float("-inf")

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Refuse a connection or a sender, or pass the command on."""
        if self.reasons or self.room is not None:
            refusal = self._refusal(command)
            if refusal is not None:
                self.refused += 1
                return refusal
        return proceed(session, command)

    def _refusal(self, command: Command) -> Reply | None:
        is_busy = "hub" in self.reasons or "memory" in self.reasons
        if command.verb == ACCEPT:
            return _BUSY if is_busy else None
        if is_busy:
            return _BUSY_MAIL
        if "store" in self.reasons:
            return _NO_SPACE
        return _NO_SPACE if self.room is not None and _announced(command) > self.room else None

    def start(self, server: Any) -> None:
        """Start measuring, for as long as a server runs."""
        _Sampler.start(self, server)

    def stop(self, server: Any) -> None:
        """Stop measuring, with the last server."""
        _Sampler.stop(self, server)

    # Called by the sampler

    def note_lag(self, seconds: float, now: float | None = None) -> None:
        """Record the hub's lag."""
        if self.max_lag is None:
            return
        now = monotonic() if now is None else now
        if seconds >= self.max_lag / 2:
            self._half_late = now
        if seconds >= self.max_lag:
            if "hub" in self.reasons or now - self._late <= LATE_SECONDS:
                self._note("hub", f"the hub is late by {seconds:.1f} s")
            self._late = now
        elif now - self._half_late >= QUIET_SECONDS:
            self._note("hub", None)

    def note_stalled(self, seconds: float) -> None:
        """Record that the measurement of memory and stores has run for ``seconds`` without a result."""
        self._note("store", f"a store has not answered for {seconds:.0f} s")

    def note_resources(self, memory: int, limit: int | None, stores: Mapping[str, Space]) -> None:
        """Record the process's memory, the container's limit, and the free space of each store."""
        most = self.max_memory
        if most is None and limit is not None:
            most = int(limit * SHARE_OF_LIMIT)
        if most is not None:
            limit = int(most * 0.95) if "memory" in self.reasons else most
            self._note("memory", f"the process has {_mib(memory)} MiB" if memory >= limit else None)
        self._note("store", next(filter(None, (self._lack(*each) for each in stores.items())), None))
        least = min((space[0] for space in stores.values() if not isinstance(space, str)), default=None)
        is_near = least is not None and self.min_free is not None and least - self.min_free < NEAR
        self.room = max(least - self.min_free, 0) if is_near else None  # type: ignore[operator]

    def _lack(self, folder: str, space: Space) -> str | None:
        if isinstance(space, str):
            return f"{folder} cannot be examined: {space}"
        factor = 1.05 if "store" in self.reasons else 1.0
        free, inodes = space
        if self.min_free is not None and free < self.min_free * factor:
            return f"{folder} has {_mib(free)} MiB free"
        if self.min_inodes is not None and inodes < self.min_inodes * factor:
            return f"{folder} has {inodes} inodes free"
        return None

    def _note(self, name: str, reason: str | None) -> None:
        """Add, change or remove a reason, and log it if it is new or gone."""
        if reason is not None:
            if not self.reasons:
                self._began, self._refused_before = monotonic(), self.refused
            if name not in self.reasons:
                logger.warning("refusing mail: %s", "; ".join([*self.reasons.values(), reason]))
            self.reasons[name] = reason
        elif self.reasons.pop(name, None) is None:
            return
        elif self.reasons:
            logger.warning("still refusing mail: %s", "; ".join(self.reasons.values()))
        else:
            logger.warning(
                "accepting mail again after %.1f s; %d connections and messages were refused",
                monotonic() - self._began,
                self.refused - self._refused_before,
            )

    def __repr__(self) -> str:
        return f"LoadShed(max_lag={self.max_lag}, min_free={self.min_free}, min_inodes={self.min_inodes})"


def _announced(command: Command) -> int:
    """Return the value of SIZE= (RFC 1870 section 6.1), or 0."""
    size = command.address.parameters.get("SIZE") if isinstance(command, PathCommand) else None
    return int(size) if isinstance(size, str) and size.isdecimal() and len(size) <= 20 else 0


class _Sampler:
    """Measure for all LoadSheds of a hub."""

    _running: ClassVar[dict[Any, _Sampler]] = {}

    def __init__(self) -> None:
        self._users: dict[tuple[LoadShed, Any], None] = {}
        self._loop = get_hub().loop
        self._timer = self._loop.timer(INTERVAL, repeat=INTERVAL)
        self._last = self._slow_last = monotonic()
        #: When the current measurement of memory and stores began; None: none is running.
        self._measuring: float | None = None
        self._timer.start(self._tick)
        spawn(self._measure)

    @classmethod
    def start(cls, shed: LoadShed, server: Any) -> None:
        hub = get_hub()
        sampler = cls._running.get(hub)
        if sampler is None:
            sampler = cls._running[hub] = cls()
        sampler._users[shed, server] = None

    @classmethod
    def stop(cls, shed: LoadShed, server: Any) -> None:
        for hub, sampler in [*cls._running.items()]:
            sampler._users.pop((shed, server), None)
            if not sampler._users:
                del cls._running[hub]
                sampler._timer.stop()
                sampler._timer.close()

    def _sheds(self) -> set[LoadShed]:
        return {shed for shed, _ in self._users}

    def _tick(self) -> None:
        """Measure the hub's lag. In the hub."""
        now = monotonic()
        lag, self._last = now - self._last - INTERVAL, now
        for shed in self._sheds():
            shed.note_lag(lag)
        if now - self._slow_last < SLOW_INTERVAL:
            return
        self._slow_last = now
        if self._measuring is None:
            spawn(self._measure)
        elif now - self._measuring >= STALLED_SECONDS:
            for shed in self._sheds():
                shed.note_stalled(now - self._measuring)

    def _measure(self) -> None:
        if self._measuring is not None:
            return
        self._measuring = monotonic()
        try:
            memory, limit, stores = in_thread_pool(_measure, health.stores())
        finally:
            self._measuring = None
        for shed in self._sheds():
            shed.note_resources(memory, limit, stores)


def _measure(folders: list[str]) -> tuple[int, int | None, dict[str, Space]]:
    """Return this process's memory, its limit, and the space of each folder. Call it in a thread."""
    stores: dict[str, Space] = {}
    for folder in folders:
        try:
            found = os.statvfs(folder)
        except OSError as error:
            stores[folder] = error.strerror or str(error)
            continue
        # Some file systems do not count inodes.
        stores[folder] = (found.f_bavail * found.f_frsize, found.f_favail if found.f_files else 1 << 62)
    return _resident(), _memory_limit(), stores


def _resident() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - cheaper than Path
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not on Linux
        return 0


def _memory_limit() -> int | None:
    """Return the memory limit of the container, from its control group (version 2); None if there is none."""
    try:
        with open("/sys/fs/cgroup/memory.max", "rb") as file:  # noqa: PTH123
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _mib(octets: int) -> int:
    return octets >> 20
