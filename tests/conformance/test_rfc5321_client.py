"""RFC 5321 as the client keeps it. See docs/conformance/rfc5321.md."""

from __future__ import annotations

import pytest
from gevent import socket

from greensmtp.client import dial
from greensmtp.protocol import command_builder
from greensmtp.protocol.errors import ProtocolError, ReplySyntaxError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import ReplyParser


def parsed(data: bytes) -> Reply:
    """Return the reply that these bytes are."""
    parser = ReplyParser()
    parser.feed(data)
    reply = parser.next_reply()
    assert reply is not None
    return reply


@pytest.mark.parametrize(
    ("host", "name"),
    [("spike.example", "spike.example"), ("spike", "[127.0.0.1]"), ("spike under.example", "[127.0.0.1]")],
)
def test_the_name_in_ehlo_has_a_domain_or_is_an_address_literal(
    monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert dial.own_name(listener) == name


@pytest.mark.parametrize("name", ["[192.0.2.1] laptop", "spike example", "spike\r\nQUIT", ""])
def test_a_name_that_is_not_one_word_is_an_error(name: str) -> None:
    with pytest.raises(ProtocolError):
        dial.hello_name(name, "EHLO")


@pytest.mark.parametrize("data", [b"250\r\n", b"250 \r\n", b"250-\r\n250\r\n"])
def test_a_reply_without_a_text_is_a_reply(data: bytes) -> None:
    reply = parsed(data)
    assert reply.code == 250
    assert reply.text.strip() == ""


@pytest.mark.parametrize("code", [211, 299, 399, 422, 499, 571, 599])
def test_an_unknown_code_counts_by_its_first_digit(code: int) -> None:
    reply = parsed(b"%d whatever\r\n" % code)
    assert (reply.is_positive, reply.is_intermediate, reply.is_transient_failure, reply.is_permanent_failure) == (
        200 <= code < 300,
        300 <= code < 400,
        400 <= code < 500,
        500 <= code < 600,
    )


@pytest.mark.parametrize("data", [b"150 wait\r\n", b"600 what\r\n", b"099 no\r\n", b"25 short\r\n", b"2500 long\r\n"])
def test_another_code_is_an_error(data: bytes) -> None:
    with pytest.raises(ReplySyntaxError):
        parsed(data)


def test_a_reply_line_of_512_bytes_is_read() -> None:
    assert len(parsed(b"250 " + b"x" * 506 + b"\r\n").text) == 506


def test_a_source_route_is_not_sent() -> None:
    assert command_builder.rcpt("@one.example,@two.example:ann@example.com") == b"RCPT TO:<ann@example.com>\r\n"


@pytest.mark.parametrize(
    ("address", "sent"),
    [("ann@example.com", "ann"), ('"ann"@example.com', "ann"), ('"a b"@example.com', '"a b"')],
)
def test_a_local_part_is_quoted_where_it_must_be(address: str, sent: str) -> None:
    assert command_builder.rcpt(address) == f"RCPT TO:<{sent}@example.com>\r\n".encode()


@pytest.mark.parametrize("address", ["ann@example.com\r\nRSET", "ann\n@example.com", "ann@exa\rmple.com"])
def test_no_address_ends_a_line(address: str) -> None:
    with pytest.raises(ProtocolError):
        command_builder.rcpt(address)
