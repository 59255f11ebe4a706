"""Thousands of slow clients: the others are served as usual, memory is bounded, and limits hold before TLS."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from time import monotonic
from typing import Any

import trustme
from gevent import sleep, socket

from tests.faults.clients import Client, wait_for
from tests.faults.ledger import Ledger
from tests.faults.run import Run
from tests.faults.service import Service, descriptors, free_port, resident

#: Connections from one address that the server allows; a crowd has 250 from each of many.
PER_ADDRESS = 500
#: What one connection may take, in KB: a greenlet's stack, and buffers; with TLS, OpenSSL's state too.
KB_EACH, KB_EACH_TLS = 60, 120
#: In the short form, a latency below this is no failure, in seconds: machines of CI are busy.
FLOOR = 0.5

_HOSTS = Path(__file__).with_name("crowd_load.py")


def crowd(run: Run) -> None:
    """Measure what a well-behaved client sees: alone, with each kind of crowd, and with all of them."""
    writers, readers = run.size(200, 5_000), run.size(100, 1_000)
    seconds = 8.0 if run.full else 0.3
    certificate = own_certificate(run)
    tls_port = free_port()
    stack = f'[[middleware]]\nuse = "ConnectionLimit"\nper_address = {PER_ADDRESS}\nper_network = false'
    service = Service(
        run,
        stack=certificate,
        config=f'[[listeners]]\nurl = "smtps://127.0.0.1:{tls_port}"\n{stack}',
        limits={"max_connections": 10_000},
        maildir=memory_folder(run) / "maildir",
    )
    service.start()
    service.limit_descriptors(20_000)
    _latencies(service, 0.5)  # warm up
    before, open_before = resident(service.pid), descriptors(service.pid)
    normal = _latencies(service, seconds)
    _report(run, "alone", normal)
    both = (writers - writers // 2, writers // 2)
    kinds = [
        (f"{writers:,} slow writers", [("writers", service.port, both[0]), ("bodies", service.port, both[1])]),
        (f"{readers:,} that never read", [("readers", service.port, readers)]),
        (f"{readers:,} handshakes never finished", [("handshakes", tls_port, readers)]),
    ]
    kinds.append(("all of these", [each for _, crowds in kinds for each in crowds]))
    if run.full:
        kinds.append(("all of these, again", kinds[-1][1]))
    peaks = []
    for number, (name, crowds) in enumerate(kinds):
        run.progress(number, len(kinds), name)
        alone = _latencies(service, seconds)
        with _crowds(crowds) as told:
            sleep(seconds / 8)
            usage = resident(service.pid) - before
            taken = _latencies(service, seconds)
            usage = max(usage, resident(service.pid) - before)
        count = sum(count for *_, count in crowds)
        _report(run, name, taken)
        _compare(run, name, alone, taken)
        run.figure(f"{name}: memory for each, in KB", usage / 1024 / count)
        peaks.append(usage / 2**20)
        bound = (KB_EACH_TLS if "handshakes" in name else KB_EACH) * count + 20_000
        run.check(f"{name}: memory is bounded", usage / 1024 < bound, f"{usage // 1024} KB for {count}")
        here = sum(each["connected at the end"] for each in told)
        run.figure(f"{name}: connected at the end", f"{here:,} of {count:,}")
        run.check(f"{name}: each keeps its connection", here >= 0.99 * count, f"{here:,} of {count:,}")
        lost = Counter[str]()
        for each in told:
            lost.update({what: number for what, number in each.items() if what != "connected at the end"})
        if lost:
            run.figure(f"{name}: connections lost", ", ".join(f"{what}: {number:,}" for what, number in lost.items()))
        wait_for(lambda: descriptors(service.pid) <= open_before + 5, what="the connections to be closed")
    run.progress(len(kinds), len(kinds))
    if run.full:
        once, again = peaks[-2:]
        run.check("a second crowd takes no more memory", again < once * 1.1 + 5, f"{once:.1f} MB, then {again:.1f} MB")
        run.figure("all of these: memory in all, in MB, once and again", f"{once:.1f}, {again:.1f}")
    _before_the_handshake(run, tls_port)
    wait_for(lambda: descriptors(service.pid) <= open_before + 5, what="the connections to be closed")
    run.figure("memory at the end, more than before, in MB", (resident(service.pid) - before) / 2**20)
    run.check("nothing failed in the server", "Traceback" not in service.log, service.log[-2000:])
    _full(run, writers, seconds)


def _full(run: Run, writers: int, seconds: float) -> None:
    """Have more clients than ``max_connections``: one of an address that has few others displaces one that has many."""
    most = run.size(50, 1_000)
    service = Service(run, limits={"max_connections": most}, maildir=memory_folder(run) / "maildir", name="full")
    service.start()
    service.limit_descriptors(20_000)
    alone = _latencies(service, seconds)
    with _crowds([("writers", service.port, writers)]):
        sleep(seconds / 8)
        taken = _latencies(service, seconds)
    name = f"{writers:,} slow writers, max_connections = {most:,}"
    _report(run, name, taken)
    _compare(run, name, alone, taken)
    run.check(f"{name}: nothing failed", "Traceback" not in service.log, service.log[-2000:])


def memory_folder(run: Run) -> Path:
    """Return a folder in memory, so that no disk adds to the latencies."""
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    run.cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def own_certificate(run: Run) -> str:
    """Make a certificate; return the line of the configuration that names it."""
    issued = trustme.CA().issue_cert("mx.example.com")
    path = run.folder / "server.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return f'tls_cert = "{path}"'


def _latencies(service: Service, seconds: float) -> list[float]:
    """Send messages, each on a connection of its own, with pauses; return the seconds that each took."""
    body, taken = Ledger(sizes=(1_000,)).message(1), list[float]()
    until = monotonic() + seconds
    while monotonic() < until or len(taken) < 20:
        began = monotonic()
        with Client(service.port, source="127.0.0.77") as client:
            client.hello()
            reply = client.deliver(body)
        assert reply.startswith(b"250"), reply
        taken.append(monotonic() - began)
        sleep(0.005)
    return taken


def _p99(taken: list[float]) -> float:
    return quantiles(taken, n=100)[98]


def _report(run: Run, when: str, taken: list[float]) -> None:
    run.figure(
        f"{when}: a message takes, median and p99, in ms", f"{median(taken) * 1000:.2f}, {_p99(taken) * 1000:.2f}"
    )


def _compare(run: Run, name: str, alone: list[float], taken: list[float]) -> None:
    floor = 0.0 if run.full else FLOOR
    for what, of in (("median", median), ("p99", _p99)):
        run.figure(f"{name}: {what}, times that without them just before", of(taken) / of(alone))
        holds = of(taken) <= max(2 * of(alone), floor)
        run.check(f"{name}: the {what} is at most twice the normal one", holds, f"{of(taken):.4f} s, {of(alone):.4f} s")


@contextmanager
def _crowds(crowds: list[tuple[str, int, int]]) -> Iterator[list[dict[str, Any]]]:
    """Keep crowds connected during the block; what they have seen is in the list afterwards."""
    told: list[dict[str, Any]] = []
    command = [sys.executable, "-S", str(_HOSTS)]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running = [subprocess.Popen([*command, *map(str, each)], **options) for each in crowds]
    try:
        for process in running:
            assert _line(process) == b"ready\n"
        yield told
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
            told.append(json.loads(_line(process)))
    finally:
        for process in running:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "a crowd says nothing"
    return process.stdout.readline()


def _before_the_handshake(run: Run, port: int) -> None:
    """Open more connections from one address than it may have, and begin no handshake."""
    extra, opened = 50, []
    try:
        for _ in range(PER_ADDRESS + extra):
            one = socket.create_connection(("127.0.0.1", port), 10, ("127.0.9.9", 0))
            opened.append(one)  # at once, so that it is closed in the end
        closed = 0
        deadline = monotonic() + 20
        while closed < extra and monotonic() < deadline:
            sleep(0.05)
            closed = sum(1 for each in opened if _is_closed(each))
        run.figure("of 550 connections from one address without a handshake, closed", closed)
        run.check("the limit of an address holds before the handshake", closed == extra, closed)
    finally:
        for each in opened:
            each.close()


def _is_closed(connection: Any) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
