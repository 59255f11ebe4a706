"""A disk that is full, read-only, slow, or does not answer: 4xx, and mail flows again when it is well."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from gevent import Greenlet, joinall, sleep, spawn

from tests.faults.clients import Client, deliver, wait_for
from tests.faults.ledger import Ledger, audit
from tests.faults.run import NotPermitted, Run
from tests.faults.service import Service
from tests.faults.shim import Shim

#: A client that does not deliver, while others wait for a disk, gets its replies within this, in seconds. Usually it
#: is milliseconds; a busy machine takes longer, and a hub that waits for the disk as long as the disk does.
PROMPT = 1.0


def disk(run: Run) -> None:
    """Fill a small disk, remount it, slow it down and let it hang; deliver meanwhile, and afterwards."""
    if os.geteuid() != 0:
        raise NotPermitted("only root can mount a disk to fill")
    folder = run.folder / "disk"
    folder.mkdir()
    _mount(run, folder)
    shim = Shim(run)
    service = Service(
        run, maildir=folder / "maildir", environment=shim.environment, limits={"handler_timeout": 3, "ack_timeout": 3}
    )
    service.start()
    ledger = Ledger(sizes=(3_000,))
    _broken(run, service, ledger, folder)
    _slow(run, service, ledger, shim)
    _hanging(run, service, ledger, shim)
    found = audit(ledger, service.maildir)
    run.figure("messages acknowledged", ledger.events["acknowledged"])
    run.check("every acknowledged message is found whole", not found.lost, found.lost[:5])
    run.check("no file in new is torn", not found.torn, found.torn[:5])
    stored, told = found.files, ledger.events["acknowledged"]
    run.check("each message that was refused is not there", stored == told, f"{stored} stored, {told} acknowledged")
    run.check("no unfinished file is left in tmp", not found.partial, found.partial)


def _mount(run: Run, folder: Path, options: str = "size=1M,nr_inodes=400") -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "faults", str(folder)]
    if subprocess.run(command, check=False, capture_output=True, timeout=20).returncode:
        raise NotPermitted("tmpfs cannot be mounted here")
    run.cleanup.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=False, timeout=20)


def _remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True, timeout=20)


def _send(service: Service, ledger: Ledger) -> str:
    """Send one message; return its reply."""
    number = ledger.next_number()
    reply = deliver(service.port, ledger.message(number))
    if reply.startswith(b"250"):
        ledger.acknowledge(number, reply)
    return reply.decode().strip()


def _broken(run: Run, service: Service, ledger: Ledger, folder: Path) -> None:
    """Run out of bytes, and of inodes; be read-only."""
    rounds = run.size(2, 20)
    for number in range(rounds):
        run.progress(number, rounds, "full")
        for what, fill in (("bytes", "x" * 4096), ("inodes", "")):
            filler = folder / "filler"
            filler.mkdir()
            count = 0
            try:
                while True:
                    (filler / str(count)).write_text(fill)
                    count += 1
            except OSError:
                pass
            with _bystander(run, service, f"full of {what}"):
                replies = Counter(_send(service, ledger)[:9] for _ in range(5))
            run.check(f"no {what} left: 452 4.3.1", set(replies) == {"452 4.3.1"}, dict(replies))
            for path in filler.iterdir():
                path.unlink()
            filler.rmdir()
            reply = _send(service, ledger)
            run.check(f"{what} again: 250", reply.startswith("250"), reply)
        _remount(folder, "ro")
        with _bystander(run, service, "read-only"):
            replies = Counter(_send(service, ledger)[:9] for _ in range(5))
        run.check("read-only: 451 4.3.0", set(replies) == {"451 4.3.0"}, dict(replies))
        _remount(folder, "rw")
        reply = _send(service, ledger)
        run.check("writable again: 250", reply.startswith("250"), reply)
        _full_in_a_message(run, service, ledger, folder / "filler")
    run.progress(rounds, rounds, "full")
    run.figure("times full of bytes, full of inodes, read-only", rounds)


def _full_in_a_message(run: Run, service: Service, ledger: Ledger, filler: Path) -> None:
    """Run out of bytes in the middle of a message that is written in pieces."""
    space = os.statvfs(filler.parent)
    filler.write_bytes(bytes(space.f_bavail * space.f_frsize - 300_000))
    reply = deliver(service.port, Ledger(sizes=(400_000,)).message(1))
    run.check("no bytes left for the rest of a message: 452 4.3.1", reply.startswith(b"452 4.3.1"), reply)
    small = _send(service, ledger)
    run.check("room for a small message: 250", small.startswith("250"), small)
    filler.unlink()


def _slow(run: Run, service: Service, ledger: Ledger, shim: Shim) -> None:
    """Let each fsync take long, with more clients than the Maildir has threads."""
    seconds = 0.3 if not run.full else 1.0
    shim.slow_fsync(seconds)
    began = monotonic()
    with _bystander(run, service, "slow"):
        jobs: list[Greenlet[[Service, Ledger], str]] = [spawn(_send, service, ledger) for _ in range(12)]
        joinall(jobs, timeout=60)
    shim.slow_fsync(0)
    replies = Counter((job.value or "none")[:3] for job in jobs)
    run.figure(f"12 messages at once, fsync takes {seconds:g} s: all answered after, in s", monotonic() - began)
    run.check(
        "slow: each message gets 250, or 451 after handler_timeout", set(replies) <= {"250", "451"}, dict(replies)
    )


def _hanging(run: Run, service: Service, ledger: Ledger, shim: Shim) -> None:
    """Let fsync hang for longer than a handler may take."""
    shim.slow_fsync(600)
    began = monotonic()
    with _bystander(run, service, "hanging"):
        jobs: list[Greenlet[[Service, Ledger], str]] = [spawn(_send, service, ledger) for _ in range(12)]
        joinall(jobs, timeout=60)
    replies = Counter((job.value or "none")[:3] for job in jobs)
    run.figure("fsync hangs, handler_timeout is 3 s: all answered after, in s", monotonic() - began)
    run.check("hanging: 451", set(replies) == {"451"}, dict(replies))
    shim.slow_fsync(0)
    deadline = monotonic() + 30
    while any((service.maildir / "tmp").iterdir()) and monotonic() < deadline:
        sleep(0.05)
    reply = _send(service, ledger)
    run.check("answers again: 250", reply.startswith("250"), reply)


@contextmanager
def _bystander(run: Run, service: Service, when: str) -> Iterator[None]:
    """Ask NOOP on another connection, and open new ones, during the block; check that the replies are prompt."""
    taken: list[float] = []
    running = True

    def ask() -> None:
        while running:
            began = monotonic()
            with Client(service.port) as client:
                client.hello()
                taken.append(monotonic() - began)
                # Fewer commands than max_idle_commands.
                for number in range(40):
                    began = monotonic()
                    reply = client.ask(b"RSET" if number % 2 else b"MAIL FROM:<a@example.org>")
                    taken.append(monotonic() - began if reply.startswith(b"250") else float("inf"))
                    sleep(0.005)
                    if not running:
                        break

    asking: Greenlet[[], None] = spawn(ask)
    try:
        yield
        wait_for(lambda: len(taken) >= 20 or asking.dead, what="replies to others")
    finally:
        running = False
        asking.join(60)
    worst = max(taken, default=float("inf"))
    run.worst(f"slowest reply to others while {when}, in ms", worst * 1000)
    run.check(f"others are served while {when}", asking.successful() and worst < PROMPT, f"{worst:.2f} s")
