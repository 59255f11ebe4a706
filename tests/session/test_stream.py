"""The message stream: every way to read a body, who may, and where else it flows."""

from __future__ import annotations

import email
import email.policy
import errno
import io
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from typing import Any

import pytest
from gevent import GreenletExit, Timeout, get_hub, sleep, spawn
from gevent.event import Event
from gevent.queue import Queue

from greensmtp import Ack, MessageStream, Reject, Session, SMTPServer
from greensmtp.session import spool
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import begin_data

Reader = Callable[[MessageStream], Any]


def read_with(server: SMTPServer, reader: Reader) -> list[Any]:
    """Accept every message and read it like this; the list fills with what the reader returns or raises."""
    results: list[Any] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            results.append(reader(stream))
        except Exception as error:
            results.append(error)
            raise

    return results


# Ways to read


def by_iterating(stream: MessageStream) -> bytes:
    return b"".join(stream)


def at_once(stream: MessageStream) -> bytes:
    return stream.read()


def in_sevens(stream: MessageStream) -> bytes:
    pieces = list(iter(lambda: stream.read(7), b""))
    assert all(len(piece) == 7 for piece in pieces[:-1])
    return b"".join(pieces)


def by_read1(stream: MessageStream) -> bytes:
    return b"".join(iter(lambda: stream.read1(5), b""))


def by_lines(stream: MessageStream) -> bytes:
    lines = list(iter(stream.readline, b""))
    assert all(line.count(b"\n") == 1 and line.endswith(b"\r\n") for line in lines)
    return b"".join(lines)


def by_short_lines(stream: MessageStream) -> bytes:
    lines = list(iter(lambda: stream.readline(4), b""))
    assert all(len(line) <= 4 for line in lines)
    return b"".join(lines)


def into_a_buffer(stream: MessageStream) -> bytes:
    whole, buffer = bytearray(), bytearray(6)
    while count := stream.readinto(buffer):
        whole += buffer[:count]
    return bytes(whole)


def by_copyfileobj(stream: MessageStream) -> bytes:
    target = io.BytesIO()
    shutil.copyfileobj(stream, target)
    return target.getvalue()


def by_all_of_these_in_turn(stream: MessageStream) -> bytes:
    return stream.read(3) + stream.readline() + stream.readline(2) + stream.read1(1) + next(stream) + stream.read()


READERS: list[Reader] = [
    *(by_iterating, at_once, in_sevens, by_read1, by_lines, by_short_lines),
    *(into_a_buffer, by_copyfileobj, by_all_of_these_in_turn),
]
BODY = b"Subject: dots\r\n\r\n.\r\n..\r\n.x.\r\n" + bytes(range(14, 256)) + b"\r\n\r\n.last line\r\n"


@pytest.mark.parametrize("reader", READERS)
def test_every_way_to_read_gives_the_body(smtp_server: MakeServer, reader: Reader) -> None:
    server = smtp_server(start=False)
    results = read_with(server, reader)
    with dial(server) as peer:
        peer.hello()
        for body in (BODY, b"\r\n", BODY * 2000):
            if reader is by_all_of_these_in_turn and body == b"\r\n":
                continue  # it wants more to read
            assert peer.deliver(body).startswith("250")
            assert results.pop() == body


@pytest.mark.parametrize("reader", [by_iterating, by_lines, in_sevens, into_a_buffer])
def test_an_octet_at_a_time_makes_no_difference(smtp_server: MakeServer, reader: Reader) -> None:
    server = smtp_server(start=False)
    results = read_with(server, reader)
    with dial(server) as peer:
        begin_data(peer)
        for octet in b"a\r\n..b\r\n.c\r\n\r\n...\r\n.\r\n":
            peer.send(bytes([octet]))
            peer.let_it_read()
        peer.expect("250")
    assert results == [b"a\r\n.b\r\nc\r\n\r\n..\r\n"]


def test_an_empty_body_is_read_as_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    results = read_with(server, lambda stream: [stream.read(), stream.readline(), stream.read(1), list(stream)])
    with dial(server) as peer:
        begin_data(peer)
        peer.line(".")
        peer.expect("250")
    assert results == [[b"", b"", b"", []]]


@pytest.mark.parametrize(
    "parse", [email.message_from_binary_file, BytesParser(policy=email.policy.default).parse], ids=["email", "parser"]
)
def test_the_email_parser_takes_it(smtp_server: MakeServer, parse: Any) -> None:
    server = smtp_server(start=False)
    results = read_with(server, parse)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"Subject: hi\r\nX-Odd: \xff\r\n\r\nbody\r\n" + b"x\r\n" * 10_000).startswith("250")
    (message,) = results
    assert message["Subject"] == "hi"
    assert message.get_payload().startswith("body\nx\n")


