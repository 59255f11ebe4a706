"""RateLimit with a real redis-server: limits across processes, and outages."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise, product
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from gevent import sleep, socket, spawn

from greensmtp import SMTPServer
from greensmtp.middleware import RateLimit
from greensmtp.middleware.rate_limit import store
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting, covering

pytestmark = pytest.mark.peer


class Redis:
    """A redis-server on a free loopback port, without persistence."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=self._folder, stdout=subprocess.DEVNULL)
        deadline = monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert monotonic() < deadline, "redis-server does not listen"
                sleep(0.01)  # there is no other way to learn that it does

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def redis(program: Callable[[str], str], tmp_path: Path) -> Iterator[Redis]:
    server = Redis(program("redis-server"), tmp_path)
    server.start()
    yield server
    server.stop()


SERVER = """
import sys
from gevent import monkey
if "patched" in sys.argv:
    monkey.patch_all()
import gevent
from greensmtp import SMTPServer
from greensmtp.middleware import RateLimit
limit = RateLimit("6/minute", on=sys.argv[2], storage=sys.argv[1], strategy=sys.argv[3])
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", middleware=[limit])
server.on("message", lambda session, stream, ack: ack.accept())
server.start()
print(server.address[1], flush=True)
gevent.get_hub().threadpool.apply(sys.stdin.read)
server.stop(1)
"""


@contextmanager
def serving(*arguments: str) -> Iterator[Callable[[], Peer]]:
    """Run a server in another process; yield a function that connects to it."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield lambda: Peer(socket.create_connection(("127.0.0.1", port), 10))
        process.stdin.close()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


STRATEGIES = ["moving-window", "fixed-window", "sliding-window-counter"]


@pytest.mark.parametrize(("strategy", "on"), covering(product(STRATEGIES, ["connections", "messages", "recipients"])))
def test_a_limit_holds_across_two_server_processes(redis: Redis, strategy: str, on: str) -> None:
    with ExitStack() as stack:
        # One of them is patched, the other not.
        dials = [stack.enter_context(serving(redis.url, on, strategy, *more)) for more in ((), ("patched",))]
        taken, refusals = [0, 0], set()
        for number in range(10):
            with dials[number % 2]() as peer:
                reply = peer.reply()
                if reply.startswith("220"):
                    peer.line("EHLO client.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
                    peer.expect("250")
                    mail, rcpt = peer.reply(), peer.reply()
                    reply = rcpt if mail.startswith("250") else mail
                if reply.startswith("250"):
                    peer.line("DATA", "Hello.", ".")
                    peer.expect("354", "250")
                    taken[number % 2] += 1
                else:
                    refusals.add(reply[:9])
    # A fixed window may end in between.
    assert sum(taken) == 6 or (strategy == "fixed-window" and 6 <= sum(taken) <= 10)
    assert taken[0] == taken[1]
    assert refusals == {"421 4.7.0" if on == "connections" else "450 4.7.1"} or sum(taken) == 10


def test_octets_and_failures_are_counted_there_too(smtp_server: MakeServer, redis: Redis) -> None:
    limit = RateLimit("1000/hour", on="bytes", storage=redis.url)
    with greet(accepting(smtp_server, limit)) as peer:
        assert peer.deliver("x" * 598 + "\r\n").startswith("250")
        assert peer.deliver("x" * 598 + "\r\n").startswith("450 4.7.1")
        peer.line("MAIL FROM:<a@example.com>", "MAIL FROM:<a@example.com> SIZE=1001")
        peer.expect("450", "552")


def test_limits_that_differ_in_strategy_alone_do_not_disturb_each_other(
    smtp_server: MakeServer, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    # As after a change of the configuration: the keys of the strategy before are still there.
    for strategy in STRATEGIES:
        limit = RateLimit("1/hour", storage=redis.url, strategy=strategy)  # type: ignore[arg-type]
        with greet(accepting(smtp_server, limit)) as peer:
            peer.line("MAIL FROM:<a@example.com>", "RSET", "MAIL FROM:<a@example.com>")
            peer.expect("250", "250", "450 4.7.1")
    assert not caplog.records


def greet(server: SMTPServer) -> Peer:
    peer = dial(server, source=("192.0.2.1", 1))
    peer.hello()
    return peer


class Complaints:
    """The log records about a storage, and the clock that decides when it is tried again."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.now = monotonic()

    def take(self) -> list[str]:
        """Return the messages that were logged since the last call."""
        found = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Complaints:
    caplog.set_level(logging.INFO, "greensmtp.limits")
    complaints = Complaints(caplog)
    monkeypatch.setattr(store, "monotonic", lambda: complaints.now)
    return complaints


#: on -> what is said, and the replies: when all is well, and when it cannot be known whether it is
ASKS = {
    "connections": ("", "220", "421 4.3.0"),
    "messages": ("EHLO client.example\r\nMAIL FROM:<a@example.com>\r\n", "250", "451 4.3.0"),
    "auth_failures": ("EHLO client.example\r\nAUTH PLAIN\r\n", "502", "454 4.7.0"),
}


