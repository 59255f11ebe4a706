"""Delivery into a Maildir: which files there are, the trace information before the body, the body octet for octet."""

from __future__ import annotations

import email
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from greensmtp import Ack, MessageStream, Reject, Session, SMTPServer
from greensmtp.delivery import Deliveries, Maildir
from greensmtp.testing import Peer, dial

MakeServer = Callable[..., SMTPServer]

# RFC 5321 section 4.4, as far as it is used: from, by, with, id, perhaps for and tls (RFC 8314); date and time.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
_LITERAL = r"\[(?:\d+\.\d+\.\d+\.\d+|IPv6:[0-9A-Fa-f:.]+)\]"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_FWS = r"(?:\r\n)?[ \t]"
RECEIVED = re.compile(
    rf"Received: from (?P<client>{_NAME}|{_LITERAL})(?: \((?P<address>{_LITERAL})\))?"
    rf"{_FWS}by (?P<server>{_NAME}|{_LITERAL}) with (?P<protocol>{_ATOM}) id (?P<id>{_ATOM})"
    rf"(?:{_FWS}for <(?P<recipient>[^<>]+)>)?(?:{_FWS}tls (?P<tls>TLS_\w+|0x[0-9A-F]{{4}}))?"
    rf";{_FWS}(?P<date>[^\r\n]+)\r\n"
)
TRACE = re.compile(
    rf"Return-Path: <(?P<sender>[^\r\n]*)>\r\nEnvelope-To: (?P<recipients>(?:[^\r\n]+\r\n)+?){RECEIVED.pattern}"
)


class Stored:
    """The only message in a Maildir."""

    def __init__(self, maildir: Maildir) -> None:
        (self.path,) = (path for name in ("tmp", "new", "cur") for path in (maildir.path / name).iterdir())
        assert self.path.parent.name == "new"
        text = self.path.read_bytes()
        trace = TRACE.match(text.decode("utf-8", "surrogateescape"))
        assert trace, text
        self.trace = trace
        self.body = text[len(trace[0].encode()) :]
        assert max(len(line) for line in trace[0].encode().splitlines(keepends=True)) <= 1000


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    return Maildir(tmp_path / "maildir")


def send(peer: Peer, *envelope: str, body: str = "Subject: Tea\r\n", hello: str = "EHLO client.example") -> str:
    """Run a session from the banner to the last reply; return that reply."""
    peer.expect("220")
    peer.line(hello, *(envelope or ("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>")), "DATA")
    peer.expect(*["250"] * (1 + (len(envelope) or 2)), "354")
    peer.send(f"{body}.\r\n")
    return peer.expect("250 2.0.0")


# The file


