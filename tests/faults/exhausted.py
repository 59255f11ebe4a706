"""Descriptors run out: accepted mail is kept, the log stays short, and the server recovers by itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gevent import Greenlet, joinall, sleep, socket, spawn

from tests.faults.clients import Client, Closed, wait_for
from tests.faults.ledger import Ledger, audit
from tests.faults.run import Run
from tests.faults.service import Service, descriptors

#: Descriptors that are left to the server, beside those that it has at rest.
LEFT = 40


def exhausted(run: Run) -> None:
    """Open connections until no descriptor is left, send mail over some of them, and close the rest again."""
    service, ledger = Service(run), Ledger(sizes=(3_000,))
    service.start()
    _send_all(service, ledger, 10)  # the thread pool has its threads
    rest = descriptors(service.pid)
    service.limit_descriptors(rest + LEFT)
    rounds = run.size(3, 50)
    refused: Counter[str] = Counter()
    for number in range(rounds):
        run.progress(number, rounds, "exhausted")
        early = [Client(service.port) for _ in range(LEFT // 2)]
        for client in early:
            client.hello()
        late = [socket.create_connection(("127.0.0.1", service.port), 10) for _ in range(2 * LEFT)]
        wait_for(lambda: descriptors(service.pid) >= rest + LEFT - 1, what="descriptors to run out")
        jobs = [spawn(_deliver, client, ledger) for client in early]
        joinall(jobs, timeout=60)
        refused.update(job.value if job.value is not None else "none" for job in jobs)
        for client in early:
            client.close()
        for each in late:
            each.close()
        run.worst("from the end of the crowd to the next accepted message, in s", _recovered(service, ledger))
        wait_for(lambda: descriptors(service.pid) <= rest + 2, what="descriptors to be closed")
    run.progress(rounds, rounds, "exhausted")
    found = audit(ledger, service.maildir)
    run.figure("times out of descriptors", rounds)
    run.figure("messages acknowledged", ledger.events["acknowledged"])
    run.figure(
        "replies to messages without a descriptor", ", ".join(f"{count} x {code}" for code, count in refused.items())
    )
    run.check("a message gets 250, or 4xx", all(code[0] in "24" for code in refused), dict(refused))
    run.check("every acknowledged message is found whole", not found.lost and not found.torn, found)
    stored, told = found.files, ledger.events["acknowledged"]
    run.check("what was refused is not there", stored == told and not found.partial, f"{found}, {told} acknowledged")
    lines = service.log.count("cannot accept connections")
    run.figure("lines in the log about connections that cannot be accepted", lines)
    run.check("the log has few lines about it", lines <= 5 * rounds, lines)
    run.check("nothing failed in the server", "Traceback" not in service.log, service.log[-3000:])


def _deliver(client: Client, ledger: Ledger) -> str:
    """Send a message on an open connection; return the code of the reply."""
    number = ledger.next_number()
    try:
        reply = client.deliver(ledger.message(number))
    except Closed:
        return "closed"
    if reply.startswith(b"250"):
        ledger.acknowledge(number, reply)
    return reply[:3].decode()


def _send_all(service: Service, ledger: Ledger, count: int) -> None:
    def send() -> str:
        with Client(service.port) as client:
            client.hello()
            return _deliver(client, ledger)

    jobs: list[Greenlet[[], str]] = [spawn(send) for _ in range(count)]
    joinall(jobs, timeout=60)


def _recovered(service: Service, ledger: Ledger) -> float:
    """Wait until a message is accepted; return the seconds that this took."""

    def is_accepted() -> Any:
        try:
            with Client(service.port, timeout=10) as client:
                return client.hello().startswith(b"250") and _deliver(client, ledger) == "250"
        except (OSError, Closed):
            sleep(0.05)
            return False

    return wait_for(is_accepted, what="the server to recover")
