"""How ``send`` prepares a message: its envelope, and the bytes that are sent."""

from __future__ import annotations

import gzip
import io
import os
import re
import socket as stdlib_socket
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes, message_from_string, policy
from email.header import Header
from email.headerregistry import Address as NamedAddress
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep, socket, spawn
from gevent import subprocess as gevent_subprocess
from gevent.fileobject import FileObject, FileObjectPosix, FileObjectThread

from greensmtp import (
    Ack,
    Address,
    MessageStream,
    NotOffered,
    Pool,
    ProtocolError,
    Session,
    SMTPServer,
    connect,
)
from greensmtp.client.message import MAX_MEMORY, PreparedMessage
from greensmtp.middleware import Auth
from greensmtp.protocol import header_envelope
from greensmtp.protocol.dot_stuffing import with_crlf
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"
ALL = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "DSN")


class Inbox:
    """What a server has received: MAIL, RCPT, content."""

    def __init__(self, server: SMTPServer) -> None:
        self.server = server
        self.commands: list[str] = []
        self.recipients: list[list[Address]] = []
        self.bodies: list[bytes] = []
        server.on("message", self._take)
        server.on("command", self._note)

    def _note(self, session: Session, command: Any, ack: Ack) -> None:
        self.commands.append(str(command))

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        self.recipients.append(list(session.to))
        self.bodies.append(stream.read())

    def send(self, *args: Any, **options: Any) -> Any:
        """Send a message on a new connection."""
        with connect(*self.server.address, timeout=10) as mail:
            return mail.send(*args, **options)


@pytest.fixture
def inbox(smtp_server: MakeServer) -> Inbox:
    return Inbox(smtp_server(bare_newlines="keep"))


def take(*offers: str) -> tuple[Callable[[Script], None], list[bytes], list[str]]:
    """Return a script that accepts messages by DATA and offers these extensions, the messages, and the MAIL lines."""
    bodies: list[bytes] = []
    mails: list[str] = []

    def script(script: Script) -> None:
        script.greet(*offers)
        while line := script.hear():
            if line.startswith("MAIL"):
                mails.append(line)
            if line == "DATA":
                script.say("354 go")
                bodies.append(script.body())
            script.say("250 Ok")

    return script, bodies, mails


# Recipients


@pytest.mark.parametrize("kind", ["bytes", "file", "compat32", "email"])
@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("a@example.com; b@example.com", ["a@example.com", "b@example.com"]),
        ("shown@example.org <real@example.com>", ["real@example.com"]),
        ("=?utf-8?q?Doe=2C_J=C3=B6?= <jo@example.com>", ["jo@example.com"]),
        ("jo@example.com, JO@example.com", ["jo@example.com", "JO@example.com"]),
    ],
)
def test_recipients_of_every_kind_of_message(inbox: Inbox, kind: str, to: str, expected: list[str]) -> None:
    octets = f"From: {FROM}\r\nTo: {to}\r\n\r\nhi\r\n".encode()
    kinds: dict[str, Callable[[], Any]] = {
        "bytes": lambda: octets,
        "file": lambda: io.BytesIO(octets),
        "compat32": lambda: message_from_bytes(octets),
        "email": lambda: message_from_bytes(octets, policy=policy.default),
    }
    message = kinds[kind]()
    assert inbox.send(message).accepted == tuple(expected)
    assert inbox.recipients == [expected]
    assert inbox.bodies == [octets]


def composed(**fields: Any) -> EmailMessage:
    message = EmailMessage()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    message.set_content("hi\n")
    return message


def test_recipients_of_a_composed_message(inbox: Inbox) -> None:
    inbox.send(composed(From=FROM, To="a@example.com; b@example.com"))
    inbox.send(composed(From=FROM, To="shown@example.org <real@example.com>"))
    inbox.send(
        composed(From=FROM, To=(NamedAddress("Doe, Jo", "jo", "example.com"), NamedAddress("", "x", "y.example")))
    )
    assert inbox.recipients == [
        ["a@example.com", "b@example.com"],
        ["real@example.com"],
        ["jo@example.com", "x@y.example"],
    ]


def test_a_non_ascii_name_with_a_comma_stays_one_name(inbox: Inbox) -> None:
    inbox.send(composed(From=FROM, To=NamedAddress("Doe, J\u00f6", "jo", "example.com")))
    assert inbox.recipients == [["jo@example.com"]]
    parsed = message_from_bytes(inbox.bodies[0], policy=policy.default)
    assert [str(address) for address in parsed["To"].addresses] == ['"Doe, J\u00f6" <jo@example.com>']


