"""Trace fields, which a server adds before the mail that it accepts (RFC 5321 section 4.4).

Each function returns the bytes of one field, with its CRLF. The field is well-formed whatever the session holds: all
input is treated as hostile.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from time import time

from greensmtp.errors import ProtocolError
from greensmtp.protocol.mailbox import ascii_domain, check_domain
from greensmtp.session import Session

#: A value of ``id``: an atom (RFC 5321 section 4.4 allows a msg-id as well).
_QUEUE_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,128}")
#: Control characters, Unicode line separators, and surrogates, which UTF-8 cannot encode.
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: Bytes of an address that fit into a line of 998 octets (RFC 5322 section 2.1.1).
_MAX_ADDRESS = 900


def return_path(session: Session) -> bytes:
    """Return the ``Return-Path`` field: the reverse-path, for the final delivery."""
    return f"Return-Path: <{_text(session.from_ or '')}>\r\n".encode()


def envelope_to(recipients: Iterable[str]) -> bytes:
    """Return the ``Envelope-To`` field: the recipients of the envelope, one a line.

    Without it, a Bcc would leave no trace of its recipient.
    """
    return ("Envelope-To: " + ",\r\n\t".join(map(_text, recipients)) + "\r\n").encode()


def received_field(session: Session, queue_id: str | None = None, now: datetime | None = None) -> bytes:
    """Return the ``Received`` field: client, server, protocol, queue ID, cipher suite and time.

    A single recipient is named. Several are not, since each would see the others (RFC 5321 section 7.2). A client's
    name that is not a domain is written as ``unknown``.

    :param queue_id: the queue ID at this server. Default: ``session.transaction_id``.
    :param now: the time. Default: the current time.
    :raises ValueError: the queue ID is not an atom (RFC 5322 section 3.2.3).
    """
    if queue_id is None:
        queue_id = session.transaction_id
    elif not _QUEUE_ID.fullmatch(queue_id):
        raise ValueError(f"queue_id: expected an atom of 1 to 128 characters, like 'A1B2C3'; got {queue_id!r}")
    recipient = _text(session.to[0]) if len(session.to) == 1 else ""
    named = recipient and len(recipient.encode()) <= _MAX_ADDRESS
    return (
        f"Received: from {_client(session)}\r\n"
        f"\tby {_name(session, session.server.hostname)} with {session.protocol} id {queue_id}"
        + (f"\r\n\tfor <{recipient}>" if named else "")
        + _tls(session)
        + f";\r\n\t{_now(int(time())) if now is None else format_datetime(now)}\r\n"
    ).encode()


@lru_cache(1)
def _now(second: int) -> str:
    """Return the date of a second, which many messages share."""
    return format_datetime(datetime.fromtimestamp(second).astimezone())


def _client(session: Session) -> str:
    """Return the name that the client gave in EHLO, and its address if it has one."""
    name = _name(session, session.hostname)
    literal = _literal(str(session.peer_host))
    return f"{name} ({literal})" if literal else name


@lru_cache(1024)
def _literal(host: str) -> str:
    """Return an address literal; ``""`` if the peer has no IP address.

    Then it is a unix socket, or a name given by the program that accepted the connection.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # an IPv4 client of a dual-stack listener
    return f"[IPv6:{address}]" if isinstance(address, IPv6Address) else f"[{address}]"


def _name(session: Session, name: str | None) -> str:
    """Return a host's name for the field; UTF-8 is allowed in SMTPUTF8 messages only (RFC 6531 section 3.7.3)."""
    return _domain(name or "", utf8=session.smtputf8)


@lru_cache(1024)
def _domain(name: str, *, utf8: bool) -> str:
    if not utf8:
        name = ascii_domain(name)
    try:
        check_domain(name)
    except ProtocolError:
        return "unknown"
    return name if name.isascii() or utf8 else "unknown"


def _tls(session: Session) -> str:
    """Return the clause with the cipher suite (RFC 8314 section 4.3), or ``""`` without TLS."""
    cipher = session.socket.cipher() if session.tls and hasattr(session.socket, "cipher") else None
    suite = _cipher_suite(cipher[0]) if cipher else ""
    return f"\r\n\ttls {suite}" if suite else ""


@lru_cache(64)
def _cipher_suite(name: str) -> str:
    """Return IANA's name of a cipher suite, or its number. OpenSSL has names of its own for those before TLS 1.3."""
    if name.startswith("TLS_"):
        return name
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL")
    numbers = [known["id"] & 0xFFFF for known in context.get_ciphers() if known["name"] == name]
    return f"0x{numbers[0]:04X}" if numbers else ""


def _text(address: str) -> str:
    """Return an address without characters that could end its line. Addresses parsed from commands have none."""
    return _NOT_TEXT.sub("?", address)
