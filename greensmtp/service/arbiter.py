"""Several processes: gunicorn's arbiter, with workers that serve a configuration.

The rules of this file:

- The arbiter opens the listening sockets and keeps them, so they outlive workers, and no client is refused. It never
  accepts.
- Workers belong to a *generation*, which serves one version of the configuration. A reload checks the new
  configuration in a forked child, then starts a generation beside the current one. When all of its workers serve,
  those of the old one get SIGUSR2, which retires them. If one cannot start, the new generation ends, and the old one
  goes on.
- Until then, the sockets of both are open. A reload that fails closes only those that it has opened.
- A worker that dies is replaced by one of the same generation, unless it is retiring.
- An error in a reload never ends the service.
- The arbiter keeps its privileges, so that it can open further sockets. Workers, and the child that checks a
  configuration, become the service's user.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from time import monotonic
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]

from greensmtp import _notify
from greensmtp._log import logger
from greensmtp.config.load import Loaded
from greensmtp.config.problems import ConfigError
from greensmtp.config.urls import Listen
from greensmtp.log_writer import reopen_logs
from greensmtp.server.worker import WORKER_SIGNALS
from greensmtp.service.control import choose_folder
from greensmtp.service.errors import StartError
from greensmtp.service.pid_file import pid_file
from greensmtp.service.plan import Check, Plan
from greensmtp.service.privileges import Identity, acting_as, find_identity
from greensmtp.service.service import Service
from greensmtp.service.service_worker import Generation, ServiceWorker
from greensmtp.service.sockets import Sockets
from greensmtp.service.systemd import inherited_sockets
from greensmtp.service.worker_sockets import WorkerSockets

#: Seconds within which a worker must show that its hub runs; then it is killed and replaced.
TIMEOUT = 30.0

#: Seconds that the workers of a new configuration have to start.
START_SECONDS = 60.0

#: Seconds until a worker that could not start is replaced.
PAUSE = 1.0

#: Seconds beyond ``stop_timeout`` for connections that are cut off, and handlers that do not end.
RESERVE = 10.0

#: Timeout of one wait for signals while workers start or a configuration is checked, in seconds.
LOOK = 0.05

#: A file system in memory, on Linux.
MEMORY = "/dev/shm"

#: The environment variable with the folder of prometheus-client for the metrics of all processes.
METRICS = "PROMETHEUS_MULTIPROC_DIR"


class _Log:
    """Write gunicorn's log to the service's log, its notes for developers at DEBUG."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.info = self.debug = logger.debug
        self.warning, self.error, self.critical = logger.warning, logger.error, logger.critical
        self.exception = logger.exception

    def close_on_exec(self) -> None:
        """Do nothing: the log's descriptors already close on exec."""

    def reopen_files(self) -> None:
        """Do nothing: the service's log is reopened elsewhere."""


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The settings of gunicorn."""

    def load_config(self) -> None:
        """Set what differs from the defaults."""
        self.cfg.set("logger_class", _Log)
        self.cfg.set("timeout", int(TIMEOUT))
        self.cfg.set("worker_class", ServiceWorker)
        if os.access(MEMORY, os.W_OK | os.X_OK):  # a disk that hangs must not delay heartbeats
            self.cfg.set("worker_tmp_dir", MEMORY)
        if "control_socket_disable" in self.cfg.settings:
            self.cfg.set("control_socket_disable", True)


class ServiceArbiter(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """Start the workers of a configuration, and replace those that die.

    :param load: reads the configuration, and returns it with the text of its file; called in a forked child.
    :param start_service: makes and starts the service of a worker; called in the worker.
    :param set_up_log: sets up the arbiter's own log as the configuration says.
    :param announce: called once, when all workers serve, with the plan, the URLs of the listeners, and the address of
        HTTP, if it is served.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Loaded, str | None]],
        start_service: Callable[[Plan, Sockets, Any], Service],
        set_up_log: Callable[[str, str, str], object],
        announce: Callable[[Plan, list[str], Any], object],
    ) -> None:
        self._load = load
        self._start_service = start_service
        self._set_up_log = set_up_log
        self._announce = announce
        self._check: Check | None = None
        self._check_again = False
        self._next: Generation | None = None
        self._is_announced = False
        self._not_before = 0.0
        self._context = ExitStack()
        plan = Check(load).wait()
        self._generation = self._new_generation(plan, 1)
        self._sockets = WorkerSockets(inherited_sockets(), reuse_port=plan.reuse_port)
        super().__init__(_Application())
        self.num_workers = plan.workers
        self.worker_class = self._make_worker

    @staticmethod
    def _new_generation(plan: Plan, number: int) -> Generation:
        try:
            identity = find_identity(plan.user, plan.group)
        except ValueError as error:  # the child that has checked it could find the user
            raise StartError(str(error)) from error
        control = choose_folder(plan.control, None if identity is None else (identity.uid, identity.gid))
        return Generation(number, plan, identity, control, monotonic() + START_SECONDS)

    # Start

    def start(self) -> None:
        """Lock the pid file, open the sockets, and handle signals."""
        self.pid = os.getpid()
        plan = self._generation.plan
        self._context.enter_context(pid_file(plan.pid_file))
        self._start_log(self._generation)
        self._open(plan)
        self._sockets.warn_of_unused()
        self._share_metrics(self._generation)
        self.init_signals()
        if plan.workers > 1:
            text = "%d workers: each counts %s by itself; limits in Redis are shared"
            logger.warning(text, plan.workers, ", ".join(plan.counted))

    def run(self) -> None:
        """Serve until a signal comes; then exit."""
        with self._context:
            super().run()

    def _as_user(self, identity: Identity | None) -> AbstractContextManager[None]:
        """Open files as the service's user would: they must be the user's own."""
        return nullcontext() if identity is None else acting_as(identity)

    def _start_log(self, generation: Generation) -> None:
        try:
            with self._as_user(generation.identity):
                self._set_up_log(*generation.plan.log)
        except OSError as error:
            raise StartError(f"logging.target: cannot write to {generation.plan.log[2]!r}: {error.strerror}") from error

    def _share_metrics(self, generation: Generation) -> None:
        """Create the folder in which prometheus-client shares the metrics of all workers."""
        if METRICS in os.environ or not generation.plan.metrics:
            return
        try:
            with self._as_user(generation.identity):
                folder = tempfile.mkdtemp(prefix="greensmtp-metrics-")
        except OSError as error:
            raise StartError(f"cannot make a folder for Metrics: {error.strerror}") from error
        arbiter = self.pid

        def remove() -> None:
            if os.getpid() == arbiter:
                shutil.rmtree(folder, ignore_errors=True)

        self._context.callback(remove)
        os.environ[METRICS] = folder
        self.cfg.set("child_exit", _forget_gauges)

    def _open(self, plan: Plan) -> None:
        self._sockets.open(plan)
        self.LISTENERS = self._sockets.all  # which gunicorn passes to each worker

    def _keep(self, plan: Plan) -> None:
        self._sockets.keep(plan)
        self.LISTENERS = self._sockets.all

    # Workers

    def _make_worker(self, *arguments: Any) -> ServiceWorker:
        """Make a worker before it is forked; gunicorn calls it as the class."""
        worker = ServiceWorker(*arguments)
        worker.generation = generation = self._spawning
        taken = {each.slot for each in self._workers(generation)}
        worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        worker.http = self._sockets.http(generation.plan)
        worker.release = self._context.close
        worker.start_service = self._start_service
        worker.opened = self._sockets.opened(worker.slot)
        if generation.identity is not None:
            os.fchown(worker.tmp.fileno(), generation.identity.uid, generation.identity.gid)
        return worker

    def spawn_worker(self) -> int:
        """Fork a worker. Signals that arrive before it has installed its handlers wait until then."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_SIGNALS)
        try:
            pid: int = super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKER_SIGNALS)
        return pid

    def _workers(self, generation: Generation) -> list[ServiceWorker]:
        """Return the workers of a generation that are not retiring."""
        return [each for each in self.WORKERS.values() if each.generation is generation and not each.retiring]

    def manage_workers(self) -> None:
        """Replace missing workers, and continue a reload. The main loop calls it after each wait."""
        try:
            self._continue_reload()
        except Exception:  # gunicorn would end the service
            logger.exception("unexpected error in the reload; dropping the new configuration")
            self._check = None
            self._drop_next()
            self._refuse([])
        for generation in filter(None, (self._generation, self._next)):
            wanted = self.num_workers if generation is self._generation else generation.plan.workers
            self._spawning = generation
            for _ in range(wanted - len(self._workers(generation))):
                if monotonic() >= self._not_before and not generation.failed:
                    self._try_to_spawn()
            for worker in sorted(self._workers(generation), key=lambda each: -each.slot)[: -wanted or None]:
                if len(self._workers(generation)) > wanted:
                    self._let_go(worker)
        if not self._is_announced and all(each.is_ready for each in self._workers(self._generation)):
            self._is_announced = True
            plan = self._generation.plan
            opened = self._sockets.opened(0)
            urls = [
                Listen.parse(url).url(opened[key].getsockname()) for url, key in zip(plan.urls, plan.keys, strict=True)
            ]
            http = self._sockets.http(plan)
            self._announce(plan, urls, None if http is None else http.getsockname()[:2])
            self._tell_ready()
        self._notify_again()

    @staticmethod
    def _notify_again() -> None:
        """Tell systemd that this process runs, and retry earlier notifications."""
        _notify.retry()
        if os.environ.get("WATCHDOG_USEC"):
            _notify.notify("WATCHDOG=1")

    def _try_to_spawn(self) -> None:
        try:
            self.spawn_worker()
        except OSError as error:  # no process, no descriptor, or no space for the file of the heartbeat
            logger.error("cannot start a worker: %s; trying again in %g s", error.strerror, PAUSE)
            self._not_before = monotonic() + PAUSE

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Wait for signals, but only briefly while a worker starts or a configuration is checked."""
        is_busy = not self._is_announced or self._check is not None or self._next is not None
        found: list[int] = super().wait_for_signals(min(timeout, LOOK) if is_busy else timeout)
        return found

    def reap_workers(self) -> None:
        """Reap workers that have ended. One that could not start ends the service only if none has served yet."""
        before = dict(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer:
            failed = {each.generation.number for pid, each in before.items() if pid not in self.WORKERS}
            if self._next is not None and self._next.number in failed:
                self._next.failed = True
            elif not self._is_announced:
                raise HaltServer("a worker could not start", 1) from None
            else:
                logger.error("a worker could not start; another is started in %g s", PAUSE)
                self._not_before = monotonic() + PAUSE

    def _let_go(self, worker: ServiceWorker) -> None:
        worker.retiring = True
        self.kill_worker(worker.pid, signal.SIGUSR2)

    # Reload

    def handle_hup(self) -> None:
        """Handle SIGHUP: reopen logs, and start to check the configuration."""
        self.handle_usr1()
        if self._check is not None or self._next is not None:
            self._check_again = True
            return
        _notify.reloading()
        try:
            self._check = Check(self._load)
        except OSError as error:
            self._refuse([f"cannot check the configuration: {error.strerror}"])

    def _continue_reload(self) -> None:
        if self._check is not None:
            found = self._check.result()
            if found is None:
                return
            self._check = None
            self._begin(found)
        elif self._next is not None:
            workers = self._workers(self._next)
            if self._next.failed or monotonic() > self._next.deadline:
                self._drop_next()
                self._refuse(["the workers of the new configuration could not start"])
            elif len(workers) >= self._next.plan.workers and all(each.is_ready for each in workers):
                self._promote(self._next)

    def _drop_next(self) -> None:
        """End the workers of a new configuration."""
        if self._next is not None:
            for worker in self._workers(self._next):
                worker.retiring = True
                self.kill_worker(worker.pid, signal.SIGTERM)
            self._next = None

    def _begin(self, found: Plan | ConfigError) -> None:
        """Start workers of a new configuration beside the current ones."""
        if isinstance(found, ConfigError):
            self._refuse(found.lines)
            return
        try:
            generation = self._new_generation(found, self._generation.number + 1)
            self._open(found)
            self._share_metrics(generation)
        except StartError as error:
            self._refuse([str(error)])
            return
        self._next = generation

    def _promote(self, generation: Generation) -> None:
        before, self._generation, self._next = self._generation, generation, None
        for worker in self._workers(before):
            self._let_go(worker)
        plan = generation.plan
        self._keep(plan)
        self.num_workers = plan.workers
        if plan.log != before.plan.log:
            try:
                self._start_log(generation)
            except StartError as error:
                logger.error("cannot change the log of the arbiter, keeping the old one: %s", error)
        logger.info("configuration reloaded")
        self._end_reload()

    def _refuse(self, lines: list[str]) -> None:
        for line in lines:
            logger.error("%s", line)
        logger.error("the configuration was not reloaded; the one before is still served")
        self._keep(self._generation.plan)
        self._end_reload()

    def _end_reload(self) -> None:
        self._tell_ready()
        if self._check_again:
            self._check_again = False
            self.handle_hup()

    def _tell_ready(self) -> None:
        _notify.ready("listening on " + ", ".join(self._generation.plan.urls))

    # Other signals

    def handle_usr1(self) -> None:
        """Handle SIGUSR1: reopen logs, also in workers."""
        with self._as_user(self._generation.identity):
            reopen_logs()
        self.kill_workers(signal.SIGUSR1)

    def handle_int(self) -> None:
        """Handle SIGINT: drain, as at SIGTERM."""
        self.handle_term()

    def handle_usr2(self) -> None:
        """Ignore SIGUSR2, which is for workers."""
        logger.warning("SIGUSR2 ignored: it is for workers")

    def handle_winch(self) -> None:
        """Ignore SIGWINCH, the resize of a terminal."""

    # Stop

    def stop(self, graceful: bool = True) -> None:
        """End the workers: let transactions finish, up to ``stop_timeout``. A second signal ends them at once."""
        _notify.stopping()
        if self._check is not None:
            self._check.cancel()
            self._check = None
        self._sockets.close()
        self.LISTENERS = []
        self.kill_workers(signal.SIGTERM if graceful else signal.SIGQUIT)
        deadline = monotonic() + (self._generation.plan.stop_timeout + RESERVE if graceful else RESERVE)
        status = None
        while self.WORKERS and monotonic() < deadline:
            signals = super().wait_for_signals(LOOK)
            self._notify_again()
            if status is None and graceful and {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT} & {*signals}:
                status = 1
                break
            self._reap_to_the_end()
        self.kill_workers(signal.SIGKILL)
        while self.WORKERS:
            super().wait_for_signals(LOOK)
            self._reap_to_the_end()
        if status is not None:
            sys.exit(status)

    def _reap_to_the_end(self) -> None:
        try:
            super().reap_workers()
        except HaltServer:
            pass  # it was starting


def _forget_gauges(arbiter: Any, worker: Any) -> None:
    """Remove the gauges of a worker that has ended: its connections are closed. Its counters stay."""
    for path in Path(os.environ[METRICS]).glob(f"gauge_live*_{worker.pid}.db"):
        path.unlink()