@pytest.mark.parametrize("name", ["From", "Sender", "To", "Cc", "Bcc"])
@pytest.mark.parametrize("wrong", ['you@example.com, "', "root", "a@b.c d@e.f", "((", "a@example.com, <>"])
def test_an_unreadable_address_list_sends_nothing(inbox: Inbox, name: str, wrong: str) -> None:
    fields = {"From": FROM, "To": TO, name: wrong}
    octets = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\nhi\r\n"
    with connect(*inbox.server.address, timeout=10) as mail:
        for message in (octets, io.BytesIO(octets), message_from_bytes(octets)):
            with pytest.raises(ProtocolError, match=f"the {name} field cannot be read"):
                mail.send(message)
        assert inbox.commands == []
        mail.send(octets, FROM, TO)  # fields that are not used need not be readable
    assert inbox.recipients == [[TO]]


def test_hostile_fields_take_milliseconds() -> None:
    octets = b"From: a@example.com\r\nTo: " + b"a@b.c (" * 7_000 + b"\r\n\r\nhi\r\n"
    began = time.thread_time()
    for message in (octets, message_from_bytes(octets), octets.replace(b"(", b", ")):
        try:
            PreparedMessage(message).close()
        except ProtocolError:
            pass
    assert time.thread_time() - began < 1


def test_two_thousand_recipients(inbox: Inbox) -> None:
    to = ",\r\n ".join(f"Reader {number} <reader{number}@example.com>" for number in range(2000))
    octets = f"From: {FROM}\r\nTo: {to}\r\n\r\nhi\r\n".encode()
    for message in (octets, message_from_bytes(octets), message_from_bytes(octets, policy=policy.default)):
        outgoing = PreparedMessage(message)
        assert len(outgoing.recipients) == 2000
        assert outgoing.size == len(octets)


def test_sharp_s_keeps_its_own_domain(inbox: Inbox) -> None:
    inbox.send(b"x", FROM, ["jo@fa\u00df.de", "jo@fass.de"])
    assert inbox.recipients == [["jo@xn--fa-hia.de", "jo@fass.de"]]
    inbox.send(composed(From=FROM, To="jo@fa\u00df.de"))
    assert inbox.recipients[1] == ["jo@xn--fa-hia.de"]
    assert b"\r\nTo: jo@xn--fa-hia.de\r\n" in inbox.bodies[1]
    inbox.send(composed(From=FROM, To="j\u00f6@fa\u00df.de"))
    assert inbox.recipients[2] == ["j\u00f6@fa\u00df.de"]
    assert "SMTPUTF8" in [command for command in inbox.commands if command.startswith("MAIL")][-1]


def test_a_domain_that_idna_does_not_allow_needs_smtputf8(scripted: Start, inbox: Inbox) -> None:
    script, _, mails = take("8BITMIME")
    with scripted(script).connect() as mail, pytest.raises(NotOffered, match="SMTPUTF8"):
        mail.send(b"x", FROM, "jo@\U0001f4a9.example")
    assert mails == []


def test_a_malformed_line_among_the_header_fields_is_an_error(inbox: Inbox) -> None:
    with pytest.raises(ProtocolError, match="not a header field"):
        inbox.send(b"From: a@example.com\nTo: b@example.com\ngarbage\nCc: c@example.com\n\nhi\n")


# What was parsed


DKIM = (
    b"DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=x; h=from:to:subject; bh=abc=;\r\n\tb="
    + b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 10
    + b"==\r\n"
)
LONG = b"Subject: " + b"a long subject " * 20 + b"ends\r\nReferences: <" + b"x" * 200 + b"@example.com>\r\n\t<y@z>\r\n"
ENVELOPE = b"From: a@example.com\r\nTo:  b@example.com ,\r\n\tc@example.com\r\n".replace(b"To:  ", b"To: ")
MULTIPART = (
    b'Content-Type: multipart/signed; protocol="application/pgp-signature"; micalg=pgp-sha256;\r\n'
    b"\tboundary=outer\r\nMIME-Version: 1.0\r\n\r\nThis is MIME.\r\n--outer\r\n"
    b"Content-Type: text/plain; charset=iso-8859-1\r\nX-Long: " + b"word " * 40 + b"\r\nContent-Transfer-Encoding: 8bit"
    b"\r\n\r\ngr\xfc\xdfe \r\nFrom here\r\n\r\n--outer\r\nContent-Type: application/pgp-signature\r\n\r\nabc\r\n"
    b"--outer--\r\n"
)
PARSED = [
    DKIM + LONG + ENVELOPE + b"\r\nhi\r\n.\r\n..\r\nFrom x\r\n",
    LONG + ENVELOPE + MULTIPART,
    ENVELOPE + b"subject: odd CASE\r\nX-Empty: \r\nX-Blank: x \t \r\nReceived: a\r\n b\r\n\r\n\r\n\r\n",
    ENVELOPE + b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?= and =?iso-8859-1?Q?a?=\r\n =?utf-8?b?w7Y=?=\r\n\r\nhi\r\n",
    ENVELOPE + b"Content-Type: message/rfc822\r\n\r\n" + LONG + b"\r\nhi\r\n",
    ENVELOPE + "Subject: gr\u00fc\u00dfe\r\n\r\nhi\r\n".encode(),
    ENVELOPE + b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xff\xfe\r\n",
    ENVELOPE + b"Content-Type: multipart/mixed; boundary=missing\r\n\r\n\xff\xfe no parts\r\n",
    ENVELOPE + b'Content-Type: multipart/signed; boundary=""\r\n\r\n--x\r\n\xff\r\n',
]


