"""The bytes that ``send`` makes of messages that were parsed or composed."""

from __future__ import annotations

import io
import re
import socket as stdlib_socket
import time
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep, spawn

from greensmtp import NotOffered, ProtocolError
from greensmtp.client.message import PreparedMessage
from greensmtp.client.message_content import MAX_MEMORY
from greensmtp.protocol.dot_stuffing import with_crlf
from tests.client.inbox import ENVELOPE, Inbox, composed
from tests.client.scripts import take

if TYPE_CHECKING:
    from tests.client.conftest import Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


# What was parsed


DKIM = (
    b"DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=x; h=from:to:subject; bh=abc=;\r\n\tb="
    + b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 10
    + b"==\r\n"
)
LONG = b"Subject: " + b"a long subject " * 20 + b"ends\r\nReferences: <" + b"x" * 200 + b"@example.com>\r\n\t<y@z>\r\n"
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
