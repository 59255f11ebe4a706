"""``Forward`` under load: what the relay has acknowledged is at the next hop, whole; and its memory stays flat."""

from __future__ import annotations

import random
import signal
from collections import Counter
from time import monotonic

from gevent import joinall, sleep, spawn

from greensmtp import Ack, MessageStream, Session, SMTPServer
from tests.faults.clients import Client, senders, wait_for
from tests.faults.ledger import Ledger, audit
from tests.faults.run import Run
from tests.faults.service import Service, descriptors, resident

_MODES = ("lock-step", "after-body")

#: Clients that send all the time; how many of them pause within each body, and for how many seconds.
CLIENTS, SLOW, PAUSE = 8, 4, 0.05

#: Bytes of the large message, in lines of 1,000, in the short form and in the full one.
LARGE = 50_000_000, 200_000_000
#: Bytes by which memory may grow with all messages together, and with the large one.
GROWTH = 8_000_000


def _relay(run: Run, mode: str, port: int) -> Service:
    forward = f'[[deliveries]]\nuse = "Forward"\nto = "smtp://127.0.0.1:{port}"\nmode = "{mode}"\nconnections = 10'
    limits = {"max_message_size": 300_000_000}
    return Service(run, delivery=forward, limits=limits, mode="plain", name=f"relay-{mode}")


def forward(run: Run) -> None:
    """Kill the relay and the next hop in turn, in each mode; compare the next hop's Maildir with what was said."""
    times, seed, total = run.size(4, 50), random.Random(12), Counter[str]()
    for mode in _MODES:
        mx = Service(run, mode="plain", name=f"mx-{mode}")
        relay, ledger = _relay(run, mode, mx.port), Ledger()
        mx.start()
        relay.start()
        events = ledger.events
        with senders(relay.port, ledger, CLIENTS, slow=SLOW, seconds=PAUSE):
            for number in range(times + 1):
                run.progress(number, times, f"killed, {mode}")
                enough = events["acknowledged"] + 20
                wait_for(lambda enough=enough, events=events: events["acknowledged"] >= enough, what="mail")
                if number == times:
                    break
                sleep(seed.random() * 0.1)  # at any moment of a transaction
                victim = (relay, mx)[number % 2]
                victim.signal(signal.SIGKILL)
                victim.wait()
                victim.start()
        found = audit(ledger, mx.maildir)
        total.update(events, repeats=found.repeats, times=times)
        run.check("every acknowledged message is at the next hop, whole, under its ID", not found.lost, found.lost[:5])
        run.check("no message is torn", not found.torn, found.torn[:5])
        run.check("no two messages share an ID", not found.confused, found.confused[:5])
        run.check("nothing else happened to a client", not ledger.surprises, ledger.surprises)
        mx.end()
        relay.end()
    run.figure("times killed", total["times"])
    run.figure("messages acknowledged", total["acknowledged"])
    run.figure("replies 451 in a transaction: sent again", total["451 in a transaction"] + total["451 at MAIL"])
    run.figure("connections cut by the kill in a transaction", total["cut in a transaction"])
    run.figure("messages delivered twice, under two IDs", total["repeats"])


def forward_many(run: Run) -> None:
    """Send many messages of 1 kB through a relay, then a large one; watch its memory and descriptors."""
    many, large = run.size(600, 10_000), run.size(*LARGE)
    sizes: list[int] = []
    mx = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", max_message_size=None)

    @mx.on("message")
    def count(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        sizes.append(sum(map(len, stream)))

    mx.start()
    run.cleanup.callback(mx.stop, 1)
    for mode in _MODES:
        relay = _relay(run, mode, int(mx.address[1]))
        relay.start()
        _send(relay.port, max(200, many // 10))  # the warm-up
        before, open_before = resident(relay.pid), descriptors(relay.pid)
        sizes.clear()
        began = monotonic()
        _send(relay.port, many)
        run.figure(f"messages in a second, {mode}", round(many / (monotonic() - began)))
        run.check("each message arrives once", len(sizes) == many, len(sizes))
        grown = resident(relay.pid) - before
        run.figure(f"memory, {mode}, in MB", round(before / 1e6, 1))
        run.figure(f"its growth with all messages, {mode}, in MB", round(grown / 1e6, 1))
        run.check("memory is flat", grown < GROWTH, f"{mode}: {grown}")
        before = resident(relay.pid)
        run.figure(f"its growth with the large message, {mode}, in MB", round(_send_large(relay, large) / 1e6, 1))
        run.check("the large message arrives", sizes[-1] >= large, sizes[-1])
        grown = resident(relay.pid) - before
        run.check("memory is flat with the large message", grown < GROWTH, f"{mode}: {grown}")
        left = descriptors(relay.pid) - open_before
        run.check("no descriptor is left", left <= CLIENTS, f"{mode}: {left}")
        relay.end()


def _send(port: int, count: int) -> None:
    """Send messages over kept connections, from several clients at once."""
    body = b"Subject: one of many\r\n\r\n" + b"x" * 78 + b"\r\n"
    body += (b"y" * 78 + b"\r\n") * 12

    def some(share: int) -> None:
        with Client(port) as client:
            client.hello()
            for _ in range(share):
                reply = client.deliver(body)
                assert reply.startswith(b"250"), reply

    shares = [count // CLIENTS + (number < count % CLIENTS) for number in range(CLIENTS)]
    joinall([spawn(some, share) for share in shares], raise_error=True)


def _send_large(relay: Service, size: int) -> int:
    """Send a message of so many bytes; return by how much the relay's memory was greater meanwhile."""
    piece, before, most = (b"z" * 998 + b"\r\n") * 1000, resident(relay.pid), 0
    with Client(relay.port) as client:
        client.hello()
        for command in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.com>", b"DATA"):
            assert client.ask(command)[:1] in b"23"
        for _ in range(size // len(piece)):
            client.send(piece)
            most = max(most, resident(relay.pid) - before)
        reply = client.ask(b".")
        assert reply.startswith(b"250"), reply
    return max(most, resident(relay.pid) - before)
