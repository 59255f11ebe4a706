"""CeleryTask with a real RabbitMQ: 250 only after its confirmation, and no acknowledged message is lost."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket, subprocess
from kombu.connection import Connection

from greensmtp import SMTPServer
from greensmtp.delivery import CeleryTask, Deliveries
from greensmtp.delivery.handed_off import read_content, read_envelope
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from greensmtp.thread_pool import in_thread_pool
from tests.helpers import until
from tests.peers.answers import AnswerProxy
from tests.peers.rabbitmq import RabbitMQ

# In the group of the tests that measure: a broker that starts takes a processor for itself for some seconds.
pytestmark = [
    pytest.mark.peer,
    pytest.mark.subprocess,
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("serial"),
]

#: A frontend in a process that gevent has patched, as ``greensmtp serve`` is.
PATCHED = """
import gevent.monkey; gevent.monkey.patch_all()
import sys
import gevent
from greensmtp import SMTPServer
from greensmtp.delivery import CeleryTask, Deliveries
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
Deliveries([CeleryTask("tasks.receive", broker=sys.argv[1], queue="mail", timeout=3)]).attach(server)
server.start()
print(server.address[1], flush=True)
gevent.get_hub().threadpool.apply(sys.stdin.read)
server.stop(1)
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    made = RabbitMQ(tmp_path_factory.mktemp("rabbitmq") / "node")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def front(smtp_server: MakeServer) -> Iterator[Callable[..., SMTPServer]]:
    def make(url: str, **options: Any) -> SMTPServer:
        made = smtp_server(start=False)
        Deliveries([CeleryTask("tasks.receive", broker=url, queue="mail", timeout=3, **options)]).attach(made)
        made.start()
        return made

    yield make
    with warnings.catch_warnings():
        # kombu closes a connection that it replaces only by letting go of it.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def send(peer: Peer, end: str = "250") -> str:
    peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
    peer.expect("250", "250", "354")
    peer.send(b"Subject: Tea\r\n\r\nAt four.\r\n.\r\n")
    return peer.expect(end).split()[-1]


def take_all(url: str) -> list[str]:
    """Take all tasks off the queue, and return their IDs. Blocks."""
    found = []
    broker: Any = Connection
    with broker(url, connect_timeout=10) as connection, connection.SimpleQueue("mail") as queue:
        for _ in range(queue.qsize()):
            task = queue.get(timeout=10)
            assert task.properties["delivery_mode"] == 2  # persistent
            envelope, content = read_envelope(task.payload[0][0]), read_content(task.payload[0][1])
            assert content.read() == b"Subject: Tea\r\n\r\nAt four.\r\n"
            found.append(envelope.id)
            task.ack()
    return found


def proxy_url(proxy: AnswerProxy) -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.server.server_port}//"


@contextmanager
def patched_frontend(proxy: AnswerProxy) -> Iterator[Peer]:
    """Run the patched frontend in a process, and connect to it."""
    process: Any = subprocess.Popen(
        [sys.executable, "-c", PATCHED, proxy_url(proxy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        port = int(process.stdout.readline())
        with Peer(socket.create_connection(("127.0.0.1", port), 30), timeout=30) as peer:
            yield peer
    finally:
        process.stdin.close()
        process.stdout.close()
        process.terminate()
        process.wait(20)


def test_without_the_broker_it_is_451_and_nothing_acknowledged_is_lost_by_a_kill(
    broker: RabbitMQ, front: Callable[..., SMTPServer]
) -> None:
    acknowledged: list[str] = []
    with dial(front(broker.url)) as peer:
        peer.hello()
        acknowledged += [send(peer) for _ in range(20)]
        broker.kill()
        send(peer, "451 4.4.1")
        broker.start()
        acknowledged.append(send(peer))
    found = in_thread_pool(take_all, broker.url)
    assert len(found) == len(set(found))
    assert set(found) == set(acknowledged)


def test_a_patched_frontend_loses_nothing_when_the_broker_is_killed_under_load(broker: RabbitMQ) -> None:
    process: Any = subprocess.Popen(
        [sys.executable, "-c", PATCHED, broker.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    acknowledged: set[str] = set()
    refused = 0
    ended = False

    def client() -> None:
        nonlocal refused
        with Peer(socket.create_connection(("127.0.0.1", port), 30), timeout=30) as peer:
            peer.hello()
            while not ended:
                peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
                peer.expect("250", "250", "354")
                peer.send(b"Subject: Tea\r\n\r\nAt four.\r\n.\r\n")
                reply = peer.reply()
                if reply.startswith("250"):
                    acknowledged.add(reply.split()[-1])
                else:
                    assert reply.startswith("451 4.4.1")
                    refused += 1
                    gevent.sleep(0.5)  # a server says 421 to a client that gets many refusals in a row

    try:
        port = int(process.stdout.readline())
        clients = [gevent.spawn(client) for _ in range(3)]
        until(lambda: len(acknowledged) > 50, "mail")
        broker.kill()
        until(lambda: refused > 2, "refusals")
        before = len(acknowledged)
        broker.start()
        until(lambda: len(acknowledged) > before + 50, "mail again")
        ended = True
        gevent.joinall(clients, timeout=30, raise_error=True)
    finally:
        ended = True
        process.stdin.close()
        process.stdout.close()
        process.terminate()
        process.wait(20)
    found = in_thread_pool(take_all, broker.url)
    assert acknowledged <= set(found)
    # More than that is what the broker had and the client was told 451 for: at most one for each client at a time.
    assert len(set(found) - acknowledged) <= 3


def test_250_waits_for_the_confirmation(broker: RabbitMQ, front: Callable[..., SMTPServer]) -> None:
    proxy = AnswerProxy(broker.port)
    try:
        in_thread_pool(take_all, broker.url)  # what a test before this one has left
        port = proxy.server.server_port
        with dial(front(f"amqp://guest:guest@127.0.0.1:{port}//")) as peer:
            peer.hello()
            send(peer)
            proxy.holds = True  # the task arrives, and its confirmation does not
            send(peer, "451 4.4.1")
            proxy.holds = False
            send(peer)
    finally:
        proxy.server.stop(1)
    assert len(in_thread_pool(take_all, broker.url)) == 3


@pytest.mark.parametrize("patched", [False, True])
def test_a_confirmation_that_comes_late_is_not_that_of_the_next_message(
    broker: RabbitMQ, front: Callable[..., SMTPServer], patched: bool
) -> None:
    """py-amqp takes any confirmation on a channel for the one that it waits for."""
    proxy = AnswerProxy(broker.port)
    try:
        with patched_frontend(proxy) if patched else dial(front(proxy_url(proxy))) as peer:
            peer.hello()
            send(peer)
            proxy.holds = True
            send(peer, "451 4.4.1")
            proxy.holds, proxy.is_late = False, True
            send(peer, "451 4.4.1")  # the broker never gets it
            proxy.is_late = False
            send(peer)
    finally:
        proxy.server.stop(1)
    in_thread_pool(take_all, broker.url)


def test_a_wrong_password_is_451_and_is_not_logged(
    broker: RabbitMQ, front: Callable[..., SMTPServer], caplog: pytest.LogCaptureFixture
) -> None:
    with dial(front(broker.url.replace("guest:guest", "guest:pa55word"))) as peer:
        peer.hello()
        send(peer, "451 4.4.1")
    assert "pa55word" not in caplog.text
