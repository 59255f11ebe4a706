"""Host names: parsed with a port or without, and made fit for the resolver and for TLS."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol import hosts


@pytest.mark.parametrize(
    ("place", "host", "port"),
    [
        ("mx.example.com", "mx.example.com", None),
        ("mx.example.com:2525", "mx.example.com", 2525),
        ("mx.example.com.", "mx.example.com.", None),
        ("mx_1.example.com:25", "mx_1.example.com", 25),
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1:25", "127.0.0.1", 25),
        ("::1", "::1", None),
        ("[::1]", "::1", None),
        ("[::1]:2525", "::1", 2525),
        ("fe80::1%eth0", "fe80::1%eth0", None),
        ("[fe80::1%eth0]:25", "fe80::1%eth0", 25),
        ("[mx.example.com]:587", "mx.example.com", 587),
        ("bücher.example", "xn--bcher-kva.example", None),
        ("BÜCHER.example:25", "xn--bcher-kva.example", 25),
        ("faß.example", "xn--fa-hia.example", None),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
    ],
)
def test_a_host_and_its_port_are_parsed(place: str, host: str, port: int | None) -> None:
    assert hosts.read(place) == (host, port)
    assert hosts.fit(host) == host


@pytest.mark.parametrize(
    "place",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a b",
        "a:b",
        "a:",
        "a:0",
        "a:65536",
        "a:99999999999999999999",
        "a:२५",
        "::g",
        "[::1",
        "::1]",
        "[::1]25",
        "[]",
        "[::1%\x7f]",
        "smtp://mx.example.com:25",
        "mx.example.com/",
        "*.example.com",
        "x" * 64 + ".example",
        ".".join(["x" * 60] * 5),
        "\ud800.example",
        "☃.example",
        "jo@example.com",
    ],
)
def test_a_malformed_host_is_refused(place: str) -> None:
    with pytest.raises((ValueError, ProtocolError)):
        hosts.read(place)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("mx.example.com.", "mx.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_name_for_tls(host: str, name: str) -> None:
    assert hosts.fit_for_tls(host) == name


@given(st.text(max_size=80))
def test_any_text_is_a_host_that_can_be_encoded_or_an_error(text: str) -> None:
    try:
        host, port = hosts.read(text)
    except (ValueError, ProtocolError):
        return
    host.encode("idna")  # as the resolver does
    assert host.isascii()
    assert port is None or 1 <= port <= 65535
