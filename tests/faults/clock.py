"""The machine's clock jumps: timeouts neither fire nor hang, limits keep their windows, IDs stay unique."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic

from gevent import Greenlet, joinall, sleep, spawn

from tests.faults.clients import Client, deliver, senders, wait_for
from tests.faults.ledger import Ledger, audit
from tests.faults.redis_server import RedisServer
from tests.faults.run import Run
from tests.faults.service import Service, free_port
from tests.faults.shim import Shim

DAY = 86_400
JUMPS = {
    "a day forward": DAY,
    "a day back": -DAY,
    "ten years forward": 3650 * DAY,
    "an hour back": -3600,
    "a second back": -1,
}

#: Seconds that a command may take; and what a busy machine may add.
COMMAND_TIMEOUT, SLACK = 2.0, 4.0

_DATE = re.compile(rb"^Received: .*?;\s*(.*?)\r\n(?=\S)", re.DOTALL | re.MULTILINE)


def clock(run: Run) -> None:
    """Move the clock of a server that is loaded, of one with clients that wait, and of its limits."""
    shim = Shim(run)
    _under_load(run, shim)
    _timeouts(run, shim)
    _limits(run, shim)


def _under_load(run: Run, shim: Shim) -> None:
    """Move the clock while clients send, to and fro, so that each time of day comes again and again."""
    service, ledger = Service(run, environment=shim.environment, name="loaded"), Ledger()
    service.start()
    times = run.size(10, 500)
    with senders(service.port, ledger, 6):
        for number in range(times):
            run.progress(number, times, "the clock has jumped")
            shim.move_clock([*JUMPS.values()][number % len(JUMPS)])
            enough = ledger.events["acknowledged"] + 10
            wait_for(lambda enough=enough: ledger.events["acknowledged"] >= enough, what="messages after a jump")
    run.progress(times, times, "the clock has jumped")
    events, found = ledger.events, audit(ledger, service.maildir)
    run.figure("jumps of the clock under load", times)
    run.figure("messages acknowledged", events["acknowledged"])
    odd = {name: count for name, count in events.items() if name != "acknowledged"}
    run.check("no transaction failed, and no connection ended", not odd, odd)
    run.check("every acknowledged message is found whole", not found.lost and not found.torn, found)
    run.check("no two files share an ID", not found.confused and found.files == events["acknowledged"], found)
    run.check("nothing failed in the server", "Traceback" not in service.log, service.log[-2000:])
    for name, seconds in JUMPS.items():
        shim.move_clock(seconds)
        new = {*(service.maildir / "new").iterdir()}
        wanted = datetime.now(UTC) + timedelta(seconds=seconds)
        deliver(service.port, ledger.message(1))
        (path,) = {*(service.maildir / "new").iterdir()} - new
        match = _DATE.search(path.read_bytes())
        assert match is not None
        off = abs((parsedate_to_datetime(match[1].decode()) - wanted).total_seconds())
        run.check("the date in Received follows the clock", off < 60, f"{name}: off by {off:.0f} s")
    shim.move_clock(0)


def _timeouts(run: Run, shim: Shim) -> None:
    """Move the clock while clients wait: none is dropped for it, and each is dropped when its time is over."""
    service = Service(
        run,
        environment=shim.environment,
        name="waiting",
        limits={"command_timeout": COMMAND_TIMEOUT, "data_timeout": 2},
    )
    service.start()

    def wait(seconds: float, name: str) -> None:
        with Client(service.port) as client:
            client.hello()
            began = monotonic()
            shim.move_clock(seconds)
            sleep(COMMAND_TIMEOUT / 4)
            reply = client.ask(b"NOOP")
            run.check("a client that waits is not dropped by a jump", reply.startswith(b"250"), f"{name}: {reply!r}")
            began = monotonic()
            sleep(COMMAND_TIMEOUT / 4)
            shim.move_clock(-seconds)  # and the other way, once the server has noticed the wait
            reply, taken = client.reply(), monotonic() - began
            holds = reply.startswith(b"421") and COMMAND_TIMEOUT * 0.9 < taken < COMMAND_TIMEOUT + SLACK
            run.worst(f"a timeout of {COMMAND_TIMEOUT:g} s, with a jump in it, comes after, in s", taken)
            run.check("a client is dropped when its time is over", holds, f"{name}: {reply!r} after {taken:.1f} s")

    for name, seconds in [*JUMPS.items()][: run.size(1, len(JUMPS))]:
        wait(seconds, name)
    shim.move_clock(0)


STRATEGIES = ("fixed-window", "moving-window", "sliding-window-counter")

_LIMIT = (
    '\n[[listeners.middleware]]\nuse = "RateLimit"\nlimit = "5/hour"\nstrategy = "{strategy}"\nstorage = "{storage}"\n'
)


def _limits(run: Run, shim: Shim) -> None:
    """Use up a limit, move the clock by more than its window, and ask again; in memory and in Redis."""
    redis = RedisServer(run)
    redis.start()
    storages = {"memory": "memory://", "Redis": redis.url}
    ports = {(where, strategy): free_port() for where in storages for strategy in STRATEGIES}
    listeners = "".join(
        f'[[listeners]]\nurl = "smtp://127.0.0.1:{port}"' + _LIMIT.format(strategy=strategy, storage=storages[where])
        for (where, strategy), port in ports.items()
    )
    service = Service(run, environment=shim.environment, name="limited", config=listeners)
    service.start()
    for (where, strategy), port in ports.items():
        jobs: list[Greenlet[[int], int]] = [spawn(_passes, port) for _ in range(8)]
        joinall(jobs, timeout=30)
        allowed = sum(job.value or 0 for job in jobs)
        name = f"{strategy} in {where}"
        run.check(f"{name}: 5 of 8 pass", allowed == 5, allowed)
        outcomes = []
        for seconds in (2 * 3600, -2 * 3600, 0):
            shim.move_clock(seconds)
            outcomes.append("passes" if _passes(port) else "refused")
        shim.move_clock(0)
        run.figure(f"{name}, used up: two hours later, two hours earlier, now", ", ".join(outcomes))
        # A moving window in Redis goes by the clock of the machine that asks, as the documentation says.
        if (where, strategy) != ("Redis", "moving-window"):
            run.check(f"{name}: a jump gives nothing back", outcomes == ["refused"] * 3, outcomes)


def _passes(port: int) -> int:
    with Client(port) as client:
        client.hello()
        return int(client.ask(b"MAIL FROM:<a@example.org>").startswith(b"250"))
