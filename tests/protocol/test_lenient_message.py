"""Wild input as an EmailMessage: nothing raises, and the time is bounded."""

from __future__ import annotations

import io
from email.message import EmailMessage

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greensmtp.protocol.lenient_message import MAX_DEPTH, parse

NAMES = [
    *(b"Subject", b"From", b"To", b"Date", b"Message-ID", b"Content-Type", b"Content-Transfer-Encoding"),
    *(b"Content-Disposition", b"MIME-Version", b"Reply-To", b"Sender", b"Resent-To", b"X", b""),
]
VALUES = [
    *(b"=?utf-8?q?=", b"=?x-unknown?b?YWJj?=", b"=?utf-8?b?!!!!?=", b"<", b">", b"@", b'"', b"(", b")", b";", b","),
    *(b":", b"[", b"]", b"multipart/mixed; boundary=x", b"text/plain; charset=\0", b"text/plain; charset=nonsense"),
    *(b"message/rfc822", b"base64", b"quoted-printable", b"x-uuencode", b"filename*=utf-8''%FF", b"filename*0*=a"),
    *(b"\xff\xfe", b"\0", b" ", b"a", b"\r\n ", b"\n", b"=", b"charset*=x'y'z", b"<a@b>", b"group:;", b"\\"),
    *(b"01 Jan 2020 99:99:99 +9999", b"message/partial", b"multipart/", b"/", b"text/", b"attachment", b"utf-7"),
    *(b"charset=idna", b"charset=punycode", b"charset=unicode_escape", b"charset=hex", b"charset=undefined"),
]
fields = st.tuples(st.sampled_from(NAMES), st.lists(st.sampled_from(VALUES), max_size=6)).map(
    lambda field: field[0] + b": " + b"".join(field[1]) + b"\r\n"
)
LINES = [b"--x\r\n", b"--x--\r\n", b"\r\n", b"begin 666 x\r\n", b"text\xff\r\n", b"YWJj\r\n", b"=ZZ=\r\n", b"\0"]
bodies = st.lists(st.one_of(fields, st.sampled_from(LINES), st.binary(max_size=10)), max_size=20).map(b"".join)
messages = st.one_of(bodies, st.tuples(st.lists(fields, max_size=8).map(b"".join), bodies).map(b"\r\n".join))

LOOKS = [
    *("get_content_type", "get_content_charset", "get_filename", "get_params", "get_boundary"),
    *("get_content_disposition", "get_charsets", "is_attachment"),
]


def look_at(message: EmailMessage) -> None:
    """Read everything that a program may read of a message."""
    assert message["Nothing"] is None
    assert isinstance(message["Subject"], str | None)
    assert isinstance(str(message), str)
    assert isinstance(bytes(message), bytes)
    message.get_body()
    list(message.iter_attachments())
    for part in message.walk():
        assert isinstance(part, EmailMessage)
        for method in LOOKS:
            getattr(part, method)()
        part.get_content()
        part.get_payload()
        part.get_payload(decode=True)
        list(part.iter_parts())
        for name, value in part.items():
            part.get_all(name)
            assert isinstance(str(value), str)
            for attribute in ("addresses", "datetime", "params", "defects"):
                getattr(value, attribute, None)


@settings(suppress_health_check=list(HealthCheck))
@given(messages)
def test_any_bytes_can_be_read(octets: bytes) -> None:
    look_at(parse(io.BytesIO(octets)))
    look_at(parse(io.BytesIO(octets), headers_only=True))


@pytest.mark.parametrize(
    ("octets", "subject"),
    [
        (b"Subject: Tea\r\n\r\n", "Tea"),
        (b"Subject: =?utf-8?q?caf=C3=A9?=\r\n\r\n", "caf\u00e9"),
        (b"Subject: caf\xc3\xa9\r\n\r\n", "caf\u00e9"),
        (b"Subject: a\0b\r\n\r\n", "a\0b"),
        (b"From jo@example.com Mon Jan  1 00:00:00 2024\r\nSubject: Tea\r\n\r\n", "Tea"),
        (b"\xef\xbb\xbfSubject: Tea\r\n\r\n", "Tea"),
        (b"\xef\xbb\xbfFrom jo@example.com Mon Jan  1 00:00:00 2024\nSubject: Tea\n\n", "Tea"),
        (b"\xef\xbb", None),
        (b"no header", None),
        (b"", None),
    ],
)
def test_as_much_of_the_subject_as_possible_is_read(octets: bytes, subject: str | None) -> None:
    assert parse(io.BytesIO(octets))["Subject"] == subject


@pytest.mark.parametrize("charset", [b"nonsense", b"\0", b"idna", b"undefined", b"hex", b"utf-16", b"x" * 1000])
def test_text_of_any_charset_is_text(charset: bytes) -> None:
    content = parse(io.BytesIO(b"Content-Type: text/plain; charset=" + charset + b"\r\n\r\nhello\r\n")).get_content()
    assert isinstance(content, str)


def test_nested_parts_are_bounded() -> None:
    octets = b"".join(
        b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (number, number) for number in range(2_000)
    )
    message = parse(io.BytesIO(octets))
    look_at(message)
    assert not message.is_multipart()
    shallow = octets.split(b"Content-Type: multipart/mixed; boundary=%d\r\n" % (MAX_DEPTH - 5))[0]
    assert parse(io.BytesIO(shallow)).is_multipart()


@pytest.mark.parametrize(("name", "length"), [("To", 2_100), ("Content-Type", 2_100), ("Subject", 500_000)])
def test_a_field_that_would_take_too_long_is_text(name: str, length: int) -> None:
    value = '"' * length
    field = parse(io.BytesIO(f"{name}: {value}\r\n\r\n".encode()))[name]
    assert type(field) is str
    assert field == value
