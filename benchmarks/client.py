"""Messages per second and CPU per message of the client, against smtplib, sending to postfix's smtp-sink.

``python benchmarks/client.py [--rounds 5] [--seconds 1]``: each measurement is a new process that sends for that many
seconds. smtp-sink accepts everything and stores nothing, so the sender is what is measured. Rounds are interleaved. The
table shows medians over all rounds, of each figure and of its ratio to smtplib's in the same round, so that other load
on the machine affects all of them alike. CPU is the more robust figure.

The bare loops send the same bytes without a client: two writes and two waits per message, the minimum for a client that
waits for 354. Their rate, with gevent and with blocking sockets, is the bound that round trips set for one connection.
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
    """Return a message of about ``size`` bytes, in lines of 76 as base64 has them."""
    line = b"The quick brown fox jumps over the lazy dog. " + b"x" * 29 + b"\r\n"
    return b"Subject: a benchmark\r\n\r\n" + line * (size // len(line) + 1)


def with_smtplib(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """Send over one kept connection."""
    import smtplib

    count = 0
    with smtplib.SMTP("127.0.0.1", port) as mail:
        while go_on():
            mail.sendmail(SENDER, [RECIPIENT], body)
            count += 1
    return count


def bare(socket: Any, port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """Send with a bare socket."""
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
    """Send with a blocking socket: the bound for one process and one connection."""
    return bare(socket, port, body, go_on)


def with_gevent_socket(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """Send with a gevent socket: the bound for one greenlet."""
    from gevent import socket

    return bare(socket, port, body, go_on)


def with_client(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """Send over one kept connection."""
    from greensmtp import connect

    count = 0
    with connect("127.0.0.1", port) as mail:
        while go_on():
            mail.send(body, SENDER, [RECIPIENT])
            count += 1
    return count


def with_send_many(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """Send over one kept connection, as many messages in one call as there is time for."""
    from greensmtp import connect

    messages = iter(lambda: (body, SENDER, [RECIPIENT]) if go_on() else None, None)
    with connect("127.0.0.1", port) as mail:
        return sum(not isinstance(outcome, Exception) for outcome in mail.send_many(messages))


def with_pool(port: int, body: bytes, go_on: Callable[[], bool]) -> int:
    """Send from ten greenlets over ten connections."""
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
    "greensmtp, send_many": with_send_many,
    "greensmtp, a pool of 10": with_pool,
    "a bare gevent loop": with_gevent_socket,
    "a bare blocking loop": with_blocking_socket,
}


def measure(name: str, port: int, size: int, seconds: float) -> None:
    """Send, in a new process, and print the number of messages, wall-clock and CPU seconds."""
    body = message(size)
    send = SENDERS[name]
    send(
        port, body, chain(repeat(True, 20), repeat(False)).__next__
    )  # warm up: imports and compiled patterns do not count
    began, cpu = time.perf_counter(), time.process_time()
    end = began + seconds
    count = send(port, body, lambda: time.perf_counter() < end)
    print(count, time.perf_counter() - began, time.process_time() - cpu)


def run(name: str, port: int, size: int, seconds: float) -> tuple[float, float]:
    """Return messages per second, and microseconds of CPU per message."""
    command = [sys.executable, str(Path(__file__)), "--seconds", str(seconds), "--measure", name, str(port), str(size)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    count, wall, cpu = map(float, ran.stdout.split())
    return count / wall, cpu / count * 1e6


def start_sink() -> tuple[subprocess.Popen[bytes], int]:
    """Start smtp-sink on a free port; return when it accepts connections."""
    program = shutil.which("smtp-sink", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        sys.exit("this needs smtp-sink, which comes with postfix")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # It refuses to run as root, and needs a user to switch to.
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
    """Print a table of all senders."""
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
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each sender")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round")
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