@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default, policy.SMTP, policy.SMTPUTF8])
@pytest.mark.parametrize("newline", [b"\r\n", b"\n"])
@pytest.mark.parametrize("octets", PARSED, ids=range(len(PARSED)))
def test_a_parsed_message_is_sent_as_it_was_read(inbox: Inbox, parse_as: Any, newline: bytes, octets: bytes) -> None:
    message = message_from_bytes(octets.replace(b"\r\n", newline), policy=parse_as)
    inbox.send(message)
    assert inbox.bodies == [octets]
    assert inbox.recipients == [[TO, "c@example.com"]]


@pytest.mark.parametrize("octets", PARSED, ids=range(len(PARSED)))
def test_bytes_and_files_are_sent_unchanged(inbox: Inbox, octets: bytes, tmp_path: Path) -> None:
    inbox.send(octets)
    (tmp_path / "x").write_bytes(octets.replace(b"\r\n", b"\n"))
    with (tmp_path / "x").open("rb") as source:
        inbox.send(source)
    assert inbox.bodies == [octets, octets]


@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default])
@pytest.mark.parametrize(
    ("octets", "extension"),
    [
        (PARSED[1], "8BITMIME"),
        (DKIM + ENVELOPE + b"\r\ngr\xfc\xdfe\r\n", "8BITMIME"),
        (DKIM + ENVELOPE + "Subject: \u00f6\r\n\r\nhi\r\n".encode(), "SMTPUTF8"),
        (b"Content-Type: message/rfc822\r\n" + ENVELOPE + b"\r\n" + DKIM + b"\r\n\xff\r\n", "8BITMIME"),
    ],
)
def test_a_signed_message_is_never_encoded(scripted: Start, parse_as: Any, octets: bytes, extension: str) -> None:
    script, bodies, mails = take("SIZE")
    message = message_from_bytes(octets, policy=parse_as)
    with scripted(script).connect() as mail, pytest.raises(NotOffered, match=extension):
        mail.send(message)
    assert (bodies, mails) == ([], [])


@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default])
def test_an_8_bit_body_is_encoded_if_8bitmime_is_not_offered(scripted: Start, parse_as: Any) -> None:
    octets = (
        b"X-Long: " + b"word " * 50 + b"\r\n" + ENVELOPE + b"Content-Type: multipart/mixed; boundary=x\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\n--x\r\nContent-Type: text/plain; charset=nonsense\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\ngr\xfc\xdfe \r\n\r\n--x\r\n\r\nplain = text\r\n--x\r\n"
        b"Content-Type: image/png\r\n\r\n\xff\xfe\r\n--x--\r\n"
    )
    script, bodies, mails = take("SIZE")
    with scripted(script).connect() as mail:
        mail.send(message_from_bytes(octets, policy=parse_as))
    assert mails == [f"MAIL FROM:<{FROM}> SIZE={len(bodies[0])}"]
    assert bodies[0].isascii()
    assert bodies[0].startswith(b"X-Long: " + b"word " * 50 + b"\r\n")
    parts: Any = message_from_bytes(bodies[0]).get_payload()
    assert [with_crlf(part.get_payload(decode=True)) for part in parts] == [
        b"gr\xfc\xdfe \r\n",
        b"plain = text",
        b"\xff\xfe",
    ]
    assert [part["Content-Transfer-Encoding"] for part in parts] == ["quoted-printable", None, "base64"]


@pytest.mark.parametrize("kind", [bytes, io.BytesIO, message_from_bytes])
def test_a_raw_utf8_header_is_encoded_if_smtputf8_is_not_offered(scripted: Start, kind: Any) -> None:
    octets = "From: J\u00f6 <a@example.com>\r\nTo: b@example.com\r\nSubject: gr\u00fc\u00dfe\r\n\r\nhi\r\n".encode()
    script, bodies, mails = take("8BITMIME")
    with scripted(script).connect() as mail:
        mail.send(kind(octets))
    assert mails == [f"MAIL FROM:<{FROM}>"]
    parsed = message_from_bytes(bodies[0], policy=policy.default)
    assert bodies[0].isascii()
    assert (parsed["From"], parsed["Subject"]) == ("J\u00f6 <a@example.com>", "gr\u00fc\u00dfe")


