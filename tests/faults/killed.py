"""``kill -9`` under load: what was acknowledged is there, whole, and no file is torn."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

from gevent import sleep

from tests.faults.clients import senders, wait_for
from tests.faults.ledger import Ledger, audit
from tests.faults.run import Run
from tests.faults.service import Service

#: Clients that send all the time; how many of them pause within each body, and for how many seconds.
CLIENTS, SLOW, PAUSE = 8, 4, 0.05


def kill(run: Run) -> None:
    """Kill, start again, and kill, while clients send; then compare the Maildir with what they were told."""
    times, seed = run.size(5, 100), random.Random(12)
    service, ledger = Service(run), Ledger()
    starts = [service.start()]
    victims = {"plain": ("server",)}.get(run.mode, ("worker", "arbiter", "all"))
    with senders(service.port, ledger, CLIENTS, slow=SLOW, seconds=PAUSE):
        for number in range(times):
            run.progress(number, times, "killed")
            enough = ledger.events["acknowledged"] + 20
            wait_for(lambda enough=enough: ledger.events["acknowledged"] >= enough, what="messages to be accepted")
            sleep(seed.random() * 0.1)  # at any moment of a transaction
            victim = victims[number % len(victims)]
            refused = ledger.events["refused"]
            _kill(service, victim)
            if victim == "worker":
                more = ledger.events["refused"] - refused
                run.check("no connection is refused while a worker is replaced", not more, more)
            else:
                starts.append(service.start())
        run.progress(times, times, "killed")
        enough = ledger.events["acknowledged"] + 20
        wait_for(lambda: ledger.events["acknowledged"] >= enough, what="messages after the last kill")
    found = audit(ledger, service.maildir)
    run.figure("times killed", times)
    run.figure("messages acknowledged", ledger.events["acknowledged"])
    run.figure("connections cut by the kill in a transaction", ledger.events["cut in a transaction"])
    run.figure("of these, after the final dot: outcome unknown, sent again", ledger.events["outcome unknown"])
    run.figure("messages stored twice, under two IDs", found.repeats)
    run.figure("unfinished files left in tmp", found.partial)
    run.figure("from start to the first banner, at most, in s", max(starts))
    run.check("every acknowledged message is found whole, under its ID", not found.lost, found.lost[:5])
    run.check("no file in new is torn", not found.torn, found.torn[:5])
    run.check("no two files share an ID", not found.confused, found.confused[:5])
    run.check("repeats are those that the client could not know of", found.repeats <= ledger.events["outcome unknown"])
    run.check("nothing else happened to a client", not ledger.surprises, ledger.surprises)


def _kill(service: Service, victim: str) -> None:
    workers = service.workers
    if victim == "worker":
        with suppress(ProcessLookupError):
            os.kill(random.choice(workers), signal.SIGKILL)
        wait_for(lambda: len(set(service.workers) - {*workers}) >= 1, what="a new worker")
        return
    service.signal(signal.SIGKILL)
    service.wait()
    for pid in workers:
        if victim == "all":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if service.mode != "plain":
            wait_for(lambda pid=pid: not _exists(pid), what="the workers of a dead arbiter to end")


def _exists(pid: int) -> bool:
    """Return True if a process runs; one that has ended may still wait for its parent to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
