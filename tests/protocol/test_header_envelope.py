"""Header sections: their end, the envelope in them, Bcc, and raw UTF-8."""

from __future__ import annotations

import re
import time
from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol import header_envelope

END = re.compile(rb"(?:\A|\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")


@given(st.lists(st.sampled_from([b"\r", b"\n", b"a", b"\r\n"]), max_size=10).map(b"".join))
def test_the_head_ends_with_the_first_empty_line(octets: bytes) -> None:
    end = END.search(octets)
    assert header_envelope.split(octets) == (len(octets) if end is None else end.end())


def test_a_long_text_without_an_empty_line_is_searched_quickly() -> None:
    began = time.thread_time()
    assert header_envelope.split(b"x\n" * 5_000_000) == 10_000_000
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("newline", [b"\r\n", b"\n", b"\r"])
def test_fields_are_parsed(newline: bytes) -> None:
    head = newline.join([b"From: a@b.c", b"TO : x", b"\ty", b"X-A:", b"", b""])
    assert [(name, text.split()) for name, text in header_envelope.parse(head)] == [
        ("from", ["a@b.c"]),
        ("to", ["x", "y"]),
        ("x-a", []),
    ]


def test_a_line_that_is_not_a_field_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="not a header field: b'garbage'"):
        header_envelope.parse(b"To: a@b.c\ngarbage\nCc: d@e.f\n\n")


@pytest.mark.parametrize(
    ("head", "sender", "recipients"),
    [
        (b"From: a@b.c, d@e.f\nSender: s@e.f\nTo: t@e.f\n", "s@e.f", ["t@e.f"]),
        (b"From: shown@b.c <real@e.f>\nTo: x@y.z; t@e.f\nto: x@y.z\n", "real@e.f", ["x@y.z", "t@e.f"]),
        (b"From: a@b.c\nTo: undisclosed-recipients:;\nBcc: t@e.f\n", "a@b.c", ["t@e.f"]),
        (b"From: a@b.c\nTo: t@e.f\nResent-From: r@e.f\nResent-To: q@e.f\n", "r@e.f", ["q@e.f"]),
    ],
)
def test_an_envelope_is_taken_from_the_fields(head: bytes, sender: str, recipients: list[str]) -> None:
    fields = header_envelope.parse(head)
    assert header_envelope.sender(fields) == sender
    assert header_envelope.recipients(fields) == recipients


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"To: t@e.f\n", "no From or Sender header; pass sender="),
        (b"From: undisclosed:;\nTo: t@e.f\n", "pass sender="),
        (b"From: x\nTo: t@e.f\n", "the From field cannot be read"),
        (b"From: a@b.c\n", "pass recipients="),
        (b"From: a@b.c\nTo: undisclosed-recipients:;\n", "pass recipients="),
        (b'From: a@b.c\nTo: t@e.f\nCc: x@y.z, "\n', "the Cc field"),
        (b"From: a@b.c\nResent-From: a@b.c\nTo: t@e.f\n", "Resent-To"),
        (b"From: a@b.c\nTo: t@e.f\nResent-To: a@b.c\nResent-To: d@e.f\n", "resent more than once"),
    ],
)
def test_a_missing_envelope_is_an_error(head: bytes, text: str) -> None:
    fields = header_envelope.parse(head)
    with pytest.raises(ProtocolError, match=text):
        (header_envelope.sender(fields), header_envelope.recipients(fields))


@pytest.mark.parametrize("newline", [b"\r\n", b"\n", b"\r"])
@pytest.mark.parametrize("name", [b"Bcc", b"bCC ", b"RESENT-BCC", b"resent-bcc\t"])
def test_bcc_is_removed_with_its_continuation_lines(newline: bytes, name: bytes) -> None:
    lines = [b"A: b", name + b": x@y.z,", b" a@b.c,", b"\t", b" d@e.f", b"X-Bcc: stays", b"", b""]
    assert header_envelope.without_bcc(newline.join(lines)) == newline.join(lines[:1] + lines[5:])


@pytest.mark.parametrize("newline", [b"\r\n", b"\n", b"\r"])
def test_an_mbox_line_is_removed(newline: bytes) -> None:
    message = newline.join([b"From jo@example.com Mon Jan  1 00:00:00 2024", b"From: a@b.c", b"", b"From here on"])
    assert header_envelope.without_mbox_line(message) == message.partition(newline)[2]
    assert header_envelope.without_mbox_line(message.partition(newline)[2]) == message.partition(newline)[2]


@pytest.mark.parametrize("mbox_line", [b"", b"From jo@example.com\n"])
def test_a_byte_order_mark_is_removed_once(mbox_line: bytes) -> None:
    message = b"Subject: \xef\xbb\xbf\n\n\xef\xbb\xbf"
    assert header_envelope.without_mbox_line(b"\xef\xbb\xbf" + mbox_line + message) == message
    assert header_envelope.without_mbox_line(message) is message


def test_raw_utf8_is_encoded_field_by_field() -> None:
    long = "W\u00f6rter und " * 30
    head = (
        'Received: from x\r\n\tby y\r\nFrom: "D, \u00f6" <jo@b\u00fccher.example>\r\nX-Odd:   kept \r\n'
        f"Subject: one  {long}ends\r\nX-Thing: \u00f6\r\n\r\n"
    ).encode()
    ascii_head = header_envelope.in_ascii(head)
    assert ascii_head is not None
    assert ascii_head.isascii()
    assert ascii_head.startswith(b"Received: from x\r\n\tby y\r\n")
    assert b"\r\nX-Odd:   kept \r\n" in ascii_head
    assert all(len(line) <= 78 for line in ascii_head.split(b"\r\n"))
    message = message_from_bytes(ascii_head, policy=policy.default)
    assert message["Subject"] == f"one  {long}ends"
    assert message["X-Thing"] == "\u00f6"
    address = message["From"].addresses[0]
    assert (address.display_name, address.addr_spec) == ("D, \u00f6", "jo@xn--bcher-kva.example")


@pytest.mark.parametrize(
    "field",
    [
        "To: j\u00f6@example.com",
        "Message-ID: <\u00f6@example.com>",
        'Content-Disposition: attachment; filename="\u00f6"',
        "Subject: =?utf-8?q?x?= \u00f6",
        "DKIM-Signature: v=1\r\nSubject: \u00f6",
        "ARC-Seal: i=1\r\nSubject: \u00f6",
        "Content-Type: multipart/signed; boundary=x\r\nSubject: \u00f6",
        "Subject: x\r\nno field \u00f6",
    ],
)
def test_a_field_that_cannot_be_encoded_safely_is_left(field: str) -> None:
    assert header_envelope.in_ascii(f"{field}\r\n\r\n".encode()) is None


def test_latin_1_is_not_utf8() -> None:
    assert header_envelope.in_ascii(b"Subject: \xf6\r\n\r\n") is None