def test_chunks_come_as_they_arrive(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    chunks: Queue[bytes] = Queue()

    def put_each(stream: MessageStream) -> None:
        for chunk in stream:
            chunks.put(chunk)

    read_with(server, put_each)
    with dial(server) as peer:
        begin_data(peer)
        for line in (b"one\r\n", b"two\r\n"):
            peer.send(line)
            assert chunks.get(timeout=5) == line
        peer.line(".")
        peer.expect("250")


def test_354_goes_out_when_the_ack_is_accepted_not_when_the_body_is_read(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    go_on = Event()
    read_with(server, lambda stream: go_on.wait(5) and stream.read())
    with dial(server) as peer:
        begin_data(peer)
        go_on.set()
        peer.line("x", ".")
        peer.expect("250")


# Who may read, and when


@pytest.mark.parametrize("reader", [lambda stream: stream.read(), lambda stream: stream.readline(), next])
def test_reading_before_accepting_raises_and_tells_what_to_do(smtp_server: MakeServer, reader: Reader) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        with pytest.raises(RuntimeError, match="accept"):
            reader(stream)
        ack.accept()
        assert stream.read() == b"fine\r\n"

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"fine\r\n").startswith("250")


def test_reading_in_another_greenlet_raises_and_tells_what_to_do(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    def elsewhere(stream: MessageStream) -> bytes:
        with pytest.raises(RuntimeError, match=r"pipe\(\) or spool\(\)"):
            stream.read()
        return b"refused"

    results = read_with(server, lambda stream: (spawn(elsewhere, stream).get(), stream.read()))
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"fine\r\n").startswith("250")
    assert results == [(b"refused", b"fine\r\n")]


def test_reading_when_the_transaction_is_over_raises(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    results = read_with(server, lambda stream: stream)
    with dial(server) as peer:
        peer.hello()
        peer.deliver()
    with pytest.raises(ValueError, match="closed"):
        results[0].read()


# What nobody reads


@pytest.mark.parametrize(
    "reader",
    [lambda stream: None, lambda stream: stream.read(1), lambda stream: stream.readline(), lambda s: s.close()],
    ids=["unread", "an octet", "a line", "closed"],
)
def test_what_is_left_unread_is_drained(smtp_server: MakeServer, reader: Reader) -> None:
    server = smtp_server(start=False)
    read_with(server, reader)
    with dial(server) as peer:
        peer.hello()
        for _ in range(2):
            assert peer.deliver(b"line\r\nQUIT\r\n" * 50_000).startswith("250")
        peer.line("NOOP")
        peer.expect("250 2.0.0")


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


# abort


@pytest.mark.parametrize(
    ("arguments", "reply"),
    [
        ((), "554 5."),
        ((554, "5.6.0 no"), "554 5.6.0 no"),
        ((450,), "450 4."),
        ((552, "5.2.3 one\ntwo"), "552-5.2.3 one"),
    ],
)
def test_abort_drains_and_answers(smtp_server: MakeServer, arguments: tuple[Any, ...], reply: str) -> None:
    server = smtp_server(start=False)
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))
    piped = io.BytesIO()

    def abort(stream: MessageStream) -> bytes:
        stream.pipe(piped)
        line = stream.readline()
        stream.abort(*arguments)
        stream.abort(451, "4.0.0 the first one counts")
        assert stream.read() == b""
        return line

    results = read_with(server, abort)
    with dial(server) as peer:
        begin_data(peer)
        peer.line("first")
        peer.let_it_read()
        peer.send(b"second\r\nQUIT\r\n" * 50_000 + b".\r\n")
        peer.expect(reply)
        peer.line("NOOP")
        peer.expect("250 2.0.0")
        assert peer.deliver().startswith(reply)
    assert results[0] == b"first\r\n"
    assert b"QUIT" not in piped.getvalue()
    assert not received


@pytest.mark.parametrize("code", [250, 354, 600])
def test_abort_takes_codes_that_refuse(smtp_server: MakeServer, code: int) -> None:
    server = smtp_server(start=False)

    def abort(stream: MessageStream) -> None:
        with pytest.raises(ValueError, match="4xx or 5xx"):
            stream.abort(code)

    read_with(server, abort)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("250")


