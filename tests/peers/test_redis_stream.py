"""RedisStream with a real redis-server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from greensmtp import ArgumentError, SMTPServer
from greensmtp.delivery import Deliveries, RedisStream
from greensmtp.delivery.redis_stream import read_entry, settle_entry
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from greensmtp.thread_pool import in_thread_pool
from tests.helpers import free_port, until
from tests.peers.answers import AnswerProxy

pytestmark = [pytest.mark.peer, pytest.mark.subprocess]

ROOT = Path(__file__).resolve().parents[2]

BODY = b"Subject: Tea\r\n\r\n.At four. \xc3\xa9\r\n"


class Server:
    """A redis-server on a free loopback port that flushes each write before it answers."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        folder.mkdir()
        common = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._command = [program, *common, "--appendonly", "yes", "--appendfsync", "always", *options]
        self.client: Any = Redis(port=self.port, socket_timeout=10)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until(self._is_ready, "redis-server")

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisConnectionError:
            return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def entries(self) -> list[Any]:
        return list(self.client.xrange("mail"))


@pytest.fixture
def redis(program: Callable[[str], str], tmp_path: Path) -> Iterator[Server]:
    server = Server(program("redis-server"), tmp_path / "redis")
    yield server
    server.kill()
    server.client.close()


@pytest.fixture
def front(smtp_server: MakeServer) -> Callable[..., SMTPServer]:
    def make(url: str, **options: Any) -> SMTPServer:
        made = smtp_server(start=False)
        Deliveries([RedisStream(url, stream="mail", **options)]).attach(made)
        made.start()
        return made

    return make


