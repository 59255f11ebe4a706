"""PROXY headers of both versions: parsed at every cut, refused as early as possible, and formatted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol.proxy_header import MAX_V1, SIGNATURE, ProxyHeader, ProxyHeaderParser
from greensmtp.protocol.proxy_tlv import (
    ALPN,
    AUTHORITY,
    CRC32C,
    NETNS,
    NOOP,
    SSL,
    SSL_CIPHER,
    SSL_CN,
    SSL_KEY_ALG,
    SSL_SIG_ALG,
    SSL_VERSION,
    UNIQUE_ID,
    ProxyHeaderError,
    ProxySSL,
    crc32c,
    format_tlvs,
)

#: What the fixture ``every_cut`` gives.
EveryCut = Callable[[bytes], Iterator[list[bytes]]]

TCP4 = ProxyHeader(1, "TCP4", ("192.0.2.1", 56324), ("198.51.100.2", 25))
TLS = ProxySSL(
    True,
    certificate_in_connection=True,
    tlvs=(
        (SSL_VERSION, b"TLSv1.3"),
        (SSL_CN, "jörg".encode()),
        (SSL_CIPHER, b"TLS_AES_256_GCM_SHA384"),
        (SSL_SIG_ALG, b"SHA256"),
        (SSL_KEY_ALG, b"RSA2048"),
    ),
)
TLVS = (
    (ALPN, b"smtp"),
    (AUTHORITY, b"mx.example.com"),
    (UNIQUE_ID, b"\0\xff"),
    (SSL, TLS.format()),
    (NETNS, b"blue"),
    (0xEA, b"\x01vpce-08d2bf15fac5001c9"),
)


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


ADDRESSES = bytes((192, 0, 2, 1, 198, 51, 100, 2)) + (56324).to_bytes(2, "big") + (25).to_bytes(2, "big")
SIX = bytes(15) + b"\1" + bytes(15) + b"\2" + b"\0\1\0\2"
UNIX = b"/run/a.sock".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")


def parse(data: bytes, **options: Any) -> ProxyHeader:
    parser = ProxyHeaderParser(**options)
    header = parser.feed(data)
    assert header is not None
    return header


def feed_bytewise(data: bytes) -> None:
    parser = ProxyHeaderParser()
    for byte in data:
        assert parser.feed(bytes((byte,))) is None


HEADERS = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n", TCP4),
    (b"PROXY TCP6 2001:DB8::1 ::1 0 65535\r\n", ProxyHeader(1, "TCP6", ("2001:db8::1", 0), ("::1", 65535))),
    (b"PROXY UNKNOWN\r\n", ProxyHeader(1, "UNKNOWN")),
    (b"PROXY UNKNOWN ffff:f...f:ffff whatever 65535 65535\r\n", ProxyHeader(1, "UNKNOWN")),
    (v2(0x21, 0x11, ADDRESSES), ProxyHeader(2, "TCP4", ("192.0.2.1", 56324), ("198.51.100.2", 25))),
    (v2(0x21, 0x21, SIX), ProxyHeader(2, "TCP6", ("::1", 1), ("::2", 2))),
    (v2(0x21, 0x31, UNIX), ProxyHeader(2, "UNIX", "/run/a.sock", "\0abstract")),
    (v2(0x21, 0x00, b""), ProxyHeader(2, "UNKNOWN")),
    (v2(0x21, 0x00, format_tlvs(((ALPN, b"x"),))), ProxyHeader(2, "UNKNOWN", tlvs=((ALPN, b"x"),))),
    (v2(0x20, 0x00, b""), ProxyHeader(2, "UNKNOWN", is_local=True)),
    (v2(0x20, 0x11, ADDRESSES), ProxyHeader(2, "UNKNOWN", is_local=True)),
    (v2(0x20, 0xEE, b"\xff"), ProxyHeader(2, "UNKNOWN", is_local=True)),
    (
        v2(0x21, 0x11, ADDRESSES + format_tlvs((*TLVS, (NOOP, b"\0\0")))),
        ProxyHeader(2, "TCP4", ("192.0.2.1", 56324), ("198.51.100.2", 25), tlvs=TLVS),
    ),
]


@pytest.mark.parametrize(("data", "expected"), HEADERS)
@pytest.mark.parametrize("rest", [b"", b"EHLO client.example\r\n", b"\r\n\r\n\0"])
def test_a_header_is_the_same_at_every_cut(
    data: bytes, expected: ProxyHeader, rest: bytes, every_cut: EveryCut
) -> None:
    for pieces in every_cut(data + rest):
        parser = ProxyHeaderParser()
        header, left = None, b""
        for piece in pieces:
            if header is None:
                header = parser.feed(piece)
                left = parser.rest
            else:
                left += piece
        assert header == expected
        assert left == rest


@pytest.mark.parametrize(
    "data",
    [
        b"E",
        b"EHLO x\r\n",
        b"proxy TCP4",
        b"PROXY\r\n",
        b"\r\n\r\n\r",
        b"\x16\x03\x01",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25 \r\n",
        b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 65536\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 025\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 -1\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 192.0.2 198.51.100.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN" + b"x" * MAX_V1,
        b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 15) + b"\r\n",
        v2(0x11, 0x11, ADDRESSES),
        v2(0x22, 0x11, ADDRESSES),
        v2(0x21, 0x12, ADDRESSES),
        v2(0x21, 0x41, ADDRESSES),
        v2(0x21, 0x11, ADDRESSES[:-1]),
        v2(0x21, 0x21, ADDRESSES),
        v2(0x21, 0x31, UNIX[:-1]),
        v2(0x21, 0x11, ADDRESSES + b"\x01"),
        v2(0x21, 0x11, ADDRESSES + b"\x01\x00"),
        v2(0x21, 0x11, ADDRESSES + b"\x01\x00\x02x"),
        v2(0x21, 0x11, ADDRESSES + format_tlvs(((SSL, b"\1\0\0\0"),))),
        v2(0x21, 0x11, ADDRESSES + format_tlvs(((SSL, b"\1\0\0\0\0\x21\0\5x"),))),
        v2(0x21, 0x11, ADDRESSES + format_tlvs(((CRC32C, bytes(4)),))),
        v2(0x21, 0x11, ADDRESSES + format_tlvs(((CRC32C, b"x"),))),
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        ProxyHeaderParser().feed(data)
    with pytest.raises(ProxyHeaderError):
        feed_bytewise(data)


def test_the_longest_line_of_version_1_has_107_bytes() -> None:
    line = b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 16) + b"\r\n"
    assert len(line) == MAX_V1
    assert parse(line).family == "UNKNOWN"


def test_a_header_that_is_too_long_is_refused_before_it_has_come() -> None:
    with pytest.raises(ProxyHeaderError, match="4097 bytes; at most 4096"):
        ProxyHeaderParser().feed(SIGNATURE + b"\x21\x11" + (4097).to_bytes(2, "big"))
    with pytest.raises(ProxyHeaderError, match="at most 12"):
        ProxyHeaderParser(max_length=12).feed(SIGNATURE + b"\x21\x11\0\x0d")
    assert parse(v2(0x21, 0x11, ADDRESSES), max_length=12).family == "TCP4"


def test_the_tlvs_have_names() -> None:
    header = parse(v2(0x21, 0x11, ADDRESSES + format_tlvs(TLVS)))
    assert (header.alpn, header.authority, header.network_namespace) == ("smtp", "mx.example.com", "blue")
    assert header.unique_id == b"\0\xff"
    ssl = header.ssl
    assert ssl == TLS
    assert ssl is not None
    assert (ssl.version, ssl.common_name, ssl.cipher) == ("TLSv1.3", "jörg", "TLS_AES_256_GCM_SHA384")
    assert (ssl.signature_algorithm, ssl.key_algorithm) == ("SHA256", "RSA2048")
    assert ssl.verified


def test_what_a_proxy_does_not_say_is_none() -> None:
    assert (TCP4.alpn, TCP4.authority, TCP4.unique_id, TCP4.network_namespace, TCP4.ssl) == (None,) * 5
    assert ProxySSL(True).version is None


@pytest.mark.parametrize("ssl", [ProxySSL(True), ProxySSL(True, True, verify=1), ProxySSL(True, False, True, verify=5)])
def test_a_client_without_a_valid_certificate_is_not_verified(ssl: ProxySSL) -> None:
    assert not ssl.verified
    assert ProxySSL.parse(ssl.format()) == ssl


def test_crc32c() -> None:
    assert crc32c(b"123456789") == bytes.fromhex("e3069283")


def test_a_checksum_is_checked_wherever_it_stands() -> None:
    header = ProxyHeader(2, "TCP4", ("192.0.2.1", 1), ("192.0.2.2", 2), tlvs=((0xE0, b"\3\0\4\0\0\0\0"),))
    data = header.format(checksum=True)
    assert parse(data) == header
    for at in set(range(16, len(data))) - {len(data) - 7}:  # (that byte makes it a TLV of another type)
        with pytest.raises(ProxyHeaderError):
            parse(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
    # Before the other TLVs, as HAProxy has it.
    body = ADDRESSES + format_tlvs(((CRC32C, bytes(4)), (ALPN, b"smtp")))
    whole = v2(0x21, 0x11, body)
    assert parse(whole.replace(bytes(4), crc32c(whole), 1)).alpn == "smtp"


PORTS = st.integers(0, 65535)
FOUR = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
SIXES = st.tuples(st.ip_addresses(v=6).map(str), PORTS)
PATHS = st.text(st.characters(exclude_categories=["Cs"]), max_size=27).filter(lambda path: not path.endswith("\0"))
SOME_TLVS = st.lists(
    st.tuples(st.integers(0, 255).filter(lambda kind: kind not in (CRC32C, NOOP, SSL)), st.binary(max_size=40)),
    max_size=5,
).map(tuple)
ANY_HEADER = st.one_of(
    st.builds(ProxyHeader, st.just(1), st.just("TCP4"), FOUR, FOUR),
    st.builds(ProxyHeader, st.just(1), st.just("TCP6"), SIXES, SIXES),
    st.just(ProxyHeader(1, "UNKNOWN")),
    st.just(ProxyHeader(2, "UNKNOWN", is_local=True)),
    st.builds(ProxyHeader, st.just(2), st.just("TCP4"), FOUR, FOUR, tlvs=SOME_TLVS),
    st.builds(ProxyHeader, st.just(2), st.just("TCP6"), SIXES, SIXES, tlvs=SOME_TLVS),
    st.builds(ProxyHeader, st.just(2), st.just("UNIX"), PATHS, PATHS, tlvs=SOME_TLVS),
    st.builds(ProxyHeader, st.just(2), st.just("UNKNOWN"), tlvs=SOME_TLVS),
)


@given(ANY_HEADER, st.booleans())
def test_a_formatted_header_parses_to_the_same(header: ProxyHeader, checksum: bool) -> None:
    checksum = checksum and header.version == 2 and not header.is_local
    assert parse(header.format(checksum=checksum)) == header


@pytest.mark.parametrize(
    "header",
    [
        ProxyHeader(1, "UNIX", "/a", "/b"),
        ProxyHeader(1, "TCP4", ("192.0.2.1", 1), ("192.0.2.2", 2), tlvs=((ALPN, b""),)),
        ProxyHeader(1, "UNKNOWN", is_local=True),
        ProxyHeader(1, "TCP4"),
        ProxyHeader(1, "TCP4", ("192.0.2.1", 65536), ("192.0.2.2", 2)),
        ProxyHeader(1, "TCP4", ("x\r\nEHLO", 1), ("192.0.2.2", 2)),
        ProxyHeader(2, "TCP6", ("192.0.2.1", 1), ("192.0.2.2", 2)),
        ProxyHeader(2, "TCP4", ("192.0.2.1", -1), ("192.0.2.2", 2)),
        ProxyHeader(2, "UNIX", "/" * 109, "/b"),
        ProxyHeader(2, "UNIX", None, "/b"),
        ProxyHeader(2, "UNKNOWN", is_local=True, tlvs=((ALPN, b""),)),
        ProxyHeader(2, "UNKNOWN", tlvs=((ALPN, bytes(65536)),)),
    ],
)
def test_a_header_that_does_not_fit_is_not_formatted(header: ProxyHeader) -> None:
    with pytest.raises(ValueError, match=r"."):
        header.format()


@given(st.binary(max_size=60) | st.binary(max_size=200).map(lambda body: v2(0x21, 0x11, body)))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        header = ProxyHeaderParser().feed(data)
    except ProtocolError:
        return
    if header is not None:
        assert parse(header.format()) == header