def ask(server: SMTPServer, on: str) -> str:
    words, _, _ = ASKS[on]
    with dial(server, source=("192.0.2.1", 1)) as peer:
        reply = peer.reply()
        if words:
            peer.send(words)
            peer.expect("250")
            reply = peer.reply()
        return reply[:9]


@pytest.mark.parametrize("on", sorted(ASKS))
@pytest.mark.parametrize("fail_open", [True, False, None])
def test_killed_midway_fail_open_decides_and_it_is_logged_once(
    smtp_server: MakeServer, redis: Redis, complaints: Complaints, on: Any, fail_open: bool | None
) -> None:
    _, well, unknown = ASKS[on]
    server = accepting(smtp_server, RateLimit("100/minute", on=on, storage=redis.url, fail_open=fail_open))
    opens = on != "auth_failures" if fail_open is None else fail_open
    assert ask(server, on).startswith(well)
    redis.stop()
    for _ in range(3):
        assert ask(server, on).startswith(well if opens else unknown)
        complaints.now += 31  # each of them tries again
    (only,) = complaints.take()
    assert f"{redis.url} cannot be asked (ConnectionError: " in only
    redis.start()
    for _ in range(2):
        assert ask(server, on).startswith(well)
    assert complaints.take() == [f"{redis.url} answers again"]
    redis.stop()
    assert ask(server, on).startswith(well if opens else unknown)
    assert len(complaints.take()) == 1  # another outage


def test_while_it_is_down_it_is_left_alone(
    redis: Redis, complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = RateLimit("100/minute", storage=redis.url)
    tries: list[float] = []
    call = limit._store._call

    def counted(question: Any, trying: bool) -> Any:
        tries.append(complaints.now)
        return call(question, trying)

    monkeypatch.setattr(limit._store, "_call", counted)
    redis.stop()
    for _ in range(1000):
        with pytest.raises(store.Unavailable):
            limit._store.ask(limit._quota.test, "192.0.2.1", 1)
        complaints.now += 0.25
    gaps = [round(after - before) for before, after in pairwise(tries)]
    assert gaps == [1, 2, 4, 8, 16, *[30] * len(gaps[5:])]
    assert len(gaps) > 8


@pytest.mark.parametrize("patched", [False, True])
def test_a_redis_that_never_answers_delays_no_client(patched: bool) -> None:
    """The server accepts connections, and never answers."""
    program = f"""
from gevent import monkey
if {patched}:
    monkey.patch_all()
import logging
from time import monotonic
import gevent
from gevent import socket
from greensmtp import SMTPServer
from greensmtp.middleware import RateLimit
from greensmtp.testing import dial

logging.basicConfig(format="%(message)s")
silent = socket.socket()
silent.bind(("127.0.0.1", 0))
silent.listen(100)
limit = RateLimit("9/minute", storage="redis://127.0.0.1:%d" % silent.getsockname()[1], timeout=0.3)
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", middleware=[limit])
server.on("message", lambda session, stream, ack: ack.accept())
ticks = 0

def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1

def deliver(number):
    with dial(server, source=("192.0.2.1", number)) as peer:
        peer.hello()
        assert peer.deliver().startswith("250")

ticking = gevent.spawn(tick)
began = monotonic()
gevent.joinall([gevent.spawn(deliver, number) for number in range(40)], raise_error=True)
took = monotonic() - began
assert took < 5, took
assert ticks > 10, ticks  # the hub was never kept
deliver(41)
if not {patched}:
    # Not many more were tried than there are threads, and no thread is kept.
    gevent.with_timeout(5, gevent.get_hub().threadpool.apply, int)
    silent.settimeout(0)
    tried = []
    try:
        while True:
            tried.append(silent.accept()[0])
    except BlockingIOError:
        pass
    assert len(tried) <= gevent.get_hub().threadpool.maxsize + 5, len(tried)
print("ok")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)
    assert ran.stdout == "ok\n", ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert "cannot be asked (TimeoutError: " in ran.stderr


def test_one_tries_and_the_others_do_not_wait_for_it(smtp_server: MakeServer) -> None:
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(10)
    limit = RateLimit("9/minute", storage=f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
    limit._store._down = True  # and it is time to try again
    server = accepting(smtp_server, limit)
    with greet(server) as first, greet(server) as second:
        first.line("MAIL FROM:<a@example.com>")
        first.let_it_read()
        second.line("MAIL FROM:<a@example.com>")
        second.expect("250")
        first.expect_nothing(0.01)  # it is the one that tries
        first.expect("250")
    silent.close()


def test_many_share_the_connections_to_it(smtp_server: MakeServer, redis: Redis) -> None:
    limits = [RateLimit("30/minute", on=on, storage=redis.url) for on in ("messages", "recipients")]
    assert limits[0]._store is limits[1]._store
    server = accepting(smtp_server, *limits)

    def deliver(number: int) -> bool:
        with greet(server) as peer:
            try:
                return peer.deliver().startswith("250")
            except AssertionError:
                return False

    delivered = [spawn(deliver, number) for number in range(40)]
    assert sum(each.get(timeout=20) for each in delivered) == 30