def test_a_message_is_one_file_and_the_reply_names_it(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    with dial(server) as peer:
        reply = send(peer)
    stored = Stored(maildir)
    queue_id = stored.trace["id"]
    assert reply == f"250 2.0.0 Ok: queued as {queue_id}"
    assert re.fullmatch(rf"\d+\.{queue_id}\.mx\.example\.com", stored.path.name)
    assert stored.path.stat().st_mode & 0o777 == 0o600


def test_every_message_has_a_name_of_its_own(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        replies = []
        for _ in range(20):
            peer.line("MAIL FROM:<>", "RCPT TO:<bob@example.org>", "DATA", ".")
            replies.append(peer.expect("250", "250", "354", "250"))
    assert len(set(replies)) == 20
    names = sorted(path.name for path in (maildir.path / "new").iterdir())
    assert [reply.split()[-1] for reply in replies] == [name.split(".")[1] for name in names]


@pytest.mark.parametrize("hostname", ["[IPv6:2001:db8::1]", f"{'x' * 60}.{'y' * 60}.{'z' * 60}.{'a' * 60}.example"])
def test_any_hostname_makes_a_file_name(smtp_server: MakeServer, maildir: Maildir, hostname: str) -> None:
    server = smtp_server(start=False, hostname=hostname)
    maildir.attach(server)
    with dial(server) as peer:
        send(peer)
    stored = Stored(maildir)
    assert stored.trace["server"] == hostname
    assert re.fullmatch(r"[^:/]+", stored.path.name)


def test_the_folders_are_made_where_they_are_missing(tmp_path: Path) -> None:
    for _ in range(2):
        maildir = Maildir(tmp_path / "deep" / "down")
        (maildir.path / "cur" / "read:2,S").touch()
    assert sorted(path.name for path in (tmp_path / "deep" / "down").iterdir()) == ["cur", "new", "tmp"]


@pytest.mark.parametrize("blocked", ["maildir", "maildir/tmp", "maildir/cur"])
def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path: Path, blocked: str) -> None:
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("in the way")
    with pytest.raises(ValueError, match=r"^maildir: cannot make '.*/maildir': (File exists|Not a directory)$"):
        Maildir(tmp_path / "maildir")


# Several

LMTP = ("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>", "DATA", "Hi", ".")


def test_lmtp_stores_one_file_and_answers_for_each_recipient(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False, lmtp=True)
    maildir.attach(server)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO client.example", *LMTP)
        peer.expect("250", "250", "250", "250", "354")
        assert peer.reply() == peer.reply() == f"250 2.0.0 Ok: queued as {Stored(maildir).trace['id']}"
    assert Stored(maildir).trace["protocol"] == "LMTP"


def test_lmtp_stores_when_the_first_recipient_is_refused(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False, lmtp=True)

    @server.on("received")
    def not_bob(session: Session, ack: Ack, recipient: str) -> None:
        if recipient.startswith("bob"):
            raise Reject(550, "5.1.1 No Bob")

    maildir.attach(server)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO client.example", *LMTP)
        peer.expect("250", "250", "250", "250", "354", "550 5.1.1 No Bob", "250 2.0.0 Ok: queued as")
    assert Stored(maildir).body == b"\r\nHi\r\n"


def test_the_options_of_the_envelope_are_no_part_of_the_trace(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False, extensions={"DSN": True, "RRVS": True, "MT-PRIORITY": True})
    maildir.attach(server)
    with dial(server) as peer:
        hostile = "MAIL FROM:<ann@example.com> ENVID=+3E+0D+0ABcc RET=HDRS MT-PRIORITY=9"
        right = "MAIL FROM:<ann@example.com> ENVID=A"
        peer.hello()
        peer.line(hostile, right, "RCPT TO:<bob@example.org> ORCPT=rfc822;x+40y NOTIFY=NEVER RRVS=2020-01-01T00:00:00Z")
        peer.expect("501 5.5.4 ENVID", "250", "250")
        peer.line("DATA", "Subject: Tea", ".")
        peer.expect("354", "250")
    stored = Stored(maildir)
    assert (stored.trace["sender"], stored.trace["recipient"]) == ("ann@example.com", "bob@example.org")
    assert stored.body == b"Subject: Tea\r\n"


def test_two_maildirs_may_take_the_mail_of_one_server(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = smtp_server(start=False)
    both = [Maildir(tmp_path / name) for name in ("one", "two")]
    for maildir in both:
        maildir.attach(server)
    with dial(server) as peer:
        send(peer)
    assert [Stored(maildir).body for maildir in both] == [b"Subject: Tea\r\n"] * 2


# Trace information


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        (("127.0.0.1", 0), "[127.0.0.1]"),
        (("::1", 0), "[IPv6:::1]"),
        ("unix", None),
        ("pair", None),
    ],
    ids=["IPv4", "IPv6", "unix", "pair"],
)
def test_received_has_the_client(
    smtp_server: MakeServer, maildir: Maildir, tmp_path: Path, listener: Any, address: str | None
) -> None:
    listener = str(tmp_path / "s") if listener == "unix" else listener
    server = smtp_server(start=False) if listener == "pair" else smtp_server(listener=listener)
    maildir.attach(server)
    before = datetime.now().astimezone() - timedelta(seconds=1)
    with dial(server) as peer:
        send(peer)
    trace = Stored(maildir).trace
    assert trace["client"] == "client.example"
    assert trace["address"] == address
    assert trace["server"] == "mx.example.com"
    assert trace["protocol"] == "ESMTP"
    assert trace["recipient"] == "bob@example.org"
    assert trace["sender"] == "ann@example.com"
    assert trace["recipients"] == "bob@example.org\r\n"
    assert before <= parsedate_to_datetime(trace["date"]) <= datetime.now().astimezone()


