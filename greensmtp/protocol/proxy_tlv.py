"""TLVs of the PROXY protocol, version 2 (HAProxy's proxy-protocol.txt, section 2.2): parsed, formatted, checksummed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from greensmtp.protocol.errors import ProtocolError

#: Types of TLVs (section 2.2).
ALPN = 0x01
AUTHORITY = 0x02
CRC32C = 0x03
NOOP = 0x04
UNIQUE_ID = 0x05
SSL = 0x20
NETNS = 0x30
#: Types of TLVs within SSL.
SSL_VERSION = 0x21
SSL_CN = 0x22
SSL_CIPHER = 0x23
SSL_SIG_ALG = 0x24
SSL_KEY_ALG = 0x25

#: PP2_CLIENT_SSL, PP2_CLIENT_CERT_CONN and PP2_CLIENT_CERT_SESS, in the order of ProxySSL's fields.
_CLIENT_FLAGS = (0x01, 0x02, 0x04)

#: Each TLV: its type, and its value.
TLVs = tuple[tuple[int, bytes], ...]


class ProxyHeaderError(ProtocolError):
    """The connection does not begin with a PROXY header, or with a malformed one: it must be closed."""


def parse_tlvs(data: bytes) -> TLVs:
    """Parse TLVs: a type of one byte, a length of two, and the value.

    :raises ProxyHeaderError: the last one is cut off.
    """
    tlvs: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        end = at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")
        if at + 3 > len(data) or end > len(data):
            raise ProxyHeaderError("PROXY header with a TLV that is longer than the header")
        tlvs.append((data[at], data[at + 3 : end]))
        at = end
    return tuple(tlvs)


def format_tlvs(tlvs: TLVs) -> bytes:
    """Return TLVs as bytes."""
    return b"".join(bytes((kind,)) + two_bytes(len(value)) + value for kind, value in tlvs)


def find(tlvs: TLVs, kind: int) -> bytes | None:
    """Return the value of the first TLV of a type; None if there is none."""
    return next((value for each, value in tlvs if each == kind), None)


def find_text(tlvs: TLVs, kind: int) -> str | None:
    """Return the same as text, which may have any characters, line ends too."""
    value = find(tlvs, kind)
    return None if value is None else decode(value)


def decode(value: bytes) -> str:
    """Decode text, which should be UTF-8 and need not be."""
    return value.decode("utf-8", "surrogateescape")


def two_bytes(number: int) -> bytes:
    """Return a number in network byte order.

    :raises ValueError: it does not fit two bytes.
    """
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"expected 0 to 65535, got {number}")
    return number.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class ProxySSL:
    """The TLS connection between client and proxy (section 2.2.6)."""

    #: The client has connected by TLS.
    is_tls: bool
    #: The client has sent a certificate in this connection, and in this TLS session.
    certificate_in_connection: bool = False
    certificate_in_session: bool = False
    #: The result of verifying the client's certificate; 0 if it has sent one and it is valid.
    verify: int = 0
    #: All TLVs within, in order.
    tlvs: TLVs = ()

    @property
    def verified(self) -> bool:
        """True if the client has sent a certificate, now or earlier in this TLS session, and it is valid."""
        return not self.verify and (self.certificate_in_connection or self.certificate_in_session)

    @property
    def version(self) -> str | None:
        """The TLS version: ``"TLSv1.3"``."""
        return find_text(self.tlvs, SSL_VERSION)

    @property
    def common_name(self) -> str | None:
        """The common name in the client's certificate."""
        return find_text(self.tlvs, SSL_CN)

    @property
    def cipher(self) -> str | None:
        """The name of the cipher."""
        return find_text(self.tlvs, SSL_CIPHER)

    @property
    def signature_algorithm(self) -> str | None:
        """The algorithm that signed the proxy's certificate: ``"SHA256"``."""
        return find_text(self.tlvs, SSL_SIG_ALG)

    @property
    def key_algorithm(self) -> str | None:
        """The algorithm of that certificate's key: ``"RSA2048"``."""
        return find_text(self.tlvs, SSL_KEY_ALG)

    @classmethod
    def parse(cls, value: bytes) -> ProxySSL:
        """Parse the value of a TLV of the type SSL.

        :raises ProxyHeaderError: it is malformed.
        """
        if len(value) < 5:
            raise ProxyHeaderError("PROXY header with an SSL TLV that is too short")
        is_tls, in_connection, in_session = (bool(value[0] & flag) for flag in _CLIENT_FLAGS)
        return cls(is_tls, in_connection, in_session, int.from_bytes(value[1:5], "big"), parse_tlvs(value[5:]))

    def format(self) -> bytes:
        """Return the value of the TLV."""
        given = (self.is_tls, self.certificate_in_connection, self.certificate_in_session)
        flags = sum(flag for flag, is_set in zip(_CLIENT_FLAGS, given, strict=True) if is_set)
        return bytes((flags,)) + self.verify.to_bytes(4, "big") + format_tlvs(self.tlvs)


# CRC32C (Castagnoli): no module of the standard library has it, and few proxies send it


def crc32c(data: bytes) -> bytes:
    """Return the checksum as it is sent."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "big")


@lru_cache(1)
def _crc_table() -> tuple[int, ...]:
    table: list[int] = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)
