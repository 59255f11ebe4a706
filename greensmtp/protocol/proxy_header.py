"""The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt): the header before a connection's first byte.

The rules of this file:

- A header is parsed strictly, whatever the pieces in which it comes. What cannot be the beginning of one is refused at
  once, and anything else that is wrong when the header is whole. The connection must be closed then.
- The sizes are bounded: 107 bytes in version 1, ``max_length`` behind the fixed 16 bytes of version 2.
- Bytes behind the header are the client's; they are left in ``rest``.
- ``LOCAL`` is the proxy itself (a health check), and ``UNKNOWN`` hides the client: such a header has no addresses.
- A CRC32C is checked where there is one. It and padding are not among the ``tlvs``, which are kept in their order.
- ``ProxyHeader.format`` makes what parses to the same header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from greensmtp.protocol.proxy_tlv import (
    ALPN,
    AUTHORITY,
    CRC32C,
    NETNS,
    NOOP,
    SSL,
    UNIQUE_ID,
    ProxyHeaderError,
    ProxySSL,
    TLVs,
    crc32c,
    decode,
    find,
    find_text,
    format_tlvs,
    parse_tlvs,
    two_bytes,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
#: Bytes in the longest header of version 1 (section 2.1).
MAX_V1 = 107
#: Bytes behind the fixed 16 of version 2. The addresses need 216 at most, the other TLVs a few hundred.
MAX_V2 = 4096

Family = Literal["TCP4", "TCP6", "UNIX", "UNKNOWN"]
#: ``("192.0.2.1", 25)``, or the path of a unix socket.
Endpoint = tuple[str, int] | str

_V1_PREFIX = b"PROXY "
_V1 = re.compile(rb"PROXY (?:(UNKNOWN)(?: [^\r\n]*)?|(TCP[46]) ([^ ]+) ([^ ]+) ([0-9]{1,5}) ([0-9]{1,5}))")
#: Version 2 with its commands.
_LOCAL, _PROXY = 0x20, 0x21
#: Address family and transport of version 2 -> the family; only streams can carry SMTP.
_FAMILIES: dict[int, Family] = {0x00: "UNKNOWN", 0x11: "TCP4", 0x21: "TCP6", 0x31: "UNIX"}
#: Bytes of one address, by the family.
_SIZES = {"UNKNOWN": 0, "TCP4": 4, "TCP6": 16, "UNIX": 108}


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy says about the connection that it passes on."""

    version: Literal[1, 2]
    family: Family
    #: The client, and what it has connected to; None where the family is UNKNOWN.
    source: Endpoint | None = None
    destination: Endpoint | None = None
    #: The proxy speaks for itself: a health check. (Version 1 has no such header.)
    is_local: bool = False
    tlvs: TLVs = ()

    @property
    def alpn(self) -> str | None:
        """The protocol that was negotiated by ALPN."""
        return find_text(self.tlvs, ALPN)

    @property
    def authority(self) -> str | None:
        """The host name that the client has asked for: SNI."""
        return find_text(self.tlvs, AUTHORITY)

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's name for the connection."""
        return find(self.tlvs, UNIQUE_ID)

    @property
    def network_namespace(self) -> str | None:
        """The network namespace of the proxy."""
        return find_text(self.tlvs, NETNS)

    @property
    def ssl(self) -> ProxySSL | None:
        """The TLS connection between client and proxy; None if the proxy says nothing about it."""
        value = find(self.tlvs, SSL)
        return None if value is None else ProxySSL.parse(value)

    def format(self, *, checksum: bool = False) -> bytes:
        """Return the header as bytes.

        :param checksum: add a CRC32C. Version 2 only.
        :raises ValueError: a part does not fit the version or the family.
        """
        return _format_v1(self) if self.version == 1 else _format_v2(self, checksum=checksum)


class ProxyHeaderParser:
    """Parses the header at the beginning of a connection.

    ::

        parser = ProxyHeaderParser()
        while (header := parser.feed(transport.read())) is None:
            pass
        # parser.rest: the client's first bytes

    :param max_length: bytes behind the fixed 16 of a header of version 2.
    """

    __slots__ = ("_buffer", "_max_length", "rest")

    def __init__(self, max_length: int = MAX_V2) -> None:
        self._max_length = max_length
        self._buffer = b""
        #: What came behind the header.
        self.rest = b""

    def feed(self, data: bytes) -> ProxyHeader | None:
        """Take the next bytes; return the header once it has come as a whole, else None.

        :raises ProxyHeaderError: this is not a PROXY header, or it is malformed or too long.
        """
        data = self._buffer = self._buffer + data
        end = self._end(data)
        if end is None:
            return None
        self._buffer, self.rest = b"", data[end:]
        return _parse_v1(data[: end - 2]) if data.startswith(_V1_PREFIX) else _parse_v2(data[:end])

    def _end(self, data: bytes) -> int | None:
        """Return the length of the header, or None if it has not come."""
        if data.startswith(_V1_PREFIX):
            end = data.find(b"\r\n", 0, MAX_V1)
            if end >= 0:
                return end + 2
            if len(data) >= MAX_V1:
                raise ProxyHeaderError(f"PROXY header of version 1 without CRLF in its first {MAX_V1} bytes")
            return None
        if data.startswith(SIGNATURE):
            if len(data) < 16:
                return None
            size = int.from_bytes(data[14:16], "big")
            if size > self._max_length:
                raise ProxyHeaderError(f"PROXY header of {size} bytes; at most {self._max_length} are allowed")
            return None if len(data) < 16 + size else 16 + size
        if _V1_PREFIX.startswith(data) or SIGNATURE.startswith(data):
            return None
        raise ProxyHeaderError(f"expected a PROXY header, got {data[:16]!r}")