def test_a_client_of_ipv4_on_a_listener_of_ipv6_has_its_own_kind_of_literal(
    smtp_server: MakeServer, maildir: Maildir
) -> None:
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen()
    server = smtp_server(listener=listener)
    maildir.attach(server)
    with Peer(socket.create_connection(("127.0.0.1", listener.getsockname()[1]))) as peer:
        send(peer)
    assert Stored(maildir).trace["address"] == "[127.0.0.1]"


@pytest.mark.parametrize(
    ("name", "repeated"),
    [
        ("client.example", "client.example"),
        ("under_score", "under_score"),
        ("[192.0.2.7]", "[192.0.2.7]"),
        ("[IPv6:2001:db8::7]", "[IPv6:2001:db8::7]"),
        ("a(comment", "unknown"),
        ("a;Mon,1Jan", "unknown"),
        ("<script>", "unknown"),
        ("a..b", "unknown"),
        ("-", "unknown"),
        ("[nonsense]", "unknown"),
        ("[", "unknown"),
        ("(((((", "unknown"),
        ('"quoted"', "unknown"),
        ("by", "by"),
        ("x" * 255, "unknown"),
    ],
)
def test_a_hostile_greeting_does_not_get_into_received(
    smtp_server: MakeServer, maildir: Maildir, name: str, repeated: str
) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    with dial(server) as peer:
        send(peer, hello=f"EHLO {name}")
    assert Stored(maildir).trace["client"] == repeated


@pytest.mark.parametrize(
    ("options", "said", "protocol"),
    [
        ({}, ("HELO", ""), "SMTP"),
        ({}, ("EHLO", ""), "ESMTP"),
        ({}, ("EHLO", " SMTPUTF8"), "UTF8SMTP"),
        ({"lmtp": True}, ("LHLO", ""), "LMTP"),
        ({"lmtp": True}, ("LHLO", " SMTPUTF8"), "UTF8LMTP"),
        ({"implicit_tls": True}, ("EHLO", ""), "ESMTPS"),
        ({"implicit_tls": True}, ("EHLO", " SMTPUTF8"), "UTF8SMTPS"),
        # RFC 3848 has no name for this: the S is ESMTP's.
        ({"implicit_tls": True}, ("HELO", ""), "SMTP"),
    ],
)
def test_received_has_the_protocol(
    *,
    smtp_server: MakeServer,
    maildir: Maildir,
    certificate: Any,
    options: dict[str, bool],
    said: tuple[str, str],
    protocol: str,
) -> None:
    hello, parameters = said
    tls = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    server = smtp_server(**options, **tls)
    maildir.attach(server)
    with dial(server) as peer:
        if server.implicit_tls:
            peer.start_tls()
        send(peer, f"MAIL FROM:<ann@example.com>{parameters}", "RCPT TO:<bob@example.org>", hello=f"{hello} me.example")
    trace = Stored(maildir).trace
    assert trace["protocol"] == protocol
    assert (trace["tls"] is not None) == server.implicit_tls


@pytest.mark.parametrize(
    ("path", "parameters", "kept"),
    [
        ("<>", "", ""),
        ("<ann@example.com>", " SIZE=100 BODY=8BITMIME", "ann@example.com"),
        ('<"ann and \\"bob\\""@example.com>', "", '"ann and \\"bob\\""@example.com'),
        ("<@relay.example:ann@example.com>", "", "ann@example.com"),
        ("<jos\u00e9@b\u00fccher.example>", " SMTPUTF8", "jos\u00e9@b\u00fccher.example"),
    ],
)
def test_the_reverse_path_is_kept(
    smtp_server: MakeServer, maildir: Maildir, path: str, parameters: str, kept: str
) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    with dial(server) as peer:
        send(peer, f"MAIL FROM:{path}{parameters}", "RCPT TO:<bob@example.org>")
    assert Stored(maildir).trace["sender"] == kept


