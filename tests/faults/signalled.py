"""SIGTERM and SIGHUP under load: no connection is refused, and no transaction is cut before its grace."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from gevent import sleep

from tests.faults.clients import senders, wait_for
from tests.faults.ledger import Ledger, audit
from tests.faults.run import Run, Unavailable
from tests.faults.service import Service, need_mode

#: Clients that send all the time; and how many of them pause within each body, for so many seconds.
CLIENTS, SLOW, PAUSE = 10, 4, 0.5


def terminate(run: Run) -> None:
    """Send SIGTERM to what serves, again and again. The listening socket is kept by the arbiter, or as systemd does."""
    if run.mode != "plain":
        _run(run, Service(run), _end_worker)
        return
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as kept:
        try:
            need_mode("activated")
            mode = "activated"
        except Unavailable:
            mode = "library"
        _run(run, Service(run, mode=mode, kept=kept), _restart)


def hang_up(run: Run) -> None:
    """Change the server's name in its configuration and send SIGHUP, again and again."""

    def reload(run: Run, service: Service) -> None:
        before = set(service.workers)
        service.rename()
        service.signal(signal.SIGHUP)
        if service.mode != "plain":
            wait_for(lambda: not before <= set(service.workers), what="new workers")
        service.wait_ready()  # until a banner has the new name

    _run(run, Service(run), reload)


def _run(run: Run, service: Service, act: Callable[[Run, Service], None]) -> None:
    times, seed, ledger = run.size(5, 50), random.Random(3), Ledger()
    service.start()
    with senders(service.port, ledger, CLIENTS, slow=SLOW, seconds=PAUSE):
        for number in range(times):
            run.progress(number, times, "signalled")
            enough = ledger.events["acknowledged"] + 20
            wait_for(lambda enough=enough: ledger.events["acknowledged"] >= enough, what="messages to be accepted")
            sleep(seed.random() * 0.2)
            act(run, service)
        enough = ledger.events["acknowledged"] + 20
        wait_for(lambda: ledger.events["acknowledged"] >= enough, what="messages after the last signal")
        run.progress(times, times, "signalled")
    events, found = ledger.events, audit(ledger, service.maildir)
    run.figure("signals", times)
    run.figure("messages acknowledged", events["acknowledged"])
    run.figure("421 instead of the banner", events["421 at the door"])
    run.figure("421 to MAIL, between two transactions", events["421 at MAIL"])
    run.figure("closed between two transactions, without a reply that was read", events["closed before a transaction"])
    run.check("no connection was refused", not events["refused"], events["refused"])
    cut = {name: count for name, count in events.items() if name.endswith("in a transaction")}
    run.check("no transaction was cut or refused", not cut, cut)
    run.check("nothing else happened to a client", not ledger.surprises, ledger.surprises)
    run.check("each acknowledged message is there once, whole", not found.lost and not found.repeats, found)
    run.check("no file is torn or unfinished", not found.torn and not found.partial, found)
    run.check("nothing failed in the server", "Traceback" not in service.log, service.log[-2000:])


def _restart(run: Run, service: Service) -> None:
    began = monotonic()
    service.signal(signal.SIGTERM)
    status = service.wait()
    run.worst("from SIGTERM to the end, at most, in s", monotonic() - began)
    run.check("it ends with status 0", status == 0, status)
    service.start(wait=False)


def _end_worker(run: Run, service: Service) -> None:
    workers = service.workers
    with suppress(ProcessLookupError):
        os.kill(random.choice(workers), signal.SIGTERM)
    wait_for(lambda: bool(set(service.workers) - {*workers}), what="a new worker")
