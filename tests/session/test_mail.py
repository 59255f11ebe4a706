"""Whole messages: the argument of ``on_mail`` handlers, and the meaning of their result."""

from __future__ import annotations

import email.message
import errno
import io
import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event

from greensmtp import Ack, Mail, MessageStream, Reject, Reply, Session, SMTPServer, in_thread_pool
from greensmtp.protocol import lenient_message
from greensmtp.protocol.lenient_message import parse
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

BODY = b"Subject: Tea\r\nTo: b@example.com\r\n\r\nAt four.\r\n"
LARGE = BODY + b"x" * 78 + (b"\r\n" + b"x" * 78) * 12_000 + b"\r\n"


def keep(server: SMTPServer, returned: Any = None) -> list[Mail]:
    """Register a handler of ``on_mail``; return the list that fills with the messages."""
    came: list[Mail] = []

    @server.on_mail
    def handle(mail: Mail) -> Any:
        came.append(mail)
        return returned() if callable(returned) else returned

    return came


# What it is given


@pytest.mark.parametrize("body", [b"", BODY, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])
def test_a_mail_is_the_message_with_its_envelope(smtp_server: MakeServer, body: bytes, lmtp: bool) -> None:
    server = smtp_server(start=False, lmtp=lmtp)
    seen: list[Any] = []

    @server.on_mail
    def handle(mail: Mail) -> None:
        with mail.open() as one, mail.open() as two:
            start = one.read(5)
            whole = two.read()
            seen.append((str(mail.sender), list(mail.recipients), mail.size, start + one.read(), whole))
        assert mail.session.from_ == mail.sender
        assert mail.parse()["Subject"] == mail.headers["Subject"] == (None if not body else "Tea")
        assert repr(mail) == f"<Mail from 'a@example.org' to ['b@example.com', 'c@example.com'], {len(body)} bytes>"

    with dial(server) as peer:
        peer.expect("220")
        peer.line(f"{'L' if lmtp else 'E'}HLO x".replace("EHLO", "EHLO"))
        peer.expect("250")
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "DATA")
        peer.expect("250", "250", "250", "354")
        peer.send(body + b".\r\n")
        peer.expect(*["250 2.0.0 Ok"] * (1 + lmtp))
    assert seen == [("a@example.org", ["b@example.com", "c@example.com"], len(body), body, body)]


def test_the_null_sender_is_an_empty_address(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    came = keep(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", ".")
        peer.expect("250", "250", "354", "250")
    assert came[0].sender == ""
    assert came[0].sender.local_part == ""


@pytest.mark.parametrize("body", [BODY, LARGE, b" no header\r\n", LARGE.replace(b"Subject:", b" no header")])
def test_added_fields_come_first(smtp_server: MakeServer, body: bytes) -> None:
    server = smtp_server()
    seen: list[bytes] = []
    server.on("message", lambda session, stream, ack: stream.add_header("X-One", "1"))

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        assert session.message is not None
        session.message.add_header("X-Two", "2")

    @server.on_mail
    def handle(mail: Mail) -> None:
        assert mail.size == len(body)
        assert mail.headers["X-Two"] == mail.parse()["X-One"].replace("1", "2")
        with mail.open() as file:
            seen.append(file.read(10) + file.readline() + file.read())
            file.seek(0)
            assert file.read() == seen[0]

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(body).startswith("250")
    seam = b"" if body.startswith(b"Subject") else b"\r\n"
    assert seen == [b"X-One: 1\r\nX-Two: 2\r\n" + seam + body]


def test_a_mail_can_be_read_in_another_thread(smtp_server: MakeServer) -> None:
    server = smtp_server()
    subjects: list[Any] = []
    server.on_mail(lambda mail: subjects.append(in_thread_pool(mail.parse)["Subject"]))
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(LARGE).startswith("250")
    assert subjects == ["Tea"]


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
def test_a_mail_is_gone_when_its_handler_has_returned(smtp_server: MakeServer, body: bytes) -> None:
    server = smtp_server()
    files: list[Any] = []
    came: list[Mail] = []

    @server.on_mail
    def handle(mail: Mail) -> None:
        came.append(mail)
        files.append(mail.open())

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(body).startswith("250")
        peer.line("NOOP")
        peer.expect("250")
    with pytest.raises(ValueError, match="only while its handler runs"):
        came[0].open()
    assert files[0].read() == body  # no other message's bytes, and no error
    files[0].close()


# What its result means


def raises(error: BaseException) -> Callable[[], Any]:
    def handle() -> Any:
        raise error

    return handle


@pytest.mark.parametrize(
    ("returned", "reply"),
    [
        (None, "250 2.0.0 Ok: queued as "),
        (Reply(250, "2.6.0 Stored as 7"), "250 2.6.0 Stored as 7"),
        (Reply(250, "plain", enhanced=None), "250 2.0.0 plain"),
        (Reply(550, "5.1.1 No such user"), "550 5.1.1 No such user"),
        (Reply(452, "4.2.2 one\ntwo"), "452-4.2.2 one"),
        (Reply(421, "4.3.2 Going down"), "451 4.3.2 Going down"),
        (raises(Reject(554, "5.7.1 Spam")), "554 5.7.1 Spam"),
        (raises(Reject(550)), "550 5.7.1"),
        (raises(LookupError("secret")), "451 4.3.0"),
        (raises(gevent.Timeout()), "451 4.3.0"),
        (raises(OSError(errno.ENOSPC, "secret")), "452 4.3.1 Insufficient storage"),
        (raises(OSError(errno.EIO, "secret")), "451 4.3.0"),
        (Reply(354, "what"), "451 4.3.0"),
        ("250", "451 4.3.0"),
        (True, "451 4.3.0"),
        ({"b@example.com": Reply(250)}, "451 4.3.0"),
    ],
)
@pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])
def test_the_result_decides(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, returned: Any, reply: str, lmtp: bool
) -> None:
    if lmtp and isinstance(returned, Mapping):
        return
    server = smtp_server(start=False, lmtp=lmtp)
    came = keep(server, returned)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO x" if lmtp else "EHLO x")
        peer.expect("250")
        peer.line("MAIL FROM:<>", "RCPT TO:<b@example.com>", *["RCPT TO:<c@example.com>"] * lmtp, "DATA", "x: y", ".")
        peer.expect("250", "250", *["250"] * lmtp, "354", reply)
        if lmtp:
            peer.expect(reply if reply != "451 4.3.0" else "451")
        peer.line("NOOP")
        peer.expect("250 2.0.0 Ok")
    assert len(came) == 1
    assert bool(caplog.records) == reply.startswith(("451 4.3.0", "452 4.3.1"))


