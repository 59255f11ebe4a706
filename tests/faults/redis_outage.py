"""Redis gone, back, and slow: RateLimit does what ``fail_open`` says, and waits no longer than its timeout."""

from __future__ import annotations

from collections import Counter
from time import monotonic

from gevent import Greenlet, joinall, sleep, spawn

from tests.faults.clients import Client, Closed
from tests.faults.redis_server import RedisServer, SlowProxy
from tests.faults.run import Run
from tests.faults.service import Service, free_port

#: The `timeout` of the limits. A question may connect first, so it takes twice as long at most.
TIMEOUT = 0.5
#: What a busy machine may add, in seconds.
SLACK = 2.0
#: Clients that ask at once.
CLIENTS = 20

_LIMIT = """use = "RateLimit"
limit = "100000/minute"
strategy = "{strategy}"
storage = "{url}"
timeout = {timeout}
fail_open = {fail_open}
"""


def redis(run: Run) -> None:
    """Ask for MAIL on two listeners, one of which fails open, while Redis comes and goes, and while it is slow."""
    server = RedisServer(run)
    server.start()
    proxy = SlowProxy(run, server)
    rounds = run.size(1, 10)
    service, ports = _serve(run, server.url, "direct")
    slow_service, slow_ports = _serve(run, proxy.url, "slow")
    as_fail_open_says, accepted = {each: each for each in ports}, dict.fromkeys(ports, "250")
    for number in range(rounds):
        run.progress(number, rounds, "Redis went")
        _ask(run, "there", ports, accepted)
        for what, begin, end in (("gone", server.kill, server.start), ("stopped", server.stop, server.go_on)):
            begin()
            _ask(run, what, ports, as_fail_open_says)
            _ask(run, f"{what} for a while", ports, as_fail_open_says)
            end()
            _come_back(run, what, ports)
        proxy.delay = TIMEOUT / 20
        _ask(run, "slow, but within the timeout", slow_ports, accepted)
        for what, delay, drip in (("slower than the timeout", 3 * TIMEOUT, 0.0), ("dripping", 0.0, TIMEOUT * 0.8)):
            proxy.delay, proxy.drip = delay, drip
            _ask(run, what, slow_ports, as_fail_open_says)
            proxy.delay = proxy.drip = 0.0
            _come_back(run, what, slow_ports)
    run.progress(rounds, rounds, "Redis went")
    run.figure("times gone, stopped, and slow", rounds)
    errors = service.log.count("cannot be asked")
    run.check("an outage is logged once", errors == 2 * rounds, f"{errors} lines about {2 * rounds} outages")
    for each in (service, slow_service):
        run.check("nothing failed in the server", "Traceback" not in each.log, each.log[-2000:])


def _serve(run: Run, url: str, name: str) -> tuple[Service, dict[str, int]]:
    """Start a server with two listeners; return the port of the one that fails open by "250", of the other by "451"."""
    closed_port = free_port()

    def limit(fail_open: str) -> str:
        return _LIMIT.format(strategy="moving-window", url=url, timeout=TIMEOUT, fail_open=fail_open)

    closed = f'[[listeners]]\nurl = "smtp://127.0.0.1:{closed_port}"\n[[listeners.middleware]]\n{limit("false")}'
    listener = "[[listeners.middleware]]\n" + limit("true")
    service = Service(run, listener=listener, stack="", config=closed, name=name)
    service.start()
    return service, {"250": service.port, "451": closed_port}


def _ask(run: Run, when: str, ports: dict[str, int], wanted: dict[str, str]) -> None:
    """Send MAIL on many connections at once, and check the replies and how long they took."""
    began_hub = monotonic()
    jobs: list[Greenlet[[int], tuple[str, float]]] = [
        spawn(_mail, port) for port in ports.values() for _ in range(CLIENTS)
    ]
    joinall(jobs, timeout=60)
    answers: list[tuple[str, float]] = [job.value or ("none", monotonic() - began_hub) for job in jobs]
    for number, (listener, _) in enumerate(ports.items()):
        mine = answers[number * CLIENTS : (number + 1) * CLIENTS]
        name = "open" if listener == "250" else "closed"
        codes = Counter(code for code, _ in mine)
        run.check(f"Redis {when}, fails {name}: {wanted[listener]}", set(codes) == {wanted[listener]}, dict(codes))
    worst = max(seconds for _, seconds in answers)
    run.worst(f"Redis {when}: slowest reply to MAIL, in ms", worst * 1000)
    run.check(f"Redis {when}: no reply takes longer than its timeout", worst < 2 * TIMEOUT + SLACK, f"{worst:.2f} s")


def _mail(port: int) -> tuple[str, float]:
    with Client(port) as client:
        client.hello()
        began = monotonic()
        return client.ask(b"MAIL FROM:<a@example.org>")[:3].decode(), monotonic() - began


def _come_back(run: Run, after: str, ports: dict[str, int]) -> None:
    """Wait until the listener that fails closed accepts again."""
    began = monotonic()
    answer = "451"
    while answer != "250" and monotonic() - began < 40:
        sleep(0.05)
        try:
            answer = _mail(ports["451"])[0]
        except Closed:
            answer = "closed"
    run.worst(f"Redis back after it was {after}: asked again after, in s", monotonic() - began)
    run.check(f"Redis back after it was {after}: limits are checked again", answer == "250", answer)