def send(peer: Peer, body: bytes = BODY, end: str = "250") -> str:
    peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>", "DATA")
    peer.expect("250", "250", "250", "354")
    peer.send(body.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return peer.expect(end).split()[-1]


def test_a_group_reads_what_was_added(front: Callable[..., SMTPServer], redis: Server, tmp_path: Path) -> None:
    redis.client.xgroup_create("mail", "workers", mkstream=True)
    large = BODY + (b"x" * 900 + b"\r\n") * 1000
    with dial(front(redis.url, store=tmp_path / "store", inline=1000), source=("192.0.2.7", 4711)) as peer:
        peer.hello()
        identifiers = [send(peer), send(peer, large)]
    ((_, entries),) = redis.client.xreadgroup("workers", "one", {"mail": ">"})
    got = [read_entry(fields) for _, fields in entries]
    assert [envelope.id for envelope, _ in got] == identifiers
    assert [content.read() for _, content in got] == [BODY, large]
    envelope = got[0][0]
    assert (envelope.sender, envelope.recipients) == ("ann@example.net", ("bob@example.org", "cyd@example.org"))
    assert (envelope.peer, envelope.hello, envelope.server) == ("192.0.2.7", "client.example", "mx.example.com")
    assert got[1][1].path == tmp_path / "store" / f"{identifiers[1]}.eml"
    for (entry, _), (_, content) in zip(entries, got, strict=True):
        settle_entry(redis.client, "mail", "workers", entry, content)
    assert redis.entries() == []
    assert redis.client.xpending("mail", "workers")["pending"] == 0
    assert [*(tmp_path / "store").iterdir()] == []


def test_what_was_acknowledged_survives_a_kill(front: Callable[..., SMTPServer], redis: Server) -> None:
    with dial(front(redis.url, timeout=2)) as peer:
        peer.hello()
        acknowledged = [send(peer) for _ in range(20)]
        redis.kill()
        send(peer, end="451 4.4.1")
        redis.start()
        acknowledged.append(send(peer))
    found = [read_entry(fields)[0].id for _, fields in redis.entries()]
    assert found == acknowledged


def test_a_full_stream_refuses_and_trims_nothing(
    front: Callable[..., SMTPServer], redis: Server, tmp_path: Path
) -> None:
    with dial(front(redis.url, maxlen=2, store=tmp_path / "store", inline=10)) as peer:
        peer.hello()
        kept = [send(peer), send(peer)]
        send(peer, end="452 4.3.1")
        assert sorted(path.stem for path in (tmp_path / "store").iterdir()) == sorted(kept)
        redis.client.xdel("mail", redis.entries()[0][0])
        send(peer)


def test_replicas_are_waited_for(
    front: Callable[..., SMTPServer], redis: Server, program: Callable[[str], str], tmp_path: Path
) -> None:
    with dial(front(redis.url, replicas=1, timeout=2)) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")
        assert redis.entries() == []
        replica = Server(program("redis-server"), tmp_path / "two", "--replicaof", f"127.0.0.1 {redis.port}")
        try:
            until(lambda: redis.client.info("replication").get("slave0", {}).get("state") == "online", "the replica")
            identifier = send(peer)
            assert read_entry(replica.entries()[0][1])[0].id == identifier
        finally:
            replica.kill()
            replica.client.close()


def test_a_redis_that_hangs_is_451_in_time_and_holds_up_nobody(front: Callable[..., SMTPServer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = front(f"redis://:pa55word@127.0.0.1:{listener.getsockname()[1]}/0", timeout=0.5)
        with dial(server) as peer, dial(server) as other:
            peer.hello()
            other.hello()
            sending = gevent.spawn(send, peer, end="451 4.4.1")
            with gevent.Timeout(10):
                other.line("NOOP")
                other.expect("250")
                sending.get()


def test_without_an_answer_it_is_451_and_nothing_is_sent_twice(front: Callable[..., SMTPServer], redis: Server) -> None:
    proxy = AnswerProxy(redis.port)
    try:
        with dial(front(f"redis://127.0.0.1:{proxy.server.server_port}/0", timeout=2)) as peer:
            peer.hello()
            send(peer)
            proxy.cuts = True
            send(peer, end="451 4.4.1")
            send(peer)
    finally:
        proxy.server.stop(1)
    assert len(redis.entries()) == 3


def test_no_password_is_logged(front: Callable[..., SMTPServer], caplog: pytest.LogCaptureFixture) -> None:
    with dial(front(f"redis://user:pa55word@127.0.0.1:{free_port()}/0", timeout=1)) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")
    assert ": redis: " in caplog.text
    assert "pa55word" not in caplog.text


def test_without_a_store_a_large_message_is_refused(
    front: Callable[..., SMTPServer], redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "greensmtp")
    with dial(front(redis.url, inline=10)) as peer:
        peer.hello()
        send(peer, end="552 5.3.4")
    assert "bytes, and no store is set; replying 552" in caplog.text
    assert redis.entries() == []


def test_a_patched_process_adds_entries_too(redis: Server) -> None:
    code = """
import gevent.monkey; gevent.monkey.patch_all()
import sys
from greensmtp import SMTPServer
from greensmtp.delivery import Deliveries, RedisStream
from greensmtp.testing import dial
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
Deliveries([RedisStream(sys.argv[1], stream="mail", connections=2)]).attach(server)
server.start()
def send(number):
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("Hi.\\r\\n").startswith("250")
import gevent
gevent.joinall([gevent.spawn(send, each) for each in range(10)], raise_error=True, timeout=20)
"""
    in_thread_pool(subprocess.run, [sys.executable, "-c", code, redis.url], check=True, timeout=40)
    assert len(redis.entries()) == 10


def test_a_server_that_stops_leaves_the_connections_of_another(
    smtp_server: MakeServer, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = RedisStream(redis.url, stream="mail")
    servers = [smtp_server(start=False) for _ in range(2)]
    for each in servers:
        Deliveries([delivery]).attach(each)
        each.start()
    closed: list[bool] = []
    monkeypatch.setattr(delivery._client.connection_pool, "disconnect", lambda: closed.append(True))
    servers[0].stop(1)
    assert not closed
    servers[1].stop(1)
    assert closed


@pytest.mark.parametrize(
    ("url", "options", "wanted"),
    [
        (
            "http://user:pa55word@host",
            {"stream": "mail"},
            r"^url: expected a URL like 'redis://127.0.0.1:6379/0'; got one that redis-py cannot parse \(not shown",
        ),
        ("redis://h", {"stream": ""}, "stream"),
        ("redis://h", {"stream": "mail", "maxlen": 0}, "maxlen"),
        ("redis://h", {"stream": "mail", "replicas": -1}, "replicas"),
        ("redis://h", {"stream": "mail", "maxlen": 1.5}, "maxlen"),
        ("redis://h", {"stream": "mail", "timeout": "5"}, "timeout"),
        ("redis://h", {"stream": 5}, "stream"),
        (None, {"stream": "mail"}, "url"),
    ],
)
def test_wrong_arguments_are_errors(url: str, options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ArgumentError, match=wanted):
        RedisStream(url, **options)


def test_the_reader_of_the_guide_waits_and_starts_again(
    front: Callable[..., SMTPServer], redis: Server, tmp_path: Path
) -> None:
    """It outlives the time without mail, and finds its group when it is started a second time."""
    guide = (ROOT / "docs/howto/redis-stream.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(# reader\.py\n.*?)```", guide, re.DOTALL)
    path = tmp_path / "reader.py"
    path.write_text(program.replace("redis://127.0.0.1:6379/0", redis.url), "utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def reads() -> int:
        return int(redis.client.info("commandstats").get("cmdstat_xreadgroup", {"calls": 0})["calls"])

    def read_one(peer: Peer) -> None:
        before = reads()
        ran = subprocess.Popen([sys.executable, path], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            # A call is counted when it returns: that for what is left from before, and two without mail.
            until(lambda: ran.poll() is not None or reads() >= before + 3, "two reads without mail")
            identifier = send(peer)
            until(lambda: ran.poll() is not None or not redis.entries(), "the entry to be settled")
            is_alive = ran.poll() is None
        finally:
            ran.kill()
            said = ran.communicate()[0].decode()
        assert is_alive, said
        assert said == f"{identifier} ann@example.net ('bob@example.org', 'cyd@example.org') Tea\n"

    with dial(front(redis.url)) as peer:
        peer.hello()
        read_one(peer)
        read_one(peer)
