"""Bodies that flow into pipes and spools, and disks that are full behind them."""

from __future__ import annotations

import errno
import io
import resource
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from gevent import GreenletExit, Timeout, get_hub, sleep
from gevent.event import Event

from greensmtp import Ack, MessageStream, Reject, Session
from greensmtp.session import spool
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import begin_data
from tests.session.readers import Reader, at_once, by_lines, read_with

# pipe and spool


@pytest.mark.parametrize("reader", [lambda stream: None, lambda stream: stream.read(1), at_once, by_lines])
def test_everything_flows_to_every_pipe_with_any_reader(smtp_server: MakeServer, reader: Reader) -> None:
    server = smtp_server(start=False)
    one, two = io.BytesIO(), io.BytesIO()

    def pipe_and_read(stream: MessageStream) -> None:
        stream.pipe(one)
        stream.pipe(two)
        reader(stream)

    read_with(server, pipe_and_read)
    body = b"line\r\n.dot\r\n" * 20_000
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(body).startswith("250")
    assert one.getvalue() == two.getvalue() == body


@pytest.mark.parametrize("when", ["unread", "while it is read"])
@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (OSError("secret path"), "451 4.3.0"),
        (ValueError("secret"), "451 4.3.0"),
        (Reject(452, "4.3.1 full"), "452 4.3.1 full"),
    ],
)
def test_a_pipe_that_raises_fails_the_message(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, error: Exception, reply: str, when: str
) -> None:
    server = smtp_server(start=False)
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))

    class Broken:
        def write(self, data: bytes) -> None:
            raise error

    def pipe_and_read(stream: MessageStream) -> None:
        stream.pipe(Broken())
        if when != "unread":
            stream.read()

    read_with(server, pipe_and_read)
    with dial(server) as peer:
        peer.hello()
        said = peer.deliver(b"x\r\nQUIT\r\n" * 50_000)
        assert said.startswith(reply)
        assert "secret" not in said
        peer.line("NOOP")
        peer.expect("250 2.0.0")
    assert not received
    assert bool(caplog.records) == (not isinstance(error, Reject))


@pytest.mark.parametrize("reader", [lambda stream: None, at_once, lambda stream: stream.read(10)])
@pytest.mark.parametrize("body", [b"small\r\n", b"large\r\n" * 30_000, b""], ids=["small", "large", "empty"])
def test_a_spool_is_complete_and_at_its_beginning_at_received(
    smtp_server: MakeServer, body: bytes, reader: Reader
) -> None:
    server = smtp_server(start=False)
    spooled: list[bytes] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        session.notes["spool"] = stream.spool(max_memory=1000)
        ack.accept()
        reader(stream)

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        with session.notes["spool"] as file:
            spooled.append(file.read())
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(body).startswith("250")
    assert spooled == [body]


# Full disks, and the hub


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("when", ["unread", "while it is read"])
def test_a_disk_that_is_full_behind_a_pipe_is_452(smtp_server: MakeServer, number: int, when: str) -> None:
    server = smtp_server(start=False)

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(number, "secret path")

    def pipe_and_read(stream: MessageStream) -> None:
        stream.pipe(Full())
        if when != "unread":
            stream.read()

    read_with(server, pipe_and_read)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"x\r\n" * 1000) == "452 4.3.1 Insufficient storage, try again later"


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Limit files to 200,000 bytes, which looks like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("no_large_files")
@pytest.mark.parametrize("size", [300_000, 900_000])
def test_a_disk_that_is_full_behind_a_spool_is_452(
    smtp_server: MakeServer, capfd: pytest.CaptureFixture[str], size: int
) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(stream.spool(max_memory=1000).close)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"x\r\n" * (size // 3)).startswith("452 4.3.1")
        assert peer.deliver(b"x\r\n").startswith("250")
    assert "Traceback" not in capfd.readouterr().err


def test_a_spool_writes_to_the_disk_in_the_thread_pool(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = smtp_server(start=False)
    threads: set[int] = set()
    rollover = spool.SpooledFile.rollover

    def watched(self: spool.SpooledFile) -> None:
        threads.add(threading.get_ident())
        rollover(self)

    monkeypatch.setattr(spool.SpooledFile, "rollover", watched)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(stream.spool(max_memory=0).close)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"x\r\n" * 300_000).startswith("250")
    assert threads
    assert threading.get_ident() not in threads


def test_a_spool_that_is_closed_while_a_thread_writes_is_closed_behind_that(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = smtp_server()
    at_work, go_on = Event(), threading.Event()
    loop = get_hub().loop
    rollover = spool.SpooledFile.rollover
    files: list[Any] = []

    def slow(self: spool.SpooledFile) -> None:
        loop.run_callback_threadsafe(at_work.set)
        assert go_on.wait(10)
        rollover(self)

    monkeypatch.setattr(spool.SpooledFile, "rollover", slow)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        files.append(stream.spool(max_memory=0))
        stream.at_end(files[0].close)
        ack.accept()

    with dial(server) as peer:
        begin_data(peer)
        peer.send(b"x\r\n" * 100_000 + b".\r\n")
        assert at_work.wait(10)
        (conversation,) = server.connections
        greenlet: Any = conversation.transport.greenlet
        loop.run_callback(greenlet.throw, GreenletExit)
        peer.expect_end()
        assert not files[0].closed
        go_on.set()
        with Timeout(10):
            while not files[0].closed:
                sleep(0.005)


@pytest.mark.parametrize(("size", "on_disk"), [(300, False), (301, True)])
def test_a_spool_moves_to_disk_beyond_max_memory(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch, size: int, on_disk: bool
) -> None:
    server = smtp_server(start=False)
    moved: list[object] = []
    rollover = spool.SpooledFile.rollover

    def watched(self: spool.SpooledFile) -> None:
        moved.append(self)
        rollover(self)

    monkeypatch.setattr(spool.SpooledFile, "rollover", watched)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(stream.spool(max_memory=300).close)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"x" * (size - 2) + b"\r\n").startswith("250")
    assert bool(moved) == on_disk


def test_a_spool_keeps_no_more_than_a_batch_in_memory(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = smtp_server(start=False)
    batches: list[int] = []
    append = spool.SpoolPipe._append

    def watched(self: spool.SpoolPipe, batch: bytearray, finish: bool) -> None:
        batches.append(len(batch))
        append(self, batch, finish)

    monkeypatch.setattr(spool.SpoolPipe, "_append", watched)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(stream.spool(max_memory=0).close)
        ack.accept()

    size = 4 * spool.BATCH
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"x" * 62 + b"\r\n" + (b"x" * 62 + b"\r\n") * (size // 64 - 1)).startswith("250")
    assert sum(batches) == size
    assert max(batches) < 2 * spool.BATCH