# Version 1


def _parse_v1(line: bytes) -> ProxyHeader:
    match = _V1.fullmatch(line)
    if match is None:
        raise ProxyHeaderError(f"malformed PROXY header of version 1: {line!r}")
    if match[1]:
        return ProxyHeader(1, "UNKNOWN")
    family: Family = "TCP4" if match[2] == b"TCP4" else "TCP6"
    source, destination, *ports = (part.decode("latin-1") for part in match.groups()[2:])
    try:
        return ProxyHeader(
            1, family, (_ip(family, source), _port(ports[0])), (_ip(family, destination), _port(ports[1]))
        )
    except ValueError as error:
        raise ProxyHeaderError(f"malformed PROXY header of version 1: {error}") from None


def _ip(family: str, text: str) -> str:
    if family == "TCP4":
        return str(IPv4Address(text))
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which means nothing to another host")
    return str(IPv6Address(text))


def _port(text: str) -> int:
    if int(text) > 65535 or (text[0] == "0" and text != "0"):
        raise ValueError(f"a port is 0 to 65535, not {text!r}")
    return int(text)


def _format_v1(header: ProxyHeader) -> bytes:
    if header.tlvs or header.is_local or header.family == "UNIX":
        raise ValueError("version 1 has no TLVs, no LOCAL and no unix sockets: use version 2")
    if header.family == "UNKNOWN":
        return b"PROXY UNKNOWN\r\n"
    (source, source_port), (destination, destination_port) = _inet(header.source), _inet(header.destination)
    addresses = f"{_ip(header.family, source)} {_ip(header.family, destination)}"
    return f"PROXY {header.family} {addresses} {_port(str(source_port))} {_port(str(destination_port))}\r\n".encode()


def _inet(endpoint: Endpoint | None) -> tuple[str, int]:
    if not isinstance(endpoint, tuple):
        raise ValueError(f"expected an address and a port, got {endpoint!r}")
    return endpoint


# Version 2


def _parse_v2(data: bytes) -> ProxyHeader:
    command, family_code, body = data[12], data[13], data[16:]
    if command == _LOCAL:  # all that follows is to be ignored
        return ProxyHeader(2, "UNKNOWN", is_local=True)
    family = _FAMILIES.get(family_code)
    if command != _PROXY or family is None:
        raise ProxyHeaderError(f"unsupported command or address family in a PROXY header: {data[12:14]!r}")
    size = 2 * _SIZES[family] + (4 if family in ("TCP4", "TCP6") else 0)
    if len(body) < size:
        raise ProxyHeaderError(f"PROXY header with {len(body)} bytes of addresses; {family} needs {size}")
    tlvs = parse_tlvs(body[size:])
    _check_crc(data, 16 + size, tlvs)
    ssl = find(tlvs, SSL)
    if ssl is not None:
        ProxySSL.parse(ssl)  # it is parsed again when it is read
    tlvs = tuple(tlv for tlv in tlvs if tlv[0] not in (CRC32C, NOOP))
    source, destination = _parse_addresses(family, body[:size])
    return ProxyHeader(2, family, source, destination, tlvs=tlvs)


def _check_crc(data: bytes, at: int, tlvs: TLVs) -> None:
    """Check the CRC32C of a header, which was computed as if it were zero; ``at`` is where the TLVs begin."""
    for kind, value in tlvs:
        if kind == CRC32C:
            if value != crc32c(data[: at + 3] + bytes(4) + data[at + 7 :]):
                raise ProxyHeaderError("PROXY header with a wrong CRC32C")
            return
        at += 3 + len(value)


def _parse_addresses(family: Family, data: bytes) -> tuple[Endpoint | None, Endpoint | None]:
    if family == "UNKNOWN":
        return None, None
    size = _SIZES[family]
    source, destination = data[:size], data[size : 2 * size]
    if family == "UNIX":
        # (The path of an abstract socket begins with NUL.)
        return decode(source.rstrip(b"\0")), decode(destination.rstrip(b"\0"))
    kind = IPv4Address if family == "TCP4" else IPv6Address
    source_port, destination_port = data[2 * size : 2 * size + 2], data[2 * size + 2 :]
    return (
        (str(kind(source)), int.from_bytes(source_port, "big")),
        (str(kind(destination)), int.from_bytes(destination_port, "big")),
    )


def _format_v2(header: ProxyHeader, *, checksum: bool) -> bytes:
    if header.is_local and (header.tlvs or checksum):
        raise ValueError("a LOCAL header has no TLVs: the receiver ignores them")
    body = _format_addresses(header) + format_tlvs(header.tlvs)
    if checksum:
        body += format_tlvs(((CRC32C, bytes(4)),))
    code = next(code for code, family in _FAMILIES.items() if family == header.family)
    data = SIGNATURE + bytes((_LOCAL if header.is_local else _PROXY, code)) + two_bytes(len(body)) + body
    return data[:-4] + crc32c(data) if checksum else data


def _format_addresses(header: ProxyHeader) -> bytes:
    if header.family == "UNKNOWN":
        return b""
    if header.family == "UNIX":
        return _format_path(header.source) + _format_path(header.destination)
    (source, source_port), (destination, destination_port) = _inet(header.source), _inet(header.destination)
    kind = IPv4Address if header.family == "TCP4" else IPv6Address
    return kind(source).packed + kind(destination).packed + two_bytes(source_port) + two_bytes(destination_port)


def _format_path(path: Endpoint | None) -> bytes:
    data = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else None
    if data is None or len(data) > _SIZES["UNIX"] or data.endswith(b"\0"):
        raise ValueError(f"expected the path of a unix socket, of at most 108 bytes; got {path!r}")
    return data.ljust(_SIZES["UNIX"], b"\0")
