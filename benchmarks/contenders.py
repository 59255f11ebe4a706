"""The measured servers: how each is started, and which features it supports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import environments, machine, measure

#: Timeout of a server's start, in seconds.
START_TIMEOUT = 20.0

#: the command, and additions to the environment
Start = tuple[list[str], dict[str, str]]


@dataclass(frozen=True)
class Contender:
    """One server.

    :param command: the command without port and TLS options.
    :param tls: the supported modes, of ``starttls`` and ``implicit``.
    :param pipelining: True if it supports pipelining (RFC 2920).
    :param folder: the working directory.
    :param pinned: False if it may use all cores, as several workers do.
    """

    title: str
    command: Callable[[], Start]
    tls: frozenset[str] = frozenset({"starttls", "implicit"})
    pipelining: bool = True
    arguments: Callable[[int], list[str]] = field(default=lambda port: [str(port)])
    folder: Path = machine.ROOT
    pinned: bool = True


def _ours(name: str, *options: str) -> Callable[[], Start]:
    return lambda: ([sys.executable, "-m", f"benchmarks.servers.{name}", *options], {})


def _compiled(name: str, *options: str) -> Callable[[], Start]:
    def command() -> Start:
        if not machine.COMPILED.is_dir():
            raise machine.Missing("make .compiled/.stamp makes the compiled build")
        # -P: the checkout must not come first.
        path = f"{machine.COMPILED.parent}{os.pathsep}{machine.ROOT}"
        return [sys.executable, "-P", "-m", f"benchmarks.servers.{name}", *options], {"PYTHONPATH": path}

    return command


def _python(environment: str, name: str, *options: str) -> Callable[[], Start]:
    return lambda: ([environments.python(environment), "-m", f"benchmarks.servers.{name}", *options], {})


def _node(name: str) -> Callable[[], Start]:
    script = machine.ROOT / "benchmarks" / "servers" / f"{name}.js"
    return lambda: ([machine.find("node"), str(script)], {"NODE_PATH": environments.node_modules()})


def _haraka() -> Start:
    return [sys.executable, "-m", "benchmarks.servers.haraka"], {"NODE_PATH": environments.node_modules()}


def _sink() -> Start:
    # It refuses to run as root, and needs a user to switch to.
    return [machine.find("smtp-sink"), "-m", "20000", *(["-u", "nobody"] if os.geteuid() == 0 else [])], {}


def _postfix_relay() -> Start:
    machine.find("postfix")
    if os.geteuid() != 0:
        raise machine.Missing("only root can start postfix")
    return [sys.executable, "-m", "benchmarks.servers.postfix_relay"], {}


_NO_TLS: frozenset[str] = frozenset()

CONTENDERS: dict[str, Contender] = {
    "bare": Contender("bare gevent loop: the floor", _ours("bare")),
    "tuned": Contender("bare gevent loop, tuned", _ours("tuned"), _NO_TLS),
    "plain": Contender("greensmtp, one receiver", _ours("plain")),
    "full": Contender("greensmtp, full stack", _ours("full")),
    "logging": Contender("the same, lines logged", _ours("full", "--log")),
    "plain_compiled": Contender("one receiver, compiled", _compiled("plain")),
    "full_compiled": Contender("full stack, compiled", _compiled("full")),
    "logging_compiled": Contender("lines logged, compiled", _compiled("full", "--log")),
    "sink": Contender("smtp-sink (C)", _sink, _NO_TLS, arguments=lambda port: [f"127.0.0.1:{port}", "1024"]),
    "go_smtp": Contender("go-smtp (Go)", lambda: ([environments.go_smtp()], {}), _NO_TLS),
    "smtp_server": Contender("smtp-server (node)", _node("smtp_server")),
    "smtp_protocol": Contender("smtp-protocol (node)", _node("smtp_protocol"), _NO_TLS, pipelining=False),
    "haraka": Contender("Haraka (node)", _haraka, _NO_TLS),
    "aiosmtpd": Contender("aiosmtpd", _python("aiosmtpd", "aiosmtpd_server")),
    "aiosmtpd_uvloop": Contender("aiosmtpd on uvloop", _python("aiosmtpd", "aiosmtpd_server", "--uvloop")),
    "slimta": Contender("slimta", _python("slimta", "slimta_server")),
}


def _storing(name: str) -> Callable[[], Start]:
    def command() -> Start:
        extra = {"STORING_OPENSMTPD": environments.unpacked("opensmtpd")} if name == "opensmtpd" else {}
        if name == "compiled":
            if not machine.COMPILED.exists():
                raise machine.Missing("make .compiled/.stamp makes the compiled build")
            extra = {"STORING_COMPILED": str(machine.COMPILED.parent)}
        if name in ("postfix", "dovecot"):
            machine.find(name)
        if name in ("postfix", "dovecot", "opensmtpd") and os.geteuid() != 0:
            raise machine.Missing(f"only root can start {name}")
        python = environments.python("aiosmtpd") if name.startswith("aiosmtpd") else sys.executable
        return [python, "-m", "benchmarks.servers.storing", name], extra

    return command


#: Servers that only workloads that name them use.
SPECIAL: dict[str, Contender] = {
    "storing": Contender("greensmtp serve", _storing("greensmtp"), _NO_TLS),
    "storing_compiled": Contender("the same, compiled", _storing("compiled"), _NO_TLS),
    "storing_dovecot": Contender("Dovecot's LMTP server", _storing("dovecot"), _NO_TLS),
    "storing_postfix": Contender("Postfix's local", _storing("postfix"), _NO_TLS),
    "storing_opensmtpd": Contender("OpenSMTPD's mail.maildir", _storing("opensmtpd"), _NO_TLS),
    "storing_aiosmtpd": Contender("aiosmtpd's Mailbox", _storing("aiosmtpd"), _NO_TLS),
    "storing_aiosmtpd_folder": Contender("the same, folder flushed too", _storing("aiosmtpd_folder"), _NO_TLS),
    "storing_aiosmtpd_unsafe": Contender("the same, nothing flushed", _storing("aiosmtpd_unsafe"), _NO_TLS),
    "relay": Contender("greensmtp serve, Forward", _ours("serving", "relay"), _NO_TLS),
    "relay_postfix": Contender("Postfix", _postfix_relay, _NO_TLS),
    "relay_haraka": Contender("Haraka", _haraka, _NO_TLS),
    "workers_1": Contender("greensmtp serve", _ours("serving", "1"), _NO_TLS, pinned=False),
    "workers_2": Contender("the same, two workers", _ours("serving", "2"), _NO_TLS, pinned=False),
    "slow": Contender("greensmtp, a slow receiver", _ours("slow"), _NO_TLS),
    "pipe": Contender("greensmtp, to a file", _ours("pipe"), _NO_TLS),
}


def find(name: str) -> Contender:
    """Return the server of this name."""
    return CONTENDERS.get(name) or SPECIAL[name]


def add_before(checkout: Path) -> None:
    """Add the servers of another checkout, which has its own ``.venv``: ``plain-before`` and so on.

    :raises ValueError: there is no checkout with a ``.venv`` in this folder.
    """
    python = checkout.resolve() / ".venv" / "bin" / "python"
    if not python.exists():
        raise ValueError(f"expected a checkout of greensmtp with a .venv (make .venv/.serve); got {checkout}")
    for name in ("plain", "full", "logging"):
        was = CONTENDERS[name]
        options = was.command()[0][1:]
        CONTENDERS[f"{name}-before"] = replace(
            was,
            title=f"{was.title}, before",
            command=lambda options=options: ([str(python), *options], {}),  # type: ignore[misc]
            folder=checkout.resolve(),
        )
    SPECIAL["storing-before"] = replace(
        SPECIAL["storing"],
        title="greensmtp serve, before",
        command=lambda: (SPECIAL["storing"].command()[0], {"STORING_PYTHON": str(python)}),
    )


class Running:
    """A server that runs in a new process, on its own core, and accepts connections.

    :raises Missing: it is not installed, or does not support this TLS mode.
    :raises RuntimeError: it does not accept connections.
    """

    def __init__(self, name: str, tls: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        contender = find(name)
        command, extra = contender.command()
        self.port = machine.free_port()
        command = [*command, *contender.arguments(self.port)]
        if tls is not None:
            if tls not in contender.tls:
                raise machine.Missing(f"{name} has no {tls} TLS")
            certificate = environments.certificate()
            command += ["--tls", tls, "--cert", str(certificate.cert), "--key", str(certificate.key)]
        machine.WORK.mkdir(exist_ok=True)
        self._log = machine.WORK / f"{name}-{self.port}.log"
        with self._log.open("wb") as log, machine.on_server_core() if contender.pinned else machine.on_all_cores():
            self.process = subprocess.Popen(
                command,
                cwd=contender.folder,
                env=os.environ | {"BENCH_FOLDER": str(machine.WORK)} | extra | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{self.name} does not answer: {self.last_words}")

    @property
    def last_words(self) -> str:
        """The last line of its output."""
        return (self._log.read_text(errors="replace").strip().splitlines() or [""])[-1][-200:]

    @property
    def pid(self) -> int:
        """The process ID."""
        return self.process.pid

    @property
    def cpu(self) -> float:
        """CPU time so far, in seconds."""
        return measure.cpu_seconds(self.pid)

    def stop(self) -> None:
        """Stop the process, and wait for its end."""
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.unlink()
        (machine.WORK / f"full-{self.port}.log").unlink(missing_ok=True)
        for folder in machine.WORK.glob(f"*-{self.port}"):
            shutil.rmtree(folder, ignore_errors=True)
