"""A worker of the arbiter: a process that serves a configuration on the arbiter's sockets."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gevent import spawn
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]

from greensmtp._log import logger
from greensmtp.config.problems import ConfigError
from greensmtp.server.worker import BaseWorker
from greensmtp.service.blocked_hub import blocking_reported
from greensmtp.service.control import controlled
from greensmtp.service.errors import StartError
from greensmtp.service.plan import Plan
from greensmtp.service.privileges import Identity, become
from greensmtp.service.service import Service
from greensmtp.service.sockets import Key, Sockets


@dataclass
class Generation:
    """The workers of one version of the configuration."""

    number: int
    plan: Plan
    #: The user that its workers become.
    identity: Identity | None
    #: The folder of its workers' control sockets.
    control: Path | None
    #: The deadline for the start of its workers.
    deadline: float
    #: True once one of its workers could not start.
    failed: bool = False


class ServiceWorker(BaseWorker):
    """Serve a configuration on the sockets of the arbiter."""

    generation: Generation
    #: The worker's number in its generation: with SO_REUSEPORT, each number has its own sockets.
    slot: int
    #: ``(plan, sockets, http) -> Service``: makes and starts the service.
    start_service: Callable[[Plan, Sockets, Any], Service]
    opened: dict[Key, Any]
    #: The listening socket of HTTP, which all workers share.
    http: Any
    #: Releases what only the arbiter needs.
    release: Callable[[], object]
    retiring = False
    service: Service

    @property
    def is_ready(self) -> bool:
        """True once the worker serves. A byte in the heartbeat file shares this between both processes."""
        return os.fstat(self.tmp.fileno()).st_size > 0

    def init_process(self) -> None:
        """Become the service's user, and serve."""
        self.release()
        if self.generation.identity is not None:
            become(self.generation.identity)
        super().init_process()

    def init_signals(self) -> None:
        """Leave SIGINT to the arbiter: a terminal sends it to all processes."""
        super().init_signals()
        self.watchers.pop(signal.SIGINT).cancel()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def load_wsgi(self) -> None:
        """Start the service."""
        # Only those of its own configuration: in a reload the arbiter has others as well, and closes them later.
        try:
            kept = {key: self.opened[key].dup() for key in self.generation.plan.keys}
            http = None if self.http is None else self.http.dup()
        except OSError as error:  # out of descriptors
            logger.error("cannot duplicate the listening sockets: %s; the worker exits", error.strerror)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        for each in self.sockets:  # those of other workers, too
            each.close()
        self.sockets = []
        self._reports = ExitStack()
        try:
            plan, folder = self.generation.plan, self.generation.control
            self.service = self.start_service(plan, Sockets.of(kept), http)
            self._reports.enter_context(controlled(folder, lambda: self.service.all_servers, plan.control))
        except (ConfigError, StartError) as error:
            for line in error.lines if isinstance(error, ConfigError) else [str(error)]:
                logger.error("%s", line)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        self._reports.enter_context(blocking_reported(self.service.loaded.config.service.report_blocked))
        if self.generation.plan.workers > 1:
            for server in self.service.servers:
                server.max_accept = 1  # leave the next connection to an idle process
        os.ftruncate(self.tmp.fileno(), 1)

    def retire(self) -> None:
        """Handle SIGUSR2: stop listening, and exit when all connections have ended."""
        if not self.retiring:
            self.retiring = True
            spawn(self._retire)

    def _retire(self) -> None:
        self.service.retire()
        self.stopping.set()

    def drain(self) -> None:
        """Let transactions in progress finish."""
        self.service.stop()
        self._reports.close()