def test_a_raw_utf8_header_of_a_large_file(scripted: Start, tmp_path: Path) -> None:
    head = "Subject: gr\u00fc\u00dfe\n\n".encode()
    path = tmp_path / "large"
    path.write_bytes(head + b"x" * 98 + b"\n" + (b"y" * 98 + b"\n") * (MAX_MEMORY // 99 + 1))
    script, bodies, mails = take("SIZE")
    with path.open("rb") as source, scripted(script).connect(timeout=20) as mail:
        mail.send(source, FROM, TO)
    assert bodies[0].startswith(b"Subject: =?utf-8?b?Z3LDvMOfZQ==?=\r\n\r\nxxx")
    assert mails == [f"MAIL FROM:<{FROM}> SIZE={len(bodies[0])}"]


# What was composed


def test_a_composed_message_is_written_as_the_email_package_does(inbox: Inbox) -> None:
    message = composed(
        From=FROM, To=TO, Date="Mon, 01 Jan 2024 00:00:00 +0000", Message_ID="<x@y>", Subject="\u00f6" * 80
    )
    message.add_attachment(b"\0\1\n", maintype="image", subtype="png", filename="\u00f6.png")
    octets = message.as_bytes(policy=policy.SMTP)
    inbox.send(message)
    assert inbox.bodies == [octets]


def test_missing_date_and_message_id_are_added(inbox: Inbox) -> None:
    messages = [composed(From=FROM, To=TO), MIMEText("hi")]
    messages[1]["From"], messages[1]["To"] = FROM, TO
    for message in messages:
        before = message.as_bytes()
        inbox.send(message)
        assert message.as_bytes() == before
        parsed = message_from_bytes(inbox.bodies[-1], policy=policy.default)
        assert abs(parsed["Date"].datetime.timestamp() - time.time()) < 60
        assert re.fullmatch(r"<[0-9a-f]{32}@example\.com>", parsed["Message-ID"])
    inbox.send(composed(From=FROM, To=TO, Date="Mon, 01 Jan 2024 00:00:00 +0000", Message_ID="<x@y>"))
    assert inbox.bodies[-1].count(b"Date:") == inbox.bodies[-1].count(b"Message-ID:") == 1
    inbox.send(composed(From=FROM, To=TO), sender="")
    own_name = stdlib_socket.gethostname().encode()
    assert re.search(rb"^Message-ID: <[0-9a-f]{32}@" + re.escape(own_name) + rb">\r$", inbox.bodies[-1], re.M)
    signed = composed(From=FROM, To=TO, DKIM_Signature="v=1")
    inbox.send(signed)
    assert b"Date:" not in inbox.bodies[-1]


def test_a_retry_has_the_same_message_id() -> None:
    outgoing = PreparedMessage(composed(From=FROM, To=TO))
    first = b"".join(outgoing.data())
    outgoing.mail_line({"8BITMIME": ""})
    assert b"".join(outgoing.data()) == first


def test_the_callers_message_is_not_changed(scripted: Start) -> None:
    message = composed(From=FROM, To=TO, Bcc="c@example.com", Subject="\u00f6")
    message.set_content("gr\u00fc\u00dfe\n", cte="8bit")
    message.make_mixed()
    message.add_attachment("more \u00f6\n", cte="8bit")
    parts: Any = message.get_payload()
    before = [(part.items(), part.policy, part.get_payload(decode=True)) for part in (message, *parts)]
    script, bodies, _ = take()
    with scripted(script).connect() as mail:
        mail.send(message)
    assert bodies[0].isascii()
    assert message.get_boundary() is None
    assert [(part.items(), part.policy, part.get_payload(decode=True)) for part in (message, *parts)] == before


@pytest.mark.parametrize("name", ["Bcc", "BCC", "bcc", "Resent-BCC"])
@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default])
def test_bcc_of_a_parsed_message_stays_secret(inbox: Inbox, name: str, parse_as: Any) -> None:
    octets = ENVELOPE + name.encode() + b": secret@example.com,\r\n\tmore.secrets@example.com\r\n\r\nhi\r\n"
    message = message_from_bytes(octets, policy=parse_as)
    inbox.send(message, FROM, TO)
    assert inbox.bodies == [ENVELOPE + b"\r\nhi\r\n"]
    assert message[name] is not None


