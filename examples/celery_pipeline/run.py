"""A pipeline past one machine, on one: HAProxy, two frontends, Redis, and two workers.

    python examples/celery_pipeline/run.py [port] [folder]

It needs haproxy and redis-server, and ``pip install 'greensmtp[all]' 'celery[redis]'``. Mail that is sent to the port
(9025) ends up in FOLDER/received. What dies is started again. Ctrl-C ends all of it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent

FRONTEND = """
hostname = "mx.example.com"
proxy_from = ["127.0.0.1"]

[[listeners]]
url = "smtp://127.0.0.1:{port}"

# Limits that both frontends share.
[[middleware]]
use = "RateLimit"
limit = "100000/minute"
storage = "{broker}"

[[deliveries]]
use = "CeleryTask"
task = "tasks.receive"
broker = "{broker}"
store = "{folder}/store"
# Redis can lose a task when a worker is killed; then it is sent again.
resend = {resend}

[http]
listen = "127.0.0.1:{health}"

[service]
control = false
"""

HAPROXY = """
defaults
    mode tcp
    timeout connect 2s
    timeout client 6m
    timeout server 6m
    option redispatch
    retries 3

frontend mx
    bind 127.0.0.1:{port}
    default_backend frontends

backend frontends
    balance leastconn
    option httpchk GET /readyz
    default-server check inter 500 fall 1 rise 1 send-proxy-v2
    server one 127.0.0.1:{one} port {one_health}
    server two 127.0.0.1:{two} port {two_health}
"""


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def find(name: str) -> str:
    """Return the path of a program."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        raise SystemExit(f"{name} is not installed: apt install haproxy redis-server")
    return path


class Pipeline:
    """All processes, by their names."""

    def __init__(self, port: int, folder: Path) -> None:
        redis, one, two, one_health, two_health = free_ports(5)
        broker = f"redis://127.0.0.1:{redis}/0"
        for name in ("store", "received", "redis"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, its_port, health in (("one", one, one_health), ("two", two, two_health)):
            text = FRONTEND.format(
                port=its_port, broker=broker, folder=folder, health=health, resend=os.environ.get("RESEND", "600.0")
            )
            (folder / f"{name}.toml").write_text(text)
        places = {"one": one, "two": two, "one_health": one_health, "two_health": two_health}
        (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, **places))
        worker = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "solo", "--loglevel", "warning"]
        # A broker that answers before the task is on its disk loses tasks when it is killed.
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder / "redis")]
        self.commands: dict[str, list[str]] = {
            "redis": [find("redis-server"), "--port", str(redis), "--bind", "127.0.0.1", "--save", "", *durable],
            "frontend-one": [sys.executable, "-m", "greensmtp", "serve", "--config", str(folder / "one.toml")],
            "frontend-two": [sys.executable, "-m", "greensmtp", "serve", "--config", str(folder / "two.toml")],
            "worker-one": [*worker, "--hostname", "one@%h"],
            "worker-two": [*worker, "--hostname", "two@%h"],
            "haproxy": [find("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")],
        }
        self.environment = {**os.environ, "BROKER": broker, "PIPELINE": str(folder)}
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a process, and say which one it is."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.commands[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=HERE,
                env=self.environment,
            )
        print(f"{name} {self.processes[name].pid}", flush=True)

    def watch(self) -> None:
        """Start again what has died, until a signal comes."""
        while True:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    self.start(name)
                    break
            time.sleep(0.2)

    def stop(self) -> None:
        """End all processes: first those that take mail, last the broker."""
        for name in reversed(self.processes):
            process = self.processes[name]
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def end(number: int, frame: FrameType | None) -> None:
    """End at a signal."""
    raise SystemExit(0)


def main(port: str = "9025", folder: str = "pipeline") -> None:
    """Run the pipeline until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, end)
    pipeline = Pipeline(int(port) or free_ports(1)[0], Path(folder).absolute())
    try:
        for name in pipeline.commands:
            pipeline.start(name)
        print(f"mail for port {port} goes to {pipeline.folder}/received", flush=True)
        pipeline.watch()
    except KeyboardInterrupt:
        pass
    finally:
        pipeline.stop()


if __name__ == "__main__":
    main(*sys.argv[1:3])
