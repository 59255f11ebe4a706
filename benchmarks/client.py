"""Messages per second and CPU per message of the client, against smtplib, sending to postfix's smtp-sink.

``python benchmarks/client.py [--seconds 3]``: each line is a process of its own that sends for so long. smtp-sink
takes everything and keeps nothing, so what is measured is the sender.
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


SENDERS = {"smtplib": with_smtplib, "greensmtp, one connection": with_client, "greensmtp, a pool of 10": with_pool}


def measure(name: str, port: int, size: int, seconds: float) -> None:
    """In a process of its own: send, and print messages, wall-clock and CPU seconds."""
    body = message(size)
    send = SENDERS[name]
    send(port, body, chain([True], repeat(False)).__next__)  # what is imported and compiled once is not of interest
    began, cpu = time.perf_counter(), time.process_time()
    end = began + seconds
    count = send(port, body, lambda: time.perf_counter() < end)
    print(count, time.perf_counter() - began, time.process_time() - cpu)


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


def main() -> None:
    """Compare them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each sends")
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "PORT", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, port, size = options.measure
        measure(name, int(port), int(size), options.seconds)
        return
    sink, sink_port = start_sink()
    try:
        for size, title in ((1000, "1 kB"), (1_000_000, "1 MB")):
            print(f"{title:28}{'messages/s':>12}{'CPU us/message':>16}{'messages/s':>14}{'CPU':>8}")
            base: tuple[float, float] | None = None
            for name in SENDERS:
                command = [sys.executable, str(Path(__file__)), "--seconds", str(options.seconds), "--measure"]
                ran = subprocess.run(
                    [*command, name, str(sink_port), str(size)], check=True, stdout=subprocess.PIPE, timeout=120
                )
                count, wall, cpu = map(float, ran.stdout.split())
                rate, each = count / wall, cpu / count * 1e6
                base = base or (rate, each)
                print(f"  {name:26}{rate:12.0f}{each:16.0f}{rate / base[0]:13.1f}x{base[1] / each:6.1f}x less")
    finally:
        sink.terminate()
        sink.wait()


if __name__ == "__main__":
    main()
