"""The workloads: a table, each with a title, its servers, how much to do, and the function that does it.

A run returns a sample: metric -> value. CPU is in seconds per unit (a message, unless the title says otherwise), rates
in messages per second, latencies in seconds, memory in bytes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks import client, latency, load, machine, main_job, measure, relaying
from benchmarks.contenders import CONTENDERS, Running

Sample = dict[str, float]


class Subject(Protocol):
    """The subject of a workload, usually a server."""

    name: str

    @property
    def last_words(self) -> str:
        """The last lines of its output, to explain a failure."""

    def stop(self) -> None:
        """Stop it."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A row of the table.

    :param run: ``(subject, count) -> Sample``.
    :param count: the amount of work; ``quick``: the amount in a smoke run.
    :param servers: the names of the servers to measure.
    :param tls: how the servers use TLS.
    :param fresh: start new processes in each round, because the process itself is measured.
    :param rounds: the maximum, where a round takes long or the results hardly vary.
    """

    title: str
    run: Callable[[Any, int], Sample]
    count: int
    quick: int
    servers: tuple[str, ...] = tuple(CONTENDERS)
    tls: str | None = None
    fresh: bool = False
    rounds: int | None = None
    start: Callable[[str, str | None], Subject] = Running


# Throughput


def counted(server: Running, send: Callable[[], int]) -> Sample:
    """Run a load that returns its number of messages; return its CPU and rate."""
    cpu, began = server.cpu, time.perf_counter()
    messages = send()
    return {"cpu": (server.cpu - cpu) / messages, "rate": messages / (time.perf_counter() - began)}


def source(
    size: int = 1_000, *, sessions: int = 20, kept: bool = True, recipients: int = 1
) -> Callable[[Running, int], Sample]:
    """Return a workload that smtp-source generates."""

    def run(server: Running, count: int) -> Sample:
        return counted(
            server,
            lambda: load.smtp_source(
                server.port, sessions=min(sessions, count), messages=count, size=size, kept=kept, recipients=recipients
            ),
        )

    return run


#: Concurrent connections of the loads in ``load``.
TOGETHER = 16


def pipelined(server: Running, count: int) -> Sample:
    """Send the same messages over the same connections, one command at a time and then pipelined."""
    body, rounds = load.message(1_000), max(2, count // TOGETHER)
    with load.clients(server.port, TOGETHER) as those:
        single = counted(server, lambda: load.in_step(those, rounds, body))
        groups = counted(server, lambda: load.pipelined(those, rounds, body))
    gain = {"gain": groups["rate"] / single["rate"]}
    return groups | gain | {f"{metric}_single": value for metric, value in single.items()}


# TLS


def starttls(server: Running, count: int) -> Sample:
    """Send messages with a TLS handshake each."""
    context, body = load.unverified(), load.message(1_000)
    return counted(server, lambda: load.connecting_with_tls(server.port, context, count, body))


def over_tls(server: Running, count: int) -> Sample:
    """Send messages over one connection with implicit TLS."""
    with load.clients(server.port, 1, tls=load.unverified()) as (client,):
        return counted(server, lambda: load.one_by_one(client, count, load.message(1_000)))


# Memory and latency


def idle(server: Running, count: int) -> Sample:
    """Open idle connections; measure their memory, and how fast a new client is served."""
    body = load.message(1_000)
    with load.clients(server.port, 1) as (client,):  # memory allocated on first use does not count
        client.deliver(body)
    base = measure.memory(server.pid)
    with load.clients(server.port, count, far=True):
        grown = measure.memory(server.pid) - base
        began = time.perf_counter()
        with closing(load.Client(server.port)) as newcomer:
            newcomer.hello()
            newcomer.deliver(body)
            served = time.perf_counter() - began
    return {"memory": grown / count, "newcomer": served}


def streamed(verb: str) -> Callable[[Running, int], Sample]:
    """Return a workload that sends one message of ``count`` bytes, by DATA or BDAT, and measures the memory growth."""

    def run(server: Running, count: int) -> Sample:
        chunk = (b"x" * 76 + b"\r\n") * 1_600
        chunks = max(1, count // len(chunk))
        with load.clients(server.port, 1) as (client,):
            client.deliver(load.message(1_000))
            before = measure.resident_memory(server.pid)
            measure.forget_peak(server.pid)
            cpu = server.cpu
            client.ask(load.MAIL, "250")
            client.ask(load.RCPT, "250")
            if verb == "DATA":
                client.ask(load.DATA, "354")
                for _ in range(chunks):
                    client.send(chunk)
                client.ask(b".\r\n", "250")
            else:
                for number in range(1, chunks + 1):
                    client.send(b"BDAT %d%s\r\n" % (len(chunk), b" LAST" if number == chunks else b""))
                    client.ask(chunk, "250")
            return {"grown": measure.peak_memory(server.pid) - before, "cpu": server.cpu - cpu}

    return run


def slow_handler(server: Running, count: int) -> Sample:
    """Measure latencies without and beside a client whose RCPT takes a second each time."""
    body = load.message(1_000)
    over = threading.Event()
    slow: list[float] = []

    def be_slow(other: load.Client) -> None:
        while not over.is_set():
            began = time.perf_counter()
            other.deliver(body, b"RCPT TO:<slow@example.com>\r\n")
            slow.append(time.perf_counter() - began)

    with load.clients(server.port, 2) as (client, other):
        load.latencies(client, count // 10, body)
        without = load.latencies(client, count, body)
        thread = threading.Thread(target=be_slow, args=(other,))
        thread.start()
        try:
            beside = load.latencies(client, count, body)
        finally:
            over.set()
            thread.join()
    if not slow or min(slow) < 1.0:
        raise RuntimeError("the slow handler was not slow")
    return {
        "p50": percentile(beside, 50),
        "p99": percentile(beside, 99),
        "p50_without": percentile(without, 50),
        "p99_without": percentile(without, 99),
    }


def half_loaded(server: Running, count: int) -> Sample:
    """Send messages at half of the rate that 32 connections reach, and measure their latency."""
    body = load.message(1_000)
    with load.clients(server.port, latency.CONNECTIONS) as those:
        rounds = max(2, count // latency.CONNECTIONS)
        most = counted(server, lambda: load.in_step(those, rounds, body))["rate"]
    taken = latency.at_rate(server.port, most / 2, count, body)
    return {
        "p50": percentile(taken, 50),
        "p95": percentile(taken, 95),
        "p99": percentile(taken, 99),
        "max": max(taken),
        "rate": most / 2,
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the percentile of the values."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


# Importing


class Importer:
    """An import statement instead of a server."""

    STATEMENTS: Mapping[str, str] = {
        "gevent": "import gevent.server, gevent.ssl, blinker",
        "greensmtp": "import greensmtp",
    }

    def __init__(self, name: str, tls: str | None = None) -> None:
        self.name = name
        self.statement = self.STATEMENTS[name]
        self.last_words = ""

    def stop(self) -> None:
        """Do nothing: there is no process to stop."""


def importing(importer: Importer, count: int) -> Sample:
    """Measure the CPU of the statement, in a new interpreter."""
    # From compiled files, as on every run but the first; the warm-up round compiles them.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    program = f"import time; t = time.process_time_ns(); {importer.statement}; print(time.process_time_ns() - t)"
    times = []
    for _ in range(count):
        with machine.on_server_core():
            ran = subprocess.run(
                [sys.executable, "-c", program],
                check=True,
                cwd=machine.ROOT,
                env=clean,
                stdout=subprocess.PIPE,
                timeout=60,
            )
        times.append(int(ran.stdout) / 1e9)
    return {"cpu": statistics.median(times)}


# The client


class Sender:
    """A client instead of a server, with its own smtp-sink to send to."""

    NAMES: Mapping[str, str] = {
        "smtplib": client.BASE,
        "client": "greensmtp, one connection",
        "send_many": "greensmtp, send_many",
        "pool": "greensmtp, a pool of 10",
        "client_floor": "a bare gevent loop",
    }

    def __init__(self, name: str, tls: str | None = None) -> None:
        machine.find("smtp-sink")
        self.name = name
        self.last_words = ""
        self.sink, self.port = client.start_sink()

    def stop(self) -> None:
        """Stop the sink."""
        self.sink.terminate()
        self.sink.wait()


def sending(sender: Sender, count: int) -> Sample:
    """Let a client send messages of 1 kB for ``count`` milliseconds, on the core of the servers."""
    with machine.on_server_core():
        rate, cpu = client.run(Sender.NAMES[sender.name], sender.port, 1_000, count / 1_000)
    return {"cpu": cpu / 1e6, "rate": rate}


# Linearity


def by_connections(server: Running, count: int) -> Sample:
    """Measure CPU per message by the number of concurrent connections."""
    return {
        str(number): source(sessions=number)(server, max(count, number * 4))["cpu"]
        for number in (10, 100, 500, 1_000, 2_000)
        if number <= count
    }


def by_recipients(server: Running, count: int) -> Sample:
    """Measure CPU per recipient by the number of recipients per message."""
    return {
        str(number): source(recipients=number)(server, max(20, count // number))["cpu"] / number
        for number in (1, 10, 100, 1_000)
    }


def by_size(server: Running, count: int) -> Sample:
    """Measure CPU per megabyte by message size in bytes. A small message is nearly all commands."""
    return {
        f"{size // 1_000:,} kB": source(size, sessions=5)(server, max(3, min(count // size, 2_000)))["cpu"] / size * 1e6
        for size in (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
        if size <= count
    }


_FLOORS_AND_OURS = ("bare", "plain", "full")
_TLS = tuple(name for name, contender in CONTENDERS.items() if "starttls" in contender.tls)

WORKLOADS: Mapping[str, Workload] = {
    "kept": Workload(title="1 kB, kept connections", run=source(), count=10_000, quick=1_000),
    "each": Workload(title="1 kB, a connection each", run=source(kept=False), count=2_000, quick=300),
    "pipelined": Workload(
        title="1 kB, pipelined",
        run=pipelined,
        count=4_800,
        quick=800,
        servers=tuple(name for name, contender in CONTENDERS.items() if contender.pipelining),
    ),
    "big": Workload(title="1 MB bodies", run=source(1_000_000, sessions=5), count=100, quick=20),
    "recipients": Workload(title="1 kB, 10 recipients", run=source(recipients=10), count=1_000, quick=200),
    "starttls": Workload(
        title="1 kB, a STARTTLS connection each",
        run=starttls,
        count=200,
        quick=10,
        servers=_TLS,
        tls="starttls",
    ),
    "tls": Workload(
        title="1 kB, one TLS connection",
        run=over_tls,
        count=2_000,
        quick=300,
        servers=_TLS,
        tls="implicit",
    ),
    "main": Workload(
        title="1 kB, stored in a Maildir and flushed, 20 connections (1, 100)",
        run=main_job.main_job,
        count=3_000,
        quick=300,
        servers=main_job.SERVERS,
    ),
    "latency": Workload(
        title="latency at half load", run=half_loaded, count=6_000, quick=600, servers=tuple(CONTENDERS)
    ),
    "relay": Workload(
        title="1 kB, relayed to smtp-sink, 20 connections",
        run=relaying.relayed,
        count=1_000,
        quick=100,
        servers=relaying.RELAYS,
        start=relaying.Relay,
    ),
    "workers": Workload(
        title="1 kB, kept connections, all cores, load too",
        run=relaying.by_workers,
        count=10_000,
        quick=500,
        servers=relaying.WORKERS,
    ),
    "client": Workload(
        title="1 kB, sent by a client to smtp-sink",
        run=sending,
        count=1_000,
        quick=100,
        servers=tuple(Sender.NAMES),
        start=Sender,
    ),
    "idle": Workload(title="3,500 idle connections", run=idle, count=3_500, quick=200, fresh=True, rounds=2),
    "idle_10k": Workload(
        title="10,000 idle connections",
        run=idle,
        count=10_000,
        quick=400,
        fresh=True,
        rounds=1,
        servers=_FLOORS_AND_OURS,
    ),
    "slow": Workload(
        title="others' latency beside a slow handler", run=slow_handler, count=4_000, quick=400, servers=("slow",)
    ),
    "data_1g": Workload(
        title="a 1 GB message by DATA, to a file",
        run=streamed("DATA"),
        count=10**9,
        quick=10**7,
        servers=("pipe",),
        fresh=True,
        rounds=1,
    ),
    "bdat_1g": Workload(
        title="a 1 GB message by BDAT, to a file",
        run=streamed("BDAT"),
        count=10**9,
        quick=10**7,
        servers=("pipe",),
        fresh=True,
        rounds=1,
    ),
    "import": Workload(
        title="importing", run=importing, count=5, quick=1, servers=tuple(Importer.STATEMENTS), start=Importer
    ),
    "by_connections": Workload(
        title="CPU a message, by connections at once",
        run=by_connections,
        count=4_000,
        quick=200,
        servers=_FLOORS_AND_OURS,
        rounds=2,
    ),
    "by_recipients": Workload(
        title="CPU a recipient, by recipients a message",
        run=by_recipients,
        count=10_000,
        quick=500,
        servers=_FLOORS_AND_OURS,
        rounds=2,
    ),
    "by_size": Workload(
        title="CPU a megabyte, by bytes a message",
        run=by_size,
        count=100_000_000,
        quick=1_000_000,
        servers=_FLOORS_AND_OURS,
        rounds=1,
    ),
}
