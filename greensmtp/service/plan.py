"""The part of a configuration that the arbiter needs, as a forked child reports it.

The arbiter itself reads no configuration: that would import middleware and plugins, and all later workers would inherit
these imports, even if the files have changed.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, NoReturn

import gevent
from gevent import monkey

from greensmtp.config.build import assemble
from greensmtp.config.load import Loaded
from greensmtp.config.problems import ConfigError, Problem
from greensmtp.config.urls import Listen
from greensmtp.service.privileges import become, find_identity, naming_user
from greensmtp.service.sockets import Key, keys_of

#: Timeout of the child that reads and checks a configuration.
CHECK_SECONDS = 60.0

#: Middleware that counts in memory, unless it has a storage.
_COUNTS = ("RateLimit", "ConnectionLimit", "Auth")


@dataclass(frozen=True)
class Plan:
    """The part of a checked configuration that the arbiter needs."""

    #: The bytes of the file. Workers use these, since the file may change before a worker is replaced.
    text: str | None
    workers: int
    urls: list[str]
    backlogs: list[int | None]
    #: The place to name in an error if a listener cannot be opened: ``greensmtp.toml:3: listeners.url``.
    places: list[str]
    reuse_port: bool
    user: str | None
    group: str | None
    pid_file: str | None
    control: str | None
    stop_timeout: float
    log: tuple[str, str, str]
    maildirs: list[str]
    #: ``[http] listen``.
    http: str | None
    #: True if ``Metrics`` are counted.
    metrics: bool
    #: The limits that each worker counts by itself.
    counted: list[str]

    @property
    def keys(self) -> list[Key]:
        """The key of each listening socket."""
        return keys_of(Listen.parse(url).address for url in self.urls)


def plan_of(loaded: Loaded, text: str | None) -> Plan:
    """Return the plan of a configuration."""
    config = loaded.config
    service, log = config.service, config.logging
    return Plan(
        text=text,
        workers=count_workers(service.workers),
        urls=[each.url for each in config.listeners],
        backlogs=[each.backlog for each in config.listeners],
        places=[loaded.source.place(("listeners", number, "url")) for number in range(len(config.listeners))],
        reuse_port=service.reuse_port,
        user=service.user,
        group=service.group,
        pid_file=service.pid_file,
        control=service.control,
        stop_timeout=service.stop_timeout,
        log=(log.format, log.level, log.target),
        maildirs=loaded.maildirs(),
        http=config.http.listen,
        metrics=any(entry.use == "Metrics" for _, stack in config.stacks() for entry in stack),
        counted=_counted(loaded),
    )


def count_workers(workers: int | str | None) -> int:
    """Return the number of workers; for ``auto``, one for each core that this process may use."""
    if workers == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(workers or 1)


def _counted(loaded: Loaded) -> list[str]:
    found = {"max_connections": None}
    for path, stack in loaded.config.stacks():
        for number, entry in enumerate(stack):
            storage = str(loaded.arguments[(*path, number)].get("storage", "memory:"))
            if entry.use in _COUNTS and storage.startswith("memory:"):
                found[entry.use] = None
    return list(found)


class Check:
    """A forked child that reads and checks a configuration as the service's user, and reports the result.

    :param load: reads the configuration; called in the child. It returns the text of the file, too.
    """

    def __init__(self, load: Callable[[], tuple[Loaded, str | None]]) -> None:
        self._deadline = monotonic() + CHECK_SECONDS
        self._read, write = os.pipe()
        self._answer = b""
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read)
            _report(load, write)
        os.close(write)
        os.set_blocking(self._read, False)

    def result(self) -> Plan | ConfigError | None:
        """Return the plan or the errors; None while the child still runs."""
        try:
            while piece := os.read(self._read, 65536):
                self._answer += piece
        except BlockingIOError:
            if monotonic() < self._deadline:
                return None
            os.kill(self._pid, signal.SIGKILL)
            self._answer = b""
        os.close(self._read)
        try:
            found: dict[str, Any] = json.loads(self._answer)
        except ValueError:  # no result, or part of it: the child was killed, perhaps by the OOM killer
            return ConfigError(["the process that checks the configuration has ended without an answer"])
        if "lines" in found:
            return ConfigError(found["lines"], options=found["options"])
        return Plan(**found)

    def cancel(self) -> None:
        """Kill the child if it still runs."""
        if self.result() is None:  # the pipe is still open, so the process ID is still the child's
            os.kill(self._pid, signal.SIGKILL)
            os.close(self._read)

    def wait(self) -> Plan:
        """Wait for the result.

        :raises ConfigError: the configuration is wrong.
        """
        while (found := self.result()) is None:
            select.select([self._read], [], [], 0.5)
        os.waitpid(self._pid, 0)
        if isinstance(found, ConfigError):
            raise found
        return found


def _report(load: Callable[[], tuple[Loaded, str | None]], write: int) -> NoReturn:
    """Check the configuration, and write the result. In the child, which ends here whatever happens."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        monkey.patch_all()
        gevent.reinit()
        try:
            answer = _examine(load)
        except ConfigError as error:
            answer = {"lines": error.lines, "options": error.options}
        except Exception as error:
            answer = {"lines": [f"cannot check the configuration: {error!r}"], "options": False}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(write, data) :]
    finally:
        os._exit(0)


def _examine(load: Callable[[], tuple[Loaded, str | None]]) -> dict[str, Any]:
    loaded, text = load()
    service = loaded.config.service
    try:
        identity = find_identity(service.user, service.group)
    except ValueError as error:
        raise loaded.source.error([Problem(("service", "user"), str(error))]) from error
    if identity is not None:
        become(identity)
    with naming_user(identity):
        assemble(loaded, dry=True)
    return asdict(plan_of(loaded, text))
