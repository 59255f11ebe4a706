"""The public makers of trace fields: each returns one well-formed field for any session."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp import Ack, MessageStream, Session
from greensmtp.delivery import received_field, return_path
from greensmtp.protocol.address import Address
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)


def session(**given: Any) -> Any:
    """Return a session with the values of the fields."""
    known = {
        "from_": Address.parse("ann@example.com"),
        "to": [Address.parse("bob@example.org")],
        "hostname": "client.example",
        "peer_host": "192.0.2.1",
        "protocol": "ESMTPS",
        "tls": True,
        "socket": SimpleNamespace(cipher=lambda: ("TLS_AES_128_GCM_SHA256", "TLSv1.3", 128)),
        "smtputf8": False,
        "server": SimpleNamespace(hostname="mx.example.com"),
    }
    return SimpleNamespace(**(known | given))


def is_one_field(octets: bytes, name: bytes) -> bool:
    lines = octets.split(b"\r\n")
    return (
        octets.endswith(b"\r\n")
        and lines[0].startswith(name + b": ")
        and all(line.startswith(b"\t") and line.strip() for line in lines[1:-1])
        and not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(lines))
        and max(map(len, lines)) <= 998
    )


def test_received_says_from_where_by_which_server_how_and_when() -> None:
    assert received_field(session(), "A1B2", NOW) == (
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example.com with ESMTPS id A1B2\r\n"
        b"\tfor <bob@example.org>\r\n"
        b"\ttls TLS_AES_128_GCM_SHA256;\r\n"
        b"\tThu, 29 Feb 2024 12:30:00 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("cipher", "clause"),
    [
        (("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256), b"\r\n\ttls TLS_AES_256_GCM_SHA384;"),
        (("ECDHE-RSA-AES128-GCM-SHA256", "TLSv1.2", 128), b"\r\n\ttls 0xC02F;"),
        (("OF-THE-FUTURE", "TLSv1.2", 128), b"\r\n\tfor <bob@example.org>;"),
        (None, b"\r\n\tfor <bob@example.org>;"),
    ],
)
def test_the_cipher_suite_has_the_name_or_the_number_of_the_registry(cipher: Any, clause: bytes) -> None:
    assert clause in received_field(session(socket=SimpleNamespace(cipher=lambda: cipher)), "A1B2", NOW)


def test_without_tls_there_is_no_cipher_suite() -> None:
    assert b"tls" not in received_field(session(tls=False, socket=SimpleNamespace()), "A1B2", NOW)
    assert b"tls" not in received_field(session(tls=True, socket=SimpleNamespace()), "A1B2", NOW)


def test_return_path_is_the_reverse_path() -> None:
    assert return_path(session()) == b"Return-Path: <ann@example.com>\r\n"
    assert return_path(session(from_=Address("", "", ""))) == b"Return-Path: <>\r\n"
    assert return_path(session(from_=None)) == b"Return-Path: <>\r\n"


def test_the_transactions_id_and_the_time_are_the_defaults() -> None:
    field = received_field(session(transaction_id="6447ef957f640-5c1f0a-1f"))
    assert b" id 6447ef957f640-5c1f0a-1f\r\n" in field
    assert re.search(rb";\r\n\t\w+, \d+ ", field)


@pytest.mark.parametrize("queue_id", ["", "a b", "a\r\nX: y", "a;b", "<a>", "\u00e9", "x" * 129])
def test_an_id_that_is_no_atom_is_refused(queue_id: str) -> None:
    with pytest.raises(ValueError, match="queue_id: expected an atom"):
        received_field(session(), queue_id)


@pytest.mark.parametrize("name", [None, "", "a b", "Copier 3000", "a\r\nX: y", "x" * 300, "\ud800", "("])
def test_a_name_that_cannot_stand_in_the_field_is_unknown(name: str | None) -> None:
    assert received_field(session(hostname=name), "A").startswith(b"Received: from unknown ([192.0.2.1])\r\n")


def test_a_name_beyond_ascii_stands_as_its_a_label_otherwise() -> None:
    field = received_field(session(hostname="b\u00fcro-pc"), "A")
    assert field.startswith(b"Received: from xn--bro-pc-3ya ([192.0.2.1])\r\n")


def test_a_name_beyond_ascii_stands_in_a_message_that_is_smtputf8() -> None:
    field = received_field(session(hostname="b\u00fccher.example", smtputf8=True), "A")
    assert field.startswith("Received: from b\u00fccher.example ([192.0.2.1])\r\n".encode())


@pytest.mark.parametrize("host", [None, "", "proxy.example", "a\r\nb", "::1 x", b"192.0.2.1", 25])
def test_what_is_no_address_is_left_out(host: Any) -> None:
    assert received_field(session(peer_host=host), "A").startswith(b"Received: from client.example\r\n")


@given(
    st.text(),
    st.text(),
    st.text(),
    st.one_of(st.none(), st.text(), st.ip_addresses().map(str)),
    st.booleans(),
)
def test_hostile_data_makes_one_field(name: str, sender: str, recipient: str, host: str | None, utf8: bool) -> None:
    hostile = session(hostname=name, from_=sender[:900], to=[recipient], peer_host=host, smtputf8=utf8)
    assert is_one_field(received_field(hostile, "A"), b"Received")
    assert is_one_field(return_path(hostile), b"Return-Path")


def test_a_handler_writes_them_before_the_body(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    stored: list[bytes] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stored.append(return_path(session) + received_field(session) + stream.read())

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"Subject: x\r\n").startswith("250")
    assert re.fullmatch(rb"Return-Path: <.*>\r\nReceived: from [^;]*;\r\n\t.*\r\nSubject: x\r\n", stored[0])