@pytest.mark.parametrize("by", ["str", "Address"])
def test_in_lmtp_a_mapping_decides_for_each_recipient(smtp_server: MakeServer, by: str) -> None:
    server = smtp_server(start=False, lmtp=True)
    calls: list[int] = []

    @server.on_mail
    def handle(mail: Mail) -> dict[str, Reply | None]:
        calls.append(1)
        names = mail.recipients if by == "Address" else list(map(str, mail.recipients))
        return {names[0]: Reply(452, "4.2.2 Full"), names[1]: None, names[3]: Reply(250, "2.1.5 Yours")}

    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO x", "MAIL FROM:<>", *(f"RCPT TO:<{name}@example.com>" for name in "abcd"), "DATA", ".")
        peer.expect("250", "250", *["250"] * 4, "354", "452 4.2.2 Full", "250 2.0.0", "250 2.0.0", "250 2.1.5 Yours")
    assert calls == [1]


@pytest.mark.parametrize("wrong", [{"eve@example.com": None}, {"b@example.com": "250"}])
def test_a_mapping_that_is_wrong_fails_closed(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    server = smtp_server(start=False, lmtp=True)
    keep(server, wrong)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO x", "MAIL FROM:<>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "DATA", ".")
        peer.expect("250", "250", "250", "250", "354", "451", "451")
    assert "keep.<locals>.handle" in caplog.text


# With other handlers


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("signal", ["message", "received"])
def test_what_another_handler_refuses_is_refused(smtp_server: MakeServer, signal: Any, place: str) -> None:
    server = smtp_server(start=False)

    def refuse(session: Session, ack: Ack, **given: Any) -> None:
        raise Reject(550, "5.7.1 No")

    if place == "before":
        server.on(signal, refuse)
    came = keep(server)
    if place == "behind":
        server.on(signal, refuse)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        reply = peer.reply()
        if reply.startswith("354"):
            peer.line(".")
            reply = peer.reply()
        assert reply == "550 5.7.1 No"
    assert len(came) == (signal == "received" and place == "behind")


def test_the_reply_of_a_handler_that_has_accepted_before_stands(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack: ack.accept(250, "2.0.0 Ok: queued as 1"))
    came = keep(server, Reply(250, "2.0.0 Ok: queued as 2"))
    verdicts = [Reply(250, "2.0.0 3"), Reply(550, "5.7.1 Not this one")]
    keep(server, lambda: verdicts.pop(0))
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver() == "250 2.0.0 Ok: queued as 1"
        assert peer.deliver() == "550 5.7.1 Not this one"
    assert len(came) == 2


