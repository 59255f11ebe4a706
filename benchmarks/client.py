"""Messages per second and CPU per message of the client, against smtplib, sending to postfix's smtp-sink.

``python benchmarks/client.py [--rounds 5] [--seconds 1]``: each measurement is a process of its own that sends for so
long. smtp-sink takes everything and keeps nothing, so what is measured is the sender. The rounds are interleaved, and
what is printed are the medians, over all rounds, of each figure and of its ratio to smtplib's in the same round: other
load comes and goes, and hits all of them alike. CPU is the more robust figure.

The bare loops send the same octets with no client around them: two writes and two waits a message, which is the least
that a client can do that waits for 354. What they reach, in gevent and with sockets that block, is the bound that the
round trips set for one connection.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

SENDER, RECIPIENT = "sender@example.org", "recipient@example.com"


def message(size: int) -> bytes:
    """A message of about so many octets, in lines of 76, as base64 has them, and a dot at times."""
    line = b"The quick brown fox jumps over the lazy dog. " + b"x" * 29 + b"\r\n"
    return b"Subject: a benchmark\r\n\r\n" + line * (size // len(line) + 1)


def with_smtplib(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """One kept connection."""
    import smtplib

    count = 0
    with smtplib.SMTP("127.0.0.1", port) as mail:
        while go_on():
            mail.sendmail(SENDER, [RECIPIENT], body)
            count += 1
    return count


def bare(socket: Any, port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """No client at all, but a socket."""
    envelope = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
    content = body + b".\r\n"
    count = 0
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.recv(1000)
        sock.sendall(b"EHLO bare.example\r\n")
        sock.recv(1000)
        while go_on():
            sock.sendall(envelope)
            replies = sock.recv(1000)
            while replies.count(b"\n") < 3:
                replies += sock.recv(1000)
            sock.sendall(content)
            sock.recv(1000)
            count += 1
    return count


def with_blocking_socket(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """The bound of what one process can do with one connection."""
    return bare(socket, port, body, go_on)


def with_gevent_socket(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """The bound of what one greenlet can."""
    from gevent import socket

    return bare(socket, port, body, go_on)


def with_client(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """One kept connection."""
    from greensmtp import connect

    count = 0
    with connect("127.0.0.1", port) as mail:
        while go_on():
            mail.send(body, SENDER, [RECIPIENT])
            count += 1
    return count


def with_pool(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """Ten greenlets, ten connections."""
    import gevent

    from greensmtp import Pool

    counts: list[int] = []

    def work() -> None:
        count = 0
        while go_on():
            pool.send(body, SENDER, [RECIPIENT])
            count += 1
        counts.append(count)

    with Pool("127.0.0.1", port, size=10, max_messages=1_000_000) as pool:
        gevent.joinall([gevent.spawn(work) for _ in range(10)], raise_error=True)
    return sum(counts)


BASE = "smtplib"
SENDERS = {
    BASE: with_smtplib,
    "greensmtp, one connection": with_client,
    "greensmtp, a pool of 10": with_pool,
    "a bare gevent loop": with_gevent_socket,
    "a bare blocking loop": with_blocking_socket,
}


def measure(name: str, port: int, size: int, seconds: float) -> None:
    """In a process of its own: send, and print messages, wall-clock and CPU seconds."""
    body = message(size)
    send = SENDERS[name]
    send(
        port, body, chain(repeat(True, 20), repeat(False)).__next__
    )  # what is imported and compiled once does not count
    began, cpu = time.perf_counter(), time.process_time()
    end = began + seconds
    count = send(port, body, lambda: time.perf_counter() < end)
    print(count, time.perf_counter() - began, time.process_time() - cpu)


def run(name: str, port: int, size: int, seconds: float) -> tuple[float, float]:
    """Messages a second, and microseconds of CPU for each."""
    command = [sys.executable, str(Path(__file__)), "--seconds", str(seconds), "--measure", name, str(port), str(size)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    count, wall, cpu = map(float, ran.stdout.split())
    return count / wall, cpu / count * 1e6


def start_sink() -> tuple[subprocess.Popen[bytes], int]:
    """smtp-sink on a free port, ready."""
    program = shutil.which("smtp-sink", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        sys.exit("this needs smtp-sink, which comes with postfix")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As root it wants to be told whom to be instead.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    sink = subprocess.Popen([program, *user, f"127.0.0.1:{port}", "100"])
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return sink, port
        except OSError:
            time.sleep(0.02)
    sink.kill()
    sys.exit("smtp-sink does not answer")


def compare(port: int, size: int, rounds: int, seconds: float) -> None:
    """A table of all senders."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in SENDERS}
    for _ in range(rounds):
        for name, each in measured.items():
            each.append(run(name, port, size, seconds))
    for name, each in measured.items():
        base = measured[BASE]
        rate, cpu = median(rate for rate, _ in each), median(cpu for _, cpu in each)
        faster = median(mine / theirs for (mine, _), (theirs, _) in zip(each, base, strict=True))
        less = median(theirs / mine for (_, mine), (_, theirs) in zip(each, base, strict=True))
        print(f"  {name:26}{rate:12.0f}{cpu:16.0f}{faster:13.2f}x{less:6.2f}x less", flush=True)


def main() -> None:
    """Compare them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each sends")
    parser.add_argument("--seconds", type=float, default=1.0, help="and for how long")
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "PORT", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, port, size = options.measure
        measure(name, int(port), int(size), options.seconds)
        return
    sink, sink_port = start_sink()
    try:
        for size, title in ((1000, "1 kB"), (1_000_000, "1 MB")):
            print(f"{title:28}{'messages/s':>12}{'CPU us/message':>16}{'messages/s':>14}{'CPU':>8}", flush=True)
            compare(sink_port, size, options.rounds, options.seconds)
    finally:
        sink.terminate()
        sink.wait()


if __name__ == "__main__":
    main()