def test_all_recipients_are_named_and_in_received_just_a_single_one(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    recipients = [f"{'long' * 10}{number}@example.org" for number in range(200)]
    with dial(server) as peer:
        send(peer, "MAIL FROM:<>", *(f"RCPT TO:<{recipient}>" for recipient in recipients))
    trace = Stored(maildir).trace
    assert re.split(r",\r\n\t|\r\n", trace["recipients"]) == [*recipients, ""]
    assert trace["recipient"] is None


def test_a_recipient_beyond_ascii_is_named_in_utf_8(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    with dial(server) as peer:
        send(peer, "MAIL FROM:<> SMTPUTF8", "RCPT TO:<\u0434\u0430@example.org>", body="Subject: \u2713\r\n")
    stored = Stored(maildir)
    assert stored.trace["recipient"] == "\u0434\u0430@example.org"
    assert stored.trace["recipients"] == "\u0434\u0430@example.org\r\n"
    assert stored.body == "Subject: \u2713\r\n".encode()


# The body

BINARY = bytes(range(256)) * 5000


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"Subject: x\r\n\r\n..\r\n...x\r\n", b"Subject: x\r\n\r\n.\r\n..x\r\n"),
        (b"no header\r\n", b"\r\nno header\r\n"),
        (b"\r\n\xff\x00\x80\r\n", b"\r\n\xff\x00\x80\r\n"),
        (b"X: long line " * 500 + b"\r\n", b"X: long line " * 500 + b"\r\n"),
        (b"Received: from them\r\n\r\n", b"Received: from them\r\n\r\n"),
        (b"From: here on\r\n\r\nFrom there\r\n" * 50_000, b"From: here on\r\n\r\nFrom there\r\n" * 50_000),
    ],
    ids=["empty", "one line", "dots", "no header", "octets", "long line", "trace", "1.5 MB"],
)
def test_a_body_is_stored_octet_for_octet(smtp_server: MakeServer, maildir: Maildir, sent: bytes, kept: bytes) -> None:
    server = smtp_server()
    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send(sent + b".\r\n")
        peer.expect("250")
    assert Stored(maildir).body == kept


@pytest.mark.parametrize("body", [b"", b"\r\n.\r\n", b"A: bare\nnewlines\rand no end", b"\r\n" + BINARY], ids=range(4))
@pytest.mark.parametrize("cut", [0, 7])
def test_a_body_in_chunks_is_stored_octet_for_octet(
    smtp_server: MakeServer, maildir: Maildir, body: bytes, cut: int
) -> None:
    server = smtp_server()
    maildir.attach(server)
    first, second = body[:cut], body[cut:]
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<> BODY=BINARYMIME", "RCPT TO:<bob@example.org>")
        peer.expect("250", "250")
        peer.send(b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (len(first), first, len(second), second))
        peer.expect("250", "250 2.0.0 Ok: queued as")
    assert Stored(maildir).body == body


