"""The loads of the cost curves: measure the server's CPU and memory for the actions of clients."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from benchmarks import load, machine, measure

#: Number of rounds; the result is their median.
ROUNDS = 5

#: The same, where each round needs a new server.
FRESH_ROUNDS = 3

#: Timeouts of a server's start and of its end, in seconds.
START_SECONDS, STOP_SECONDS = 60.0, 20.0

#: The minimum of measured memory, in bytes.
PAGE = 4_096

#: Bytes that are sent at once.
CHUNK = (b"x" * 76 + b"\r\n") * 1_600

#: (name of the curve, size, cost)
Points = Iterator[tuple[str, int, float]]


class Server:
    """A server of ``benchmarks.curves_server``."""

    def __init__(self, kind: str, count: int = 1) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="curves-")
        with machine.on_server_core():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.curves_server", kind, str(count)],
                cwd=machine.ROOT,
                env=os.environ | {"BENCH_FOLDER": self.folder.name},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the server {kind} {count} did not start")
        said = json.loads(line)
        self.port: int = said["port"]
        #: CPU and memory of the start.
        self.start_cpu: float = said["cpu"]
        self.start_memory: int = said["memory"]

    @property
    def cpu(self) -> float:
        """Seconds of CPU since its start."""
        return measure.cpu_seconds(self.pid)

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self.folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cost(server: Server, act: Callable[[], object], count: int, *, rounds: int = ROUNDS) -> float:
    """Return the CPU of an action: the median of rounds, each of which repeats it ``count`` times."""
    act()
    costs = []
    for _ in range(rounds):
        began = server.cpu
        for _ in range(count):
            act()
        costs.append((server.cpu - began) / count)
    return statistics.median(costs)


@contextmanager
def a_client(server: Server) -> Iterator[load.Client]:
    """Connect, send EHLO and a first message, and yield the client."""
    with closing(load.Client(server.port)) as client:
        client.hello()
        client.deliver(load.message(1_000))
        yield client


def message_cost(server: Server, count: int = 100) -> float:
    """Return the CPU of a message of 1 kB on a connection that is kept."""
    with a_client(server) as client:
        body = load.message(1_000)
        return cost(server, lambda: client.deliver(body), count)


# The measurements. Each function yields (name of the curve, size, cost).


def connections(sizes: Sequence[int]) -> Points:
    """Open idle connections: measure their cost, and the cost of a message and a snapshot beside them."""
    for size in sizes:
        costs: list[float] = []
        while len(costs) < FRESH_ROUNDS:
            with Server("full") as server:  # a new one: the memory of connections that are gone would be used again
                with a_client(server):
                    pass
                base, began = measure.memory(server.pid), server.cpu
                with load.clients(server.port, size, far=True):
                    costs.append(server.cpu - began)
                    if len(costs) < FRESH_ROUNDS:
                        continue
                    yield "connect", size, statistics.median(costs)
                    yield "memory", size, max(measure.memory(server.pid) - base, PAGE)
                    yield "beside", size, message_cost(server)
                    yield "top", size, _snapshot_cost(server)


def _snapshot_cost(server: Server, count: int = 8) -> float:
    """Return the CPU of a snapshot for ``greensmtp top``, taken every 0.1 seconds."""
    (path,) = Path(server.folder.name).glob("*.sock")
    with socket.socket(socket.AF_UNIX) as control, control.makefile("rb") as lines:
        control.settimeout(load.REPLY_TIMEOUT)
        control.connect(str(path))
        control.sendall(b'{"do": "stats", "interval": 0.1}\n')
        lines.readline()
        costs = []
        began = server.cpu
        for _ in range(count):
            assert b'"sessions"' in lines.readline()
            now = server.cpu
            costs.append(now - began)
            began = now
        return statistics.median(costs)


def listeners(sizes: Sequence[int]) -> Points:
    """Start a service with ``size`` listeners, each with a stack of four."""
    for size in sizes:
        with Server("listeners", size) as server:
            yield "listeners", size, server.start_cpu
            yield "listeners_memory", size, server.start_memory


def messages(curve: str, kind: str, count: int = 100) -> Callable[[Sequence[int]], Points]:
    """Return a function that measures a message on servers of a kind, of all sizes."""

    def run(sizes: Sequence[int]) -> Points:
        for size in sizes:
            with Server(kind, size) as server:
                yield curve, size, message_cost(server, max(20, count // max(1, size // 20)))

    return run


def recipients(sizes: Sequence[int]) -> Points:
    """Send messages to many recipients, by SMTP and by LMTP, pipelined."""
    body = load.message(1_000)
    for curve, kind, hello in (("recipients", "full", b"EHLO"), ("lmtp", "lmtp", b"LHLO")):
        with Server(kind) as server, closing(load.Client(server.port)) as client:
            client.replies("220")
            client.ask(hello + b" client.example\r\n", "250")
            for size in sizes:
                envelope = [load.MAIL, *(b"RCPT TO:<r%d@example.com>\r\n" % number for number in range(size))]
                commands = b"".join(envelope) + load.DATA
                replies = ["250"] * (size if curve == "lmtp" else 1)

                def deliver(commands: bytes = commands, size: int = size, replies: Sequence[str] = replies) -> None:
                    client.ask(commands, *["250"] * (size + 1), "354")
                    client.ask(body, *replies)

                yield curve, size, cost(server, deliver, max(3, 200 // size))


def sizes(sizes: Sequence[int]) -> Points:
    """Send messages of each size: measure their CPU and the growth of memory."""
    with Server("full") as server, a_client(server) as client:
        for size in sizes:
            head = min(size, len(CHUNK))
            chunks = size // head

            def deliver(piece: bytes = CHUNK[:head], chunks: int = chunks) -> None:
                client.ask(load.MAIL, "250")
                client.ask(load.RCPT, "250")
                client.ask(load.DATA, "354")
                for _ in range(chunks):
                    client.send(piece)
                client.ask(b"\r\n.\r\n", "250")

            before = measure.resident_memory(server.pid)
            measure.forget_peak(server.pid)
            if size < 100_000_000:
                yield "size", size, cost(server, deliver, max(1, min(100, 10_000_000 // size)))
            else:  # one, which takes a second
                began = server.cpu
                deliver()
                yield "size", size, server.cpu - began
            yield "size_memory", size, max(measure.peak_memory(server.pid) - before, PAGE)


def keys(sizes: Sequence[int]) -> Points:
    """Count many senders in a RateLimit: measure their total cost, and the cost of a message afterwards."""
    with Server("keys") as server, a_client(server) as client:
        known, total = 0, 0.0
        for size in sizes:
            began = server.cpu
            while known < size:
                group = range(known, min(size, known + 100))
                client.ask(
                    b"".join(b"MAIL FROM:<s%d@example.org>\r\nRSET\r\n" % number for number in group),
                    *["250", "250"] * len(group),
                )
                known = group.stop
            total += server.cpu - began
            yield "keys", size, total
            yield "with_keys", size, message_cost(server)
