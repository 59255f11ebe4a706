"""Full load for long: memory is flat after the warm-up, and nothing is left behind."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path
from time import monotonic
from typing import Any

from gevent import Greenlet, joinall, killall, sleep, socket, spawn

from tests.faults.clients import Client, Closed, wait_for
from tests.faults.crowd import memory_folder, own_certificate
from tests.faults.ledger import Audit, Ledger, audit
from tests.faults.run import Run
from tests.faults.service import Service, descriptors, resident

CLIENTS = 8
#: Samples in a run. The first quarter is the warm-up.
SAMPLES = 16

_PLUGIN = '[[plugins]]\nname = "tests.faults.inside"\n'
#: The default stack, with limits that the load does not reach.
_STACK = """
[[middleware]]
use = "Logging"
[[middleware]]
use = "ConnectionLimit"
per_address = 500
per_network = false
[[middleware]]
use = "RateLimit"
limit = "60000000/minute"
strategy = "fixed-window"
"""


class _Sample:
    """What is alive at rest, in the process and beside it."""

    def __init__(self, service: Service) -> None:
        with Client(service.port) as client:
            client.hello()
            # Twice: the first collection frees what the load has left.
            client.ask(b"XINSIDE")
            text = client.ask(b"XINSIDE").decode()
        self.counts = {name: int(count) for name, count in (each.split("=") for each in text.split()[-4:])}
        self.counts["descriptors"] = descriptors(service.pid)
        self.counts["files in tmp"] = sum(1 for _ in (service.maildir / "tmp").iterdir())
        self.memory = resident(service.pid)


def soak(run: Run) -> None:
    """Load the server in many ways; let it rest now and then, and look at what is left."""
    minutes = run.minutes or (30 if run.full else 0.1)
    temporary = run.folder / "tmp"
    temporary.mkdir()
    service = Service(
        run,
        stack=own_certificate(run),
        config=_STACK + _PLUGIN,
        environment={"TMPDIR": str(temporary)},
        maildir=memory_folder(run) / "maildir",
        limits={"max_errors": 5},
    )
    service.start()
    ledger, total, samples = Ledger(), Audit(), []
    work = 0.0
    began = monotonic()
    for number in range(SAMPLES):
        started = monotonic()
        _load(service, ledger, minutes * 60 / SAMPLES, run, number)
        work += monotonic() - started
        wait_for(lambda: _at_rest(service), 30, "the server to rest")
        samples.append(_settled(service))
        found = audit(ledger, service.maildir)
        total.lost += found.lost
        total.torn += found.torn
        total.files += found.files
        for path in (service.maildir / "new").iterdir():
            path.unlink()
        ledger.acknowledged.clear()
    run.progress(SAMPLES, SAMPLES)
    run.figure("minutes", (monotonic() - began) / 60)
    run.figure("messages acknowledged", ledger.events["acknowledged"])
    run.figure("messages a second", ledger.events["acknowledged"] / work)
    run.figure("connections that ended otherwise", ledger.events["misbehaved"])
    _compare(run, samples[SAMPLES // 4 :])
    run.check("every acknowledged message was found whole", not total.lost and not total.torn, total)
    left = [path.name for path in temporary.iterdir()]
    run.check("no temporary file is left", not left, left[:5])
    run.check("nothing else happened to a client", not ledger.surprises, ledger.surprises)
    run.check("nothing failed in the server", "Traceback" not in service.log, service.log[-2000:])


def _compare(run: Run, samples: list[_Sample]) -> None:
    """Compare the last samples with the first ones after the warm-up."""
    first, last = samples[0], samples[-1]
    for name, count in last.counts.items():
        run.figure(f"{name} at rest: after the warm-up, at the end", f"{first.counts[name]:,}, {count:,}")
        # A pool of threads and its wakers may still grow, and caches fill.
        slack = {"objects": 500, "threads": 2, "greenlets": 3, "descriptors": 3}.get(name, 0)
        run.check(
            f"no {name} are left behind", count <= first.counts[name] + slack, f"{first.counts[name]}, then {count}"
        )
    half = len(samples) // 2
    early, late = (max(each.memory for each in part) / 2**20 for part in (samples[:half], samples[half:]))
    run.figure("memory: most in the first half after the warm-up, in the second, in MB", f"{early:.1f}, {late:.1f}")
    run.check("memory is flat", late <= early * 1.05 + 3, f"{early:.1f} MB, then {late:.1f} MB")


def _settled(service: Service) -> _Sample:
    """Return a sample with as many greenlets as the one before it: handlers may still end after their connections."""
    sample = _Sample(service)
    for _ in range(10):
        before, sample = sample, _Sample(service)
        if sample.counts["greenlets"] == before.counts["greenlets"]:
            break
        sleep(0.2)
    return sample


def _at_rest(service: Service) -> bool:
    """Return True once no connection is left: no socket but the listeners."""
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    port = f":{service.port:04X}"
    # 01: established; 08: the client has closed, and the server has not yet
    return not any(fields[1].endswith(port) and fields[3] in ("01", "08") for fields in map(str.split, table))


def _load(service: Service, ledger: Ledger, seconds: float, run: Run, number: int) -> None:
    until = monotonic() + seconds
    jobs: list[Greenlet[Any, Any]] = [spawn(_client, service, ledger, until, each) for each in range(CLIENTS)]
    while monotonic() < until and not all(job.dead for job in jobs):
        sleep(min(0.2, seconds / 10))
        run.progress(
            round(number + 1 - (until - monotonic()) / seconds, 1),
            SAMPLES,
            f"{ledger.events['acknowledged']:,} messages",
        )
    joinall(jobs, timeout=60)
    killall(jobs)
    for job in jobs:
        if job.exception is not None:
            ledger.surprise(f"a client failed: {job.exception!r}")


def _client(service: Service, ledger: Ledger, until: float, number: int) -> None:
    """Send messages, mostly; the last clients do what goes wrong."""
    choice = random.Random(number)
    while monotonic() < until:
        if number < CLIENTS - 2:
            with Client(service.port) as client:
                client.hello()
                for _ in range(choice.randrange(1, 50)):
                    this = ledger.next_number()
                    reply = client.deliver(ledger.message(this))
                    if not reply.startswith(b"250"):
                        ledger.surprise(f"message: {reply!r}")
                        break
                    ledger.acknowledge(this, reply)
                    if monotonic() > until:
                        break
        else:
            with contextlib.suppress(Closed, OSError):
                choice.choice(_WRONGS)(service.port)
            ledger.events["misbehaved"] += 1
            sleep(0.005)


def _vanish(port: int) -> None:
    """Reset the connection in the middle of a body, large enough to be in a file already."""
    with Client(port) as client:
        client.hello()
        for command in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.com>", b"DATA"):
            client.ask(command)
        client.send(b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 5_000)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _err(port: int) -> None:
    """Make errors until the server closes."""
    with Client(port) as client:
        client.hello()
        while True:
            client.ask(b"WHAT")


def _hurry(port: int) -> None:
    """Leave before the banner."""
    Client(port).close()


def _half_handshake(port: int) -> None:
    """Begin TLS with what is no handshake."""
    with Client(port) as client:
        client.hello()
        client.ask(b"STARTTLS")
        client.ask(b"EHLO in the clear")


def _reset(port: int) -> None:
    """Begin transactions and take them back, without QUIT in the end."""
    with Client(port) as client:
        client.hello()
        for _ in range(5):
            client.ask(b"MAIL FROM:<a@example.org>")
            client.ask(b"RSET")


_WRONGS = (_vanish, _err, _hurry, _half_handshake, _reset)