def test_a_header_field_cannot_contain_another_one() -> None:
    for name, value in (("Subject", "x\nBcc: y"), ("Subject", "x\r\n\r\nbody"), ("X\r\nBcc", "y"), ("X: y\r\nZ", "")):
        message = Message()
        message["From"], message["To"] = FROM, TO
        message[name] = value
        with pytest.raises(ProtocolError, match="cannot be written"):
            PreparedMessage(message)


def test_a_message_nested_too_deeply_is_an_error() -> None:
    message = inner = EmailMessage()
    for _ in range(3000):
        inner["Content-Type"] = "message/rfc822"
        deeper = EmailMessage()
        inner.set_payload([deeper])
        inner = deeper
    with pytest.raises(ProtocolError, match="nested too deeply"):
        PreparedMessage(message, FROM, TO)


def test_a_large_message_is_written_off_the_hub(inbox: Inbox) -> None:
    message = composed(From=FROM, To=TO)
    message.set_content("a line of text that is written one by one\n" * 200_000)
    longest = 0.0

    def watch() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            sleep(0.001)
            longest = max(longest, time.perf_counter() - began)

    watching = spawn(watch)
    began = time.perf_counter()
    PreparedMessage(message).close()
    taken = time.perf_counter() - began
    watching.kill()
    assert longest < max(taken / 2, 0.25)


# Binary


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("large", [False, True])
def test_a_quoted_encoding_needs_no_binarymime(scripted: Start, tmp_path: Path, newline: bytes, large: bool) -> None:
    lines = [b"Subject: x", b"", b"Content-Transfer-Encoding: binary", b"", b"that was a quote", b""]
    octets = newline.join(lines) + (b"z" * 97 + b"\n") * (50_000 if large else 0)
    path = tmp_path / "x"
    path.write_bytes(octets)
    script, bodies, mails = take("8BITMIME", "SIZE")
    with path.open("rb") as source, scripted(script).connect(timeout=20) as mail:
        mail.send(source, FROM, TO)
    assert bodies == [with_crlf(octets)]
    assert mails == [f"MAIL FROM:<{FROM}> SIZE={len(bodies[0])}"]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_only_binary_parts_are_sent_unchanged(inbox: Inbox, tmp_path: Path, large: bool, kind: str) -> None:
    text = (b"z" * 97 + b"\n") * (50_000 if large else 1)
    octets = (
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\ntext\n" + text + b"--x\n"
        b"Content-Transfer-Encoding: binary\n\n\0one\ntwo\r\n--x--\n"
    )
    path = tmp_path / "x"
    path.write_bytes(octets)
    with path.open("rb") as source:
        inbox.send(octets if kind == "bytes" else source, FROM, TO)
    assert inbox.bodies == [with_crlf(octets).replace(b"one\r\ntwo", b"one\ntwo")]
    assert any("BODY=BINARYMIME" in command for command in inbox.commands)


def test_a_binary_part_of_a_message_object(inbox: Inbox, scripted: Start) -> None:
    message = composed(From=FROM, To=TO)
    message.add_attachment(b"\0\n\r\xff\r\n", maintype="image", subtype="png", cte="binary")
    inbox.send(message)
    assert b"\r\n\r\n\0\n\r\xff\r\n\r\n--" in inbox.bodies[0]
    # Where BINARYMIME is not offered, it is encoded.
    script, bodies, _ = take("8BITMIME", "SIZE")
    with scripted(script).connect() as mail:
        mail.send(message)
    parts: Any = message_from_bytes(bodies[0]).get_payload()
    assert parts[1].get_payload(decode=True) == b"\0\n\r\xff\r\n"
    message["DKIM-Signature"] = "v=1"
    with scripted(take("8BITMIME", "SIZE")[0]).connect() as mail, pytest.raises(NotOffered, match="BINARYMIME"):
        mail.send(message)


# Mbox


@pytest.mark.parametrize("kind", [bytes, io.BytesIO, message_from_bytes])
def test_an_mbox_line_is_dropped(inbox: Inbox, kind: Any) -> None:
    inbox.send(kind(b"From jo@example.com Mon Jan  1 00:00:00 2024\n" + ENVELOPE + b"\r\nFrom here\r\n"))
    assert inbox.bodies == [ENVELOPE + b"\r\nFrom here\r\n"]
    assert inbox.recipients == [[TO, "c@example.com"]]


# Files


