"""Trace information: what a server puts before the mail it takes in (RFC 5321 section 4.4)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from email.utils import format_datetime
from ipaddress import IPv6Address, ip_address

from greensmtp.errors import ProtocolError
from greensmtp.protocol.addresses import Address, ascii_domain, check_domain
from greensmtp.session import Session


def return_path(session: Session) -> bytes:
    """``Return-Path``: the reverse path, which the final delivery keeps."""
    return f"Return-Path: <{session.from_ or ''}>\r\n".encode()


def envelope_to(recipients: Iterable[Address]) -> bytes:
    """``Envelope-To``: whom the envelope named, one a line; without it, a Bcc would leave no trace of its recipient."""
    return ("Envelope-To: " + ",\r\n\t".join(recipients) + "\r\n").encode()


def received(session: Session, queue_id: str, now: datetime) -> bytes:
    """``Received``: from whom, by whom, how, under which id, when.

    The recipient is named when there is just one: naming several would tell each of the others (RFC 5321
    section 7.2). A name from the client that is no domain is not repeated.
    """
    return (
        f"Received: from {_client(session)}\r\n"
        f"\tby {session.server.hostname} with {session.protocol} id {queue_id}"
        + (f"\r\n\tfor <{session.to[0]}>" if len(session.to) == 1 else "")
        + f";\r\n\t{format_datetime(now)}\r\n"
    ).encode()


def _client(session: Session) -> str:
    name = ascii_domain(session.hostname or "unknown")
    try:
        check_domain(name)
    except ProtocolError:
        name = "unknown"
    if not name.isascii():
        name = "unknown"
    host = session.peer_host
    if host is None:
        return name
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # a client of a dual-stack listener
    literal = f"[IPv6:{address}]" if isinstance(address, IPv6Address) else f"[{address}]"
    return f"{name} ({literal})"