def test_a_reader_in_between_takes_nothing_away(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    seen: list[bytes] = []
    server.on_mail(lambda mail: seen.append(mail.open().read()))

    @server.on("message")
    def read(session: Session, stream: MessageStream, ack: Ack) -> None:
        assert ack.accepted
        seen.append(stream.read())

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(BODY).startswith("250")
    assert seen == [BODY, BODY]


def test_a_reader_before_it_is_an_error_that_says_so(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def read(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read()

    keep(server)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("451")
    assert "before connecting handlers that read the body" in caplog.text


@pytest.mark.usefixtures("clock")
def test_the_log_names_the_handler_that_raised_or_ran_too_long(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken_store(mail: Mail) -> None:
        raise KeyError("x")

    def slow_store(mail: Mail) -> None:
        gevent.sleep(30)

    for handler in (broken_store, slow_store):
        server = smtp_server(start=False, handler_timeout=0.1)
        server.on_mail(handler)
        with dial(server) as peer:
            peer.hello()
            assert peer.deliver().startswith("451")
        assert f"handler {__name__}.{handler.__qualname__} ra" in caplog.text
    assert "_MailReceiver" not in "".join(record.getMessage() for record in caplog.records)


# Handlers that are none


def test_a_handler_that_would_never_run_or_takes_something_else_is_refused(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    async def never(mail: Mail) -> None: ...

    def generator(mail: Mail) -> Iterator[None]:
        yield

    def handler(session: Session, ack: Ack) -> None: ...

    given: list[Any] = [never, generator, handler, lambda: None, 25, Mail]
    for each in given:
        with pytest.raises(TypeError, match="a handler of on_mail is"):
            server.on_mail(each)
    assert not server.signals.message.receivers


def test_it_is_a_decorator_and_a_plain_call(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    def handle(mail: Mail) -> None: ...

    assert server.on_mail(handle) is handle


# Memory, disks, ends


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Limit files to 200,000 bytes, which looks like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("no_large_files")
@pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])
def test_a_full_disk_is_452(smtp_server: MakeServer, capfd: pytest.CaptureFixture[str], lmtp: bool) -> None:
    server = smtp_server(start=False, lmtp=lmtp)
    came = keep(server)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO x" if lmtp else "EHLO x")
        peer.expect("250")
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
        peer.send(LARGE + b".\r\n")
        peer.expect("452 4.3.1")
        peer.envelope()
        peer.line("DATA", "x: y", ".")
        peer.expect("354", "250")
    assert len(came) == 1
    assert "Traceback" not in capfd.readouterr().err


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("end", ["250", "refused", "lost", "killed", "reset", "too large"])
def test_nothing_is_left_however_it_ended(smtp_server: MakeServer, end: str) -> None:
    server = smtp_server(max_message_size=600_000 if end == "too large" else None)
    keep(server, raises(GreenletExit()) if end == "killed" else Reply(550, "no") if end == "refused" else None)
    over = Event()
    sessions: list[Session] = []
    server.on("disconnect", lambda session, reason: over.set())

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        sessions.append(session)
        ack.accept()

    before = descriptors()
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        if end == "reset":
            peer.send(b"BDAT %d\r\n" % len(LARGE) + LARGE + b"RSET\r\n")
            peer.expect("250", "250")
        else:
            peer.line("DATA")
            peer.expect("354")
            peer.send(LARGE + (b"" if end == "lost" else b".\r\n"))
            if end not in ("lost", "killed"):
                peer.reply()
        peer.close()
        assert over.wait(10)
    with gevent.Timeout(10):
        while descriptors() > before:
            gevent.sleep(0.005)
    assert not sessions[0].notes


def test_memory_stays_flat(smtp_server: MakeServer) -> None:
    import tracemalloc

    server = smtp_server(max_message_size=None)
    sizes: list[int] = []
    server.on_mail(lambda mail: sizes.append(mail.size))
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
        tracemalloc.start()
        try:
            for _ in range(200):
                peer.socket.sendall(LARGE[:80_000] + b"\r\n")
            peer.line(".")
            peer.expect("250")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sizes[0] > 16_000_000
    assert peak < 2_500_000


def test_a_message_of_the_standard_library_is_what_parse_gives() -> None:
    message = parse(io.BytesIO(b"Subject: x\r\nTo: Ann <ann@example.com>\r\n\r\nbody\r\n"))
    assert isinstance(message, email.message.EmailMessage)
    assert message["To"].addresses[0].addr_spec == "ann@example.com"
    assert message.get_content() == "body\n"


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        (b"Sender: a@x.example, b@x.example\r\n", "a@x.example"),
        (b"Sender: \r\n", None),
        (b"Sender: undisclosed:;\r\n", None),
        (b"Sender: ann@x.example\r\n", "ann@x.example"),
        (b"Resent-Sender: a@x.example, b@x.example\r\n", "a@x.example"),
    ],
)
def test_the_address_of_a_sender_that_is_not_one_address_does_not_raise(fields: bytes, address: str | None) -> None:
    sender = parse(io.BytesIO(fields + b"\r\n"))[fields.split(b":")[0].decode()]
    assert (sender.address and sender.address.addr_spec) == address


def test_a_disposition_that_is_too_long_hides_neither_body_nor_attachments() -> None:
    long = b"Content-Disposition: attachment; filename=a.txt; x=" + b"y" * 3000 + b"\r\n"
    message = parse(
        io.BytesIO(
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nthe text\r\n--b\r\n"
            + long
            + b"\r\nthe file\r\n--b--\r\n"
        )
    )
    body = message.get_body()
    assert body is not None
    assert body.get_content() == "the text"
    assert [part.get_content() for part in message.iter_attachments()] == ["the file"]
    assert [part.get_filename() for part in message.iter_attachments()] == ["a.txt"]
    assert parse(io.BytesIO(long + b"\r\n")).is_attachment()


def test_fields_behind_the_two_thousandth_are_text() -> None:
    message = parse(
        io.BytesIO(b"To: Ann <ann@x.example>\r\n" * 2001 + b"Subject: =?utf-8?q?caf=C3=A9?=\r\n\r\nbody\r\n")
    )
    fields = message.get_all("To")
    assert fields is not None
    assert [bool(getattr(field, "addresses", ())) for field in fields] == [True] * 2000 + [False]
    assert fields[-1] == "Ann <ann@x.example>"
    assert message["Subject"] == "=?utf-8?q?caf=C3=A9?="
    assert bytes(message).endswith(b"Subject: =?utf-8?q?caf=C3=A9?=\n\nbody\n")
    assert parse(io.BytesIO(b"To: ann@x.example\r\n\r\n"))["To"].addresses[0].domain == "x.example"


def test_a_message_on_disk_is_not_read_in_the_hub(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = smtp_server(start=False)
    threads: list[int] = []
    read = os.pread

    def pread(*arguments: Any) -> bytes:
        threads.append(threading.get_ident())
        return read(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    bodies: list[bytes] = []

    @server.on_mail
    def store(mail: Mail) -> None:
        with mail.open() as file:
            bodies.append(file.readline() + file.read())
        with mail.open() as file:
            bodies.append(b"".join(iter(lambda: file.read(10_000), b"")))
        bodies.append(in_thread_pool(mail.open().read))

    text = "Subject: large\r\n\r\n" + ("x" * 76 + "\r\n") * 10_000
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(text).startswith("250")
    assert [len(body) for body in bodies] == [len(text)] * 3
    assert len(set(bodies)) == 1
    assert threads
    assert threading.get_ident() not in threads
    assert len(threads) < 20


@pytest.mark.parametrize("in_pool", [False, True])
@pytest.mark.parametrize(("size", "threads"), [(64 * 1024, 1), (64 * 1024 + 1, 2)])
def test_a_large_message_is_parsed_outside_of_the_hub(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch, size: int, threads: int, in_pool: bool
) -> None:
    server = smtp_server(start=False)
    asked: list[int] = []
    parsed: list[int] = []

    def watched(file: Any) -> email.message.EmailMessage:
        parsed.append(threading.get_ident())
        return parse(file)

    monkeypatch.setattr(lenient_message, "parse", watched)

    def check(mail: Mail) -> None:
        asked.append(threading.get_ident())
        assert mail.parse()["Subject"] == "Tea"

    @server.on_mail
    def handle(mail: Mail) -> None:
        if in_pool:
            in_thread_pool(check, mail)
        else:
            check(mail)

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(BODY + b"x\r\n" + b"x" * (size - len(BODY) - 5) + b"\r\n").startswith("250")
    assert len({*asked, *parsed}) == (1 if in_pool else threads)  # a thread of the pool may parse by itself


def test_files_of_a_large_message_close_their_descriptors_once(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    counts: list[int] = []

    @server.on_mail
    def handle(mail: Mail) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        files: list[Any] = [mail.open() for _ in range(3)]
        counts.append(len(list(Path("/proc/self/fd").iterdir())) - before)
        for file in files:
            file.close()
        with mail.open() as another:  # it may have the number of one of these
            for file in files:
                file.close()
                file.raw.close()
            assert another.read() == LARGE
        counts.append(len(list(Path("/proc/self/fd").iterdir())) - before)

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(LARGE).startswith("250")
    assert counts == [3, 0]