def sources(octets: bytes, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    file: Any
    path = tmp_path / "message"
    path.write_bytes(octets)
    ours, theirs = socket.socketpair()

    def write() -> None:
        theirs.sendall(octets)
        theirs.close()

    writing = spawn(write)
    with ours.makefile("rb") as file:
        yield "makefile", file
    writing.join()
    ours.close()
    process: Any = gevent_subprocess.Popen(["cat", str(path)], stdout=gevent_subprocess.PIPE)
    yield "subprocess", process.stdout
    process.wait()
    process.stdout.close()
    for kind in (FileObject, FileObjectPosix, FileObjectThread):
        with kind(str(path), "rb") as file:
            yield kind.__name__, file
    reading_end, writing_end = os.pipe()
    writing = spawn(lambda: FileObjectPosix(writing_end, "wb").write(octets))
    with FileObjectPosix(reading_end, "rb") as file:
        yield "pipe", file
    writing.join()
    with path.open("rb") as file:
        yield "file", file
    with path.open("rb", buffering=0) as file:
        yield "unbuffered", file
    (tmp_path / "message.gz").write_bytes(gzip.compress(octets))
    with gzip.open(tmp_path / "message.gz") as file:
        yield "gzip", file
    with gzip.GzipFile(fileobj=FileObjectPosix(str(tmp_path / "message.gz"), "rb")) as file:
        yield "gzip on gevent", file


@pytest.mark.subprocess
@pytest.mark.parametrize("size", [10, MAX_MEMORY])
def test_files_of_every_kind(inbox: Inbox, tmp_path: Path, size: int, capfd: pytest.CaptureFixture[str]) -> None:
    octets = ENVELOPE + b"\r\n" + b"x" * 98 + b"\r\n" + b"y\r\n" * (size // 3)
    for name, source in sources(octets, tmp_path):
        inbox.send(source)
        assert inbox.bodies.pop() == octets, name
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.subprocess
def test_message_sends_a_gevent_file(inbox: Inbox, tmp_path: Path) -> None:
    with connect(*inbox.server.address, timeout=10) as mail:
        for name, source in sources(b"Subject: x\r\n\r\nhi\r\n", tmp_path):
            mail.ehlo("client.example")
            mail.from_(FROM)
            mail.to(TO)
            mail.data()
            assert mail.message(source).code == 250, name


class Wrapper:
    """A file that hides the file inside it, and claims to have a descriptor."""

    __slots__ = ("read",)

    def __init__(self, file: Any) -> None:
        self.read = file.read

    def fileno(self) -> int:
        return -1


def test_anything_but_a_binary_file_is_a_type_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("From: a@example.com\n\nhi\n")
    ours, theirs = socket.socketpair()
    with (tmp_path / "x").open() as text:
        for wrong, what in (
            (text, "open it with 'rb'"),
            (ours, "makefile"),
            (io.StringIO("x"), "'rb'"),
            (5, "got int"),
        ):
            with pytest.raises(TypeError, match=what):
                PreparedMessage(wrong, FROM, TO)  # type: ignore[arg-type]
    with ours.makefile("rb") as file, pytest.raises(TypeError, match="gevent"):
        PreparedMessage(Wrapper(file), FROM, TO)
    with (tmp_path / "x").open("rb") as closed:
        pass
    with pytest.raises(ValueError, match="closed"):
        PreparedMessage(closed, FROM, TO)
    ours.close()
    theirs.close()
    assert capfd.readouterr().err == ""


# Parameters


def test_parameters_of_a_session_can_be_forwarded(smtp_server: MakeServer) -> None:
    users = {"jo": "secret"}
    first = smtp_server(middleware=[Auth(users, allow_plaintext=True)])
    inbox = Inbox(smtp_server(middleware=[Auth(users, allow_plaintext=True)]))
    sessions: list[Any] = []

    @first.on("message")
    def forward(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        body = stream.read()
        assert session.from_ is not None
        sessions.append(session.from_ext["AUTH"])
        inbox.send(body + b"more\r\n", session.from_, session.to, from_ext=session.from_ext, to_ext=session.to_ext)

    with connect(*first.address, timeout=10) as mail:
        mail.ehlo("client.example")
        assert mail.login("jo", "secret", allow_plaintext=True).code == 235
        mail.from_(FROM, "SIZE=20 BODY=8BITMIME SMTPUTF8 AUTH=jo+2BAB@example.com")
        mail.to("b@example.com")
        mail.to("c@example.com")
        mail.data()
        assert mail.message(b"hi\r\n").code == 250
    assert sessions == ["jo+AB@example.com"]
    assert inbox.bodies == [b"hi\r\nmore\r\n"]
    mail_line = next(command for command in inbox.commands if command.startswith("MAIL"))
    assert mail_line == f"MAIL FROM:<{FROM}> AUTH=jo+2BAB@example.com SIZE=10 SMTPUTF8"


@pytest.mark.parametrize("dsn", [True, False])
def test_parameters_of_dsn_and_auth_are_omitted_if_not_offered(scripted: Start, dsn: bool) -> None:
    lines: list[str] = []

    def script(script: Script) -> None:
        script.greet(*(["DSN", "AUTH PLAIN"] if dsn else ["SIZE"]))
        while line := script.hear():
            lines.append(line)
            if line == "DATA":
                script.say("354 go")
                script.body()
            script.say("250 Ok")

    from_ext = {"RET": "HDRS", "ENVID": "a+20b", "AUTH": "<>", "SIZE": "9999", "BODY": "8BITMIME", "SMTPUTF8": None}
    to_ext = [{"ORCPT": "rfc822;b+2B@example.com", "NOTIFY": "NEVER"}, {}]
    with scripted(script).connect() as mail:
        mail.send(b"x", FROM, [TO, "c@example.com"], from_ext=from_ext, to_ext=to_ext)
    assert lines[:3] == [
        f"MAIL FROM:<{FROM}>" + (" RET=HDRS ENVID=a+20b AUTH=<>" if dsn else " SIZE=3"),
        f"RCPT TO:<{TO}>" + (" ORCPT=rfc822;b+2B@example.com NOTIFY=NEVER" if dsn else ""),
        "RCPT TO:<c@example.com>",
    ]


@pytest.mark.parametrize("ext", ["REQUIRETLS", "BY=10;R", {"HOLDFOR": 10}])
def test_other_parameters_are_never_omitted(scripted: Start, ext: Any) -> None:
    script, _, mails = take("SIZE")
    with scripted(script).connect() as mail, pytest.raises(NotOffered):
        mail.send(b"x", FROM, TO, from_ext=ext)
    assert mails == []


def test_to_ext_of_the_wrong_length_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="for 1 recipients, not for 2"):
        PreparedMessage(b"x", FROM, [TO, "c@example.com"], to_ext=[{}])


def test_one_pool_sends_one_object_from_many_greenlets(inbox: Inbox) -> None:
    message = composed(From=FROM, To=TO)
    message.make_mixed()
    message.add_attachment(b"x" * 100_000, maintype="image", subtype="png")
    before = message.policy
    address: Any = inbox.server.address
    with Pool(address, size=4) as pool:
        greenlets = [spawn(pool.send, message, FROM, f"r{number}@example.com") for number in range(8)]
        for greenlet in greenlets:
            greenlet.get()
    assert len(inbox.bodies) == 8
    assert message.policy is before
    assert all(part.policy is before for part in message.iter_parts())


@pytest.mark.parametrize("name", ["DKIM-Signature", "Message-ID", "References", "List-Unsubscribe", "X-Token"])
def test_no_long_token_becomes_an_encoded_word(inbox: Inbox, name: str) -> None:
    value = f"v=1; <{'QUJD' * 60}@example.com> {'x' * 200}"
    message = composed(From=FROM, To=TO)
    message[name] = value
    inbox.send(message)
    assert b"=?" not in inbox.bodies[0]
    assert message_from_bytes(inbox.bodies[0])[name].replace("\r\n", "") == value


@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default])
@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_a_message_that_was_parsed_from_text(inbox: Inbox, scripted: Start, parse_as: Any, charset: str) -> None:
    text = (
        f"From: {FROM}\nTo: J\u00f6 <{TO}>\nSubject: gr\u00fc\u00dfe\nContent-Type: text/plain; charset={charset}\n\n"
        "gr\u00fc\u00dfe\n"
    )
    message = message_from_string(text, policy=parse_as)
    script, bodies, _ = take()
    inbox.send(message)
    with scripted(script).connect() as mail:
        mail.send(message)
    assert inbox.bodies[0].endswith("\r\n\r\ngr\u00fc\u00dfe\r\n".encode(charset))
    for octets in (*inbox.bodies, *bodies):
        parsed = message_from_bytes(octets, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        assert (parsed["Subject"], parsed["To"]) == ("gr\u00fc\u00dfe", f"J\u00f6 <{TO}>")
        assert parsed.get_content().strip() == "gr\u00fc\u00dfe"
    assert bodies[0].isascii()


@pytest.mark.parametrize("size", [10, MAX_MEMORY])
def test_a_message_stream_can_be_forwarded_while_it_arrives(smtp_server: MakeServer, inbox: Inbox, size: int) -> None:
    first = smtp_server()
    octets = ENVELOPE + b"\r\n" + b"x" * 98 + b"\r\n" + b"y\r\n" * (size // 3)

    @first.on("message")
    def forward(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        inbox.send(stream, session.from_, session.to)

    with connect(*first.address, timeout=20) as mail:
        mail.send(octets, FROM, TO)
    assert inbox.bodies == [octets]


@pytest.mark.parametrize(
    "octets",
    [
        b"x" * (MAX_MEMORY + 10) + b"\r\n",
        b"A: b\r\n\r\n" + b".y\r\n" * (MAX_MEMORY // 4 + 10),
        b"A: b\r\n\r\n" + b"\0\r\n" * (MAX_MEMORY // 3 + 10),
    ],
    ids=["no head", "text", "binary"],
)
def test_large_bytes_do_not_block_other_greenlets(octets: bytes, inbox: Inbox) -> None:
    turns = 0

    def take_turns() -> None:
        nonlocal turns
        while True:
            sleep(0.0001)
            turns += 1

    turning = spawn(take_turns)
    outgoing = PreparedMessage(octets, FROM, TO)
    turning.kill()
    assert turns > 5
    assert outgoing.size == len(octets)
    inbox.send(octets, FROM, TO)
    assert inbox.bodies == [octets]


def test_an_address_within_an_old_header_object(inbox: Inbox) -> None:
    message = MIMEText("hi")
    message["From"] = FROM
    message["To"] = Header(f"J\u00f6 <{TO}>", "utf-8")  # type: ignore[assignment]
    cc = Header("Doe, J\u00f6", "utf-8")
    cc.append("<c@example.com>", "us-ascii")
    message["Cc"] = cc  # type: ignore[assignment]
    inbox.send(message)
    assert inbox.recipients == [[TO, "c@example.com"]]
    parsed = message_from_bytes(inbox.bodies[0], policy=policy.default)
    assert [address.addr_spec for address in parsed["To"].addresses] == [TO]
    assert [address.display_name for address in parsed["Cc"].addresses] == ["Doe, J\u00f6"]


@pytest.mark.parametrize(
    "name",
    ["=?utf-8?q?evil=40y=2Eexample=2C?= ", "=?utf-8?q?evil=40y=2Eexample=2C?=", "=?utf-8?q?=C3=B6=2C_evil=40y=2Ez?= "],
)
def test_an_encoded_word_hides_no_recipient(inbox: Inbox, name: str) -> None:
    inbox.send(composed(From=FROM, To=f"{name}<{TO}>"))
    assert inbox.recipients == [[TO]]
    assert [
        str(address)
        for address in header_envelope.recipients(header_envelope.parse(inbox.bodies[0].partition(b"\r\n\r\n")[0]))
    ] == [TO]
    with pytest.raises(ProtocolError, match="the To field cannot be read"):
        inbox.send(composed(From=FROM, To=f"a@example.com; {name}<{TO}>"))
    assert len(inbox.bodies) == 1


HEAD = b"From: a@example.com\r\nTo: b@example.com\r\n"
CUT_OFF = HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n"
INNER_CUT_OFF = (
    HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
    b"Content-Type: multipart/alternative; boundary=c\r\n\r\n--c\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n"
)
BASE64_MESSAGE = (
    HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nRnJvbTogeEB5LnoKCmlubmVyCg==\r\n--b--\r\n"
)
NO_FIELDS = HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nno field at all\r\n--b--\r\n"


@pytest.mark.parametrize("parse_as", [policy.compat32, policy.default, policy.SMTP], ids=["old", "default", "smtp"])
@pytest.mark.parametrize(
    "octets", [CUT_OFF, INNER_CUT_OFF, BASE64_MESSAGE, NO_FIELDS], ids=["cut off", "inner", "base64", "no fields"]
)
def test_malformed_mime_is_sent_as_it_was_read(inbox: Inbox, parse_as: Any, octets: bytes) -> None:
    inbox.send(message_from_bytes(octets, policy=parse_as))
    assert inbox.bodies == [octets]


def test_a_replaced_body_is_not_taken_for_header_fields() -> None:
    message = message_from_bytes(
        HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nno field\r\n--b--\r\n"
    )
    part: Any = message.get_payload(0)
    part.set_payload("Subject: not a field")
    outgoing = PreparedMessage(message)
    outgoing.mail_line({})
    assert b"\r\n--b\r\n\r\nSubject: not a field\r\n--b--" in b"".join(outgoing.data())


def test_smtputf8_without_8bitmime_is_not_used(scripted: Start) -> None:
    def script(peer: Script) -> None:
        peer.greet("SMTPUTF8")
        for _ in range(2):
            peer.expect("MAIL FROM:<a@example.com>")
            peer.say("250 ok")
            peer.expect("RCPT")
            peer.say("250 ok")
            peer.expect("DATA")
            peer.say("354 go on")
            assert peer.body() == b"From: a@example.com\r\nTo: =?utf-8?b?SsO2?= <b@example.com>\r\n\r\nhi\r\n"
            peer.say("250 ok")
        peer.rest()

    octets = "From: a@example.com\r\nTo: J\u00f6 <b@example.com>\r\n\r\nhi\r\n".encode()
    with scripted(script).connect() as mail:
        mail.send(octets)
        mail.send(message_from_bytes(octets))