def test_abort_refuses_an_enhanced_code_of_another_class(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    def abort(stream: MessageStream) -> None:
        with pytest.raises(ValueError, match=r"4\.7\.1 does not go with reply code 554"):
            stream.abort(554, "4.7.1 wait")

    read_with(server, abort)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("250")


# Too late


def use_pipe(stream: MessageStream) -> None:
    stream.pipe(io.BytesIO())


def use_spool(stream: MessageStream) -> None:
    stream.spool()


def use_add_header(stream: MessageStream) -> None:
    stream.add_header("X-Late", "x")


@pytest.mark.parametrize("use", [use_pipe, use_spool, use_add_header])
@pytest.mark.parametrize("when", ["a read", "the whole body", "received", "the end"])
@pytest.mark.parametrize("body", [b"", b"one\r\ntwo\r\n"])
def test_what_comes_after_the_body_has_begun_to_flow_is_an_error_that_says_what_to_do(
    smtp_server: MakeServer, use: Callable[[MessageStream], None], when: str, body: bytes
) -> None:
    server = smtp_server(start=False)
    streams: list[MessageStream] = []

    def check(stream: MessageStream, now: str) -> None:
        if now == when:
            with pytest.raises(RuntimeError, match=r"comes too late: .* in a handler of `message`"):
                use(stream)
            streams.append(stream)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.readline()
        check(stream, "a read")
        stream.read()
        check(stream, "the whole body")
        stream.at_end(lambda: spawn(check, stream, "the end"))

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        assert session.message is not None
        check(session.message, "received")
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(body).startswith("250")
        peer.line("NOOP")
        peer.expect("250")
    assert len(streams) == 1


def test_a_handler_that_pipes_too_late_is_a_451(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        assert session.message is not None
        session.message.pipe(io.BytesIO())
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("451 4.3.0")
    assert "comes too late" in caplog.text


# add_header

FIELDS = b"X-One: 1\r\nX-Two: 2\r\n"


@pytest.mark.parametrize("reader", [*READERS, None])
@pytest.mark.parametrize(
    ("body", "seam"),
    [
        (b"Subject: x\r\n\r\nHello\r\n", b""),
        (b"\r\nHello there\r\n", b""),
        (b" continues\r\nnothing\r\n", b"\r\n"),
        (b"no header, just text\r\n", b"\r\n"),
    ],
)
def test_added_fields_come_first_to_every_reader_and_pipe(
    smtp_server: MakeServer, reader: Reader | None, body: bytes, seam: bytes
) -> None:
    server = smtp_server(start=False)
    results: list[Any] = []
    piped = io.BytesIO()
    spooled: list[bytes] = []
    sizes: list[int] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.add_header("X-One", "1")
        stream.pipe(piped)
        session.notes["spool"] = stream.spool(10)
        ack.accept()
        stream.add_header("X-Two", "2")
        results.append(None if reader is None else reader(stream))

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        with session.notes["spool"] as file:
            spooled.append(file.read())
        assert session.message is not None
        sizes.append(session.message.size)
        ack.accept()

    with dial(server) as peer:
        begin_data(peer)
        for octet in body + b".\r\n":
            peer.send(bytes([octet]))
            peer.let_it_read()
        peer.expect("250")
    whole = FIELDS + seam + body
    assert results == [None if reader is None else whole]
    assert piped.getvalue() == whole
    assert spooled == [whole]
    assert sizes == [len(body)]  # what the client has sent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nBcc: b@c"),
        ("X", "a\nb"),
        ("X", "a\r b"),
        ("X", "\0"),
        ("X: y", "z"),
        ("", "x"),
        ("X\r\n", "y"),
        ("return-path", "<a@b>"),
    ],
)
def test_a_field_that_is_none_is_refused(smtp_server: MakeServer, name: str, value: str) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        with pytest.raises(ValueError, match=r"field's name|control character|Return-Path"):
            stream.add_header(name, value)
        ack.accept()
        assert stream.read() == b"fine\r\n"

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"fine\r\n").startswith("250")


def test_a_field_beyond_ascii_is_encoded_unless_the_message_is_smtputf8(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    results: list[bytes] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.add_header("X-Note", "caf\u00e9")
        ack.accept()
        results.append(stream.readline())

    with dial(server) as peer:
        peer.hello()
        for parameter in ("", " SMTPUTF8"):
            peer.line(f"MAIL FROM:<a@example.org>{parameter}", "RCPT TO:<b@example.com>", "DATA", "x: y", ".")
            peer.expect("250", "250", "354", "250")
    assert results == [b"X-Note: =?utf-8?b?Y2Fmw6k=?=\r\n", "X-Note: caf\u00e9\r\n".encode()]


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
    """The kernel lets no file grow beyond 200,000 octets, which looks like a full disk."""
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
