"""Commands of the client: one line each, and nothing in it that could end it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol import command_builder
from greensmtp.protocol.address import Address


@pytest.mark.parametrize(
    ("address", "ext", "expected"),
    [
        ("jo@example.com", None, b"MAIL FROM:<jo@example.com>\r\n"),
        ("<jo@example.com>", None, b"MAIL FROM:<jo@example.com>\r\n"),
        ("", None, b"MAIL FROM:<>\r\n"),
        ('"a b"@example.com', None, b'MAIL FROM:<"a b"@example.com>\r\n'),
        ("jo@[192.0.2.1]", None, b"MAIL FROM:<jo@[192.0.2.1]>\r\n"),
        ("j\u00f6@example.com", "SMTPUTF8", "MAIL FROM:<j\u00f6@example.com> SMTPUTF8\r\n".encode()),
        ("jo@B\u00fccher.example", None, b"MAIL FROM:<jo@xn--bcher-kva.example>\r\n"),
        ('"j o"@b\u00fccher.example', None, b'MAIL FROM:<"j o"@xn--bcher-kva.example>\r\n'),
        ("jo@\U0001f4a9.la", "SMTPUTF8", "MAIL FROM:<jo@\U0001f4a9.la> SMTPUTF8\r\n".encode()),
        ("j\u00f6@b\u00fccher.example", "SMTPUTF8", "MAIL FROM:<j\u00f6@b\u00fccher.example> SMTPUTF8\r\n".encode()),
        ("jo@example.com", {"SIZE": 10, "SMTPUTF8": None}, b"MAIL FROM:<jo@example.com> SIZE=10 SMTPUTF8\r\n"),
        ("jo@example.com", "RET=HDRS ENVID=x", b"MAIL FROM:<jo@example.com> RET=HDRS ENVID=x\r\n"),
        ("jo@example.com", {}, b"MAIL FROM:<jo@example.com>\r\n"),
    ],
)
def test_mail_is_one_line(address: str, ext: Any, expected: bytes) -> None:
    assert command_builder.mail(address, ext) == expected


BAD = ["a@b.c\r\nRCPT TO:<x@y.z>", "a@b.c\n", "a@b.c\r", "a@b.c\0", "a@b.c> SIZE=1", "a b@c.d", "a", "<a@b.c", "@b.c"]


@pytest.mark.parametrize("address", BAD)
def test_a_malformed_mailbox_is_refused(address: str) -> None:
    with pytest.raises(ProtocolError):
        command_builder.mail(address)
    with pytest.raises(ProtocolError):
        command_builder.rcpt(address)


@pytest.mark.parametrize(
    "ext", ["SIZE=1\r\nDATA", "SIZE=1\0", "SIZE==1", {"SIZE": "1\n"}, {"X Y": "1"}, {"A\r\nB": None}]
)
def test_malformed_parameters_are_refused(ext: Any) -> None:
    with pytest.raises(ProtocolError):
        command_builder.mail("a@b.c", ext)


def test_an_empty_recipient_is_refused() -> None:
    with pytest.raises(ProtocolError):
        command_builder.rcpt("")


@given(st.text(max_size=30))
def test_any_text_makes_one_line_or_an_error(text: str) -> None:
    for make in (command_builder.mail, command_builder.rcpt, lambda text: command_builder.line("NOOP", text)):
        try:
            line = make(text)
        except ProtocolError:
            continue
        assert line.endswith(b"\r\n")
        assert not set(line[:-2]) & {0, 10, 13}


@pytest.mark.parametrize(
    "domain", [f"{'x' * 64}.com", f"a.{'x' * 64}", "x" * 64, ".".join(["x" * 63] * 5), f"mail.{'x' * 70}.example"]
)
def test_a_label_of_more_than_63_bytes_is_refused(domain: str) -> None:
    for make in (command_builder.mail, command_builder.rcpt):
        with pytest.raises(ProtocolError, match="too long"):
            make(f"jo@{domain}")


def test_a_long_domain_of_short_labels_is_accepted() -> None:
    domain = ".".join(["x" * 63] * 3)
    assert command_builder.rcpt(f"jo@{domain}") == f"RCPT TO:<jo@{domain}>\r\n".encode()


def test_a_parameter_whose_value_is_the_number_1_keeps_it() -> None:
    assert command_builder.mail("jo@example.com", {"SIZE": 1}) == b"MAIL FROM:<jo@example.com> SIZE=1\r\n"


@pytest.mark.parametrize(
    ("ext", "expected"),
    [
        ({"ENVID": "a+20b"}, " ENVID=a+20b"),
        ({"ENVID": "a b=c"}, " ENVID=a+20b+3Dc"),
        ({"envid": "a+b"}, " envid=a+2Bb"),
        ({"AUTH": "<>"}, " AUTH=<>"),
        ({"AUTH": "jo+2BAB@example.com"}, " AUTH=jo+2BAB@example.com"),
        ({"AUTH": Address.parse("jo+AB@example.com")}, " AUTH=jo+2BAB@example.com"),
        ({"AUTH": Address.parse('"a b"@example.com')}, ' AUTH="a+20b"@example.com'),
        ({"ORCPT": "rfc822;jo+2Bx@example.com"}, " ORCPT=rfc822;jo+2Bx@example.com"),
        ({"ORCPT": "rfc822;jo+x@example.com"}, " ORCPT=rfc822;jo+2Bx@example.com"),
        ("AUTH=jo+2BAB@example.com", " AUTH=jo+2BAB@example.com"),
    ],
)
def test_xtext_is_encoded_once(ext: Any, expected: str) -> None:
    assert command_builder.parameters(ext) == expected


@pytest.mark.parametrize("text", ["a\r\nb", "a\0", "a\x7f"])
def test_xtext_hides_no_control_characters(text: str) -> None:
    with pytest.raises(ProtocolError):
        command_builder.parameters({"ENVID": text})