def test_what_another_handler_reads_is_stored_too(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    seen = []
    deliveries = Deliveries([maildir])
    server.on("message", deliveries.tap)

    @server.on("message")
    def read_some(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        seen.append(stream.read(3))

    deliveries.attach_rest(server)
    with dial(server) as peer:
        send(peer)
    assert seen == [b"Sub"]
    assert Stored(maildir).body == b"Subject: Tea\r\n"


# What is ours in the head


@pytest.mark.parametrize(
    "body",
    [
        " for <eve@example.org>;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\nSubject: x\r\n\r\nHi\r\n",
        "\tfolded\r\n",
        " \r\n\r\n",
        "no header at all\r\n",
        "Return-Path: <gone@example.com>\r\n folded, too\r\nno header at all\r\n",
        "Return-Path: <gone@example.com>\r\n\x0bno header at all\r\n",
    ],
)
@pytest.mark.parametrize("size", [0, 600_000], ids=["small", "large"])
def test_a_body_cannot_continue_our_fields(smtp_server: MakeServer, maildir: Maildir, body: str, size: int) -> None:
    server = smtp_server()
    maildir.attach(server)
    more = "x" * 78 + "\r\n"
    body += more * (size // 80)
    with dial(server) as peer:
        send(peer, body=body)
    content = body.split("too\r\n")[-1].removeprefix("Return-Path: <gone@example.com>\r\n")
    assert Stored(maildir).body == b"\r\n" + content.encode()


def return_paths(maildir: Maildir) -> list[str]:
    """Return the Return-Path fields, read by the standard library's parser."""
    stored = email.message_from_bytes(Stored(maildir).path.read_bytes())
    return stored.get_all("Return-Path", [])


@pytest.mark.parametrize(
    "field",
    [
        b"Return-Path: <eve@example.com>\r\n",
        b"return-PATH \t:\r\n <eve@\r\n\texample.com>\r\n",
        b"Return-Path:\r\nReturn-Path: <>\r\n",
        b"Return-Path: <eve@example.com>\n",
    ],
)
@pytest.mark.parametrize("before", [b"", b"Subject: x\r\n", b"Subject: x\r\n folded\r\n"])
def test_only_our_return_path_is_stored(smtp_server: MakeServer, maildir: Maildir, field: bytes, before: bytes) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    body = b"To: y\r\n\r\nReturn-Path: <content@example.com>\r\n"
    wire = before + field + body
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        for octet in wire:  # cut everywhere
            peer.send(bytes([octet]))
            peer.let_it_read()
        peer.send(".\r\n")
        peer.expect("250")
    assert Stored(maildir).body == before + body
    assert return_paths(maildir) == ["<ann@example.com>"]


def test_what_keep_lets_through_brings_no_return_path_either(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False, bare_newlines="keep")
    maildir.attach(server)
    with dial(server) as peer:
        send(peer, body="A: 1\rReturn-Path: <eve@example.com>\rB: 2\nReturn-Path: <eve@example.com>\nC: 3\r\n\r\n")
    assert return_paths(maildir) == ["<ann@example.com>"]
    assert Stored(maildir).body == b"A: 1\rB: 2\nC: 3\r\n\r\n"


# Fields that handlers add


@pytest.mark.parametrize("size", [0, 300_000, 900_000], ids=["small", "a batch", "several batches"])
@pytest.mark.parametrize("when", ["message", "reading", "received"])
def test_fields_are_stored_that_are_added_before_the_commit(
    smtp_server: MakeServer, maildir: Maildir, size: int, when: str
) -> None:
    server = smtp_server()
    deliveries = Deliveries([maildir])
    server.on("message", deliveries.tap)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.add_header("X-First", "1")
        ack.accept()
        if when == "reading":
            stream.read(max(size // 2, 10))
            stream.add_header("X-Second", "2")
        elif when == "message":
            stream.add_header("X-Second", "2")

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        if when == "received":
            assert session.message is not None
            session.message.add_header("X-Second", "2")

    deliveries.attach_rest(server)
    body = "Subject: Tea\r\n\r\n" + ("x" * 78 + "\r\n") * (size // 80)
    with dial(server) as peer:
        send(peer, body=body)
    assert Stored(maildir).body.decode() == "X-First: 1\r\nX-Second: 2\r\n" + body


def test_a_field_that_comes_after_the_commit_is_an_error(
    smtp_server: MakeServer, maildir: Maildir, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    errors: list[str] = []

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        assert session.message is not None
        with pytest.raises(RuntimeError, match="comes too late") as caught:
            session.message.add_header("X-Late", "x")
        errors.append(str(caught.value))

    with dial(server) as peer:
        send(peer)
    assert len(errors) == 1


def test_an_added_field_is_not_continued_either(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: stream.add_header("X-Spam", "no"))
    maildir.attach(server)
    with dial(server) as peer:
        send(peer, body=" yes\r\n")
    assert Stored(maildir).body == b"X-Spam: no\r\n\r\n yes\r\n"


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="the path is empty"):
        Maildir("")
