"""Relays in front of the same smtp-sink, and workers: servers of several processes, whose CPU is added up.

Postfix replies when a message is in its queue. So rate and CPU time are measured until the sink has the last message.
"""

from __future__ import annotations

import os
import subprocess
import time

from benchmarks import load, machine, measure
from benchmarks.contenders import Running

RELAYS = ("relay", "relay_postfix", "relay_haraka")
WORKERS = ("workers_1", "workers_2")

#: Timeout of the sink's start, and of the messages in transit at the end, in seconds.
_TIMEOUT = 60.0


class Sink:
    """smtp-sink with a counter of messages, on the core of the load.

    :raises Missing: it is not installed.
    """

    def __init__(self) -> None:
        self.port = machine.free_port()
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [machine.find("smtp-sink"), "-c", *user, f"127.0.0.1:{self.port}", "1024"]
        machine.WORK.mkdir(exist_ok=True)
        self._counts = machine.WORK / f"sink-{self.port}.log"
        with self._counts.open("wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    @property
    def messages(self) -> int:
        """The number of messages so far."""
        last = self._counts.read_bytes()[-200:].rstrip(b"\r").rpartition(b"\r")[2]
        return int(last.rpartition(b"mesg=")[2] or 0) if b"mesg=" in last else 0

    def stop(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.wait()
        self._counts.unlink(missing_ok=True)  # called twice if the start fails


class Relay(Running):
    """A relay, with its next hop."""

    def __init__(self, name: str, tls: str | None = None) -> None:
        self.sink = Sink()
        try:
            super().__init__(name, tls, {"BENCH_NEXT_HOP": str(self.sink.port)})
        except BaseException:
            self.sink.stop()
            raise

    def stop(self) -> None:
        """Stop both."""
        super().stop()
        self.sink.stop()


def relayed(relay: Relay, count: int) -> dict[str, float]:
    """Send messages of 1 kB over 20 connections, and wait until the sink has all."""
    before, cpu, began = relay.sink.messages, measure.cpu_of_family(relay.pid), time.perf_counter()
    load.smtp_source(relay.port, sessions=20, messages=count, size=1_000, kept=True, recipient="mail@example.com")
    while (there := relay.sink.messages - before) < count:
        if time.perf_counter() - began > _TIMEOUT:
            raise RuntimeError(f"{there} of {count} messages are at the next hop; {relay.last_words}")
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    return {"cpu": (measure.cpu_of_family(relay.pid) - cpu) / count, "rate": count / seconds}


def by_workers(server: Running, count: int) -> dict[str, float]:
    """Send messages over 40 kept connections. The load is smtp-source, in C, but it needs a core, too.

    So on two cores the measured rate is not that of two workers. ``capacity`` is an upper bound: messages per second if
    each worker had its own core, computed from the CPU of a message with that many workers.
    """
    cpu, began = measure.cpu_of_family(server.pid), time.perf_counter()
    load.smtp_source(server.port, sessions=40, messages=count, size=1_000, kept=True)
    seconds = time.perf_counter() - began
    each = (measure.cpu_of_family(server.pid) - cpu) / count
    return {"cpu": each, "rate": count / seconds, "capacity": int(server.name.rpartition("_")[2]) / each}
