"""Trace information: what a server puts before the mail it takes in (RFC 5321 section 4.4).

The fields are octets that end in CRLF, for the head of a stored message. Whatever a session holds, each is one
well-formed field: names, addresses and literals may come from a hostile client.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable
from datetime import datetime
from email.utils import format_datetime
from ipaddress import IPv6Address, ip_address

from greensmtp.errors import ProtocolError
from greensmtp.protocol.address import ascii_domain, check_domain
from greensmtp.session import Session

_numbers = itertools.count(1)

#: What ``id`` takes (RFC 5321 section 4.4: an atom or a msg-id; the dots of a dot-atom are left out).
_QUEUE_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,128}")
#: Controls, the separators of lines beyond ASCII's, and what UTF-8 cannot carry.
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: Octets of an address that fit a line (RFC 5322 section 2.1.1) together with what stands around it.
_LONGEST_ADDRESS = 900


def new_queue_id() -> str:
    """Return a name for a message that no other message on this host has: time, process, count
    (as https://cr.yp.to/proto/maildir.html asks for)."""
    return f"{time.time_ns() // 1000:X}P{os.getpid()}Q{next(_numbers)}"


def return_path(session: Session) -> bytes:
    """Return the ``Return-Path`` field: the reverse-path, which the final delivery keeps."""
    return f"Return-Path: <{_text(session.from_ or '')}>\r\n".encode()


def envelope_to(recipients: Iterable[str]) -> bytes:
    """Return the ``Envelope-To`` field: the recipients of the envelope, one a line. Without it, a Bcc would leave no
    trace of its recipient."""
    return ("Envelope-To: " + ",\r\n\t".join(map(_text, recipients)) + "\r\n").encode()


def received_field(session: Session, queue_id: str | None = None, now: datetime | None = None) -> bytes:
    """Return the ``Received`` field: from where, by which server, how, under which id, when.

    The recipient is named when there is just one: naming several would tell each of the others (RFC 5321
    section 7.2). A name from the client that is no domain is not repeated.

    :param queue_id: the message's name at this server; a new one when not given.
    :param now: the time; the current time when not given.
    :raises ValueError: the queue id is not an atom (RFC 5322 section 3.2.3).
    """
    if queue_id is None:
        queue_id = new_queue_id()
    elif not _QUEUE_ID.fullmatch(queue_id):
        raise ValueError(f"queue_id must be an atom of 1 to 128 characters, like 'A1B2C3', not {queue_id!r}")
    recipient = _text(session.to[0]) if len(session.to) == 1 else ""
    named = recipient and len(recipient.encode()) <= _LONGEST_ADDRESS
    return (
        f"Received: from {_client(session)}\r\n"
        f"\tby {_name(session, session.server.hostname)} with {session.protocol} id {queue_id}"
        + (f"\r\n\tfor <{recipient}>" if named else "")
        + f";\r\n\t{format_datetime(datetime.now().astimezone() if now is None else now)}\r\n"
    ).encode()


def _client(session: Session) -> str:
    """The name that the client gave itself, and its address where there is one."""
    name = _name(session, session.hostname)
    host = session.peer_host
    try:
        address = ip_address(str(host).partition("%")[0])
    except ValueError:  # a unix socket, or what another server that accepted the connection calls its client
        return name
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # a client of a dual-stack listener
    literal = f"[IPv6:{address}]" if isinstance(address, IPv6Address) else f"[{address}]"
    return f"{name} ({literal})"


def _name(session: Session, name: str | None) -> str:
    """Return a host's name for the field; UTF-8 is for SMTPUTF8 messages alone (RFC 6531 section 3.7.3)."""
    name = (name or "") if session.smtputf8 else ascii_domain(name or "")
    try:
        check_domain(name)
    except ProtocolError:
        return "unknown"
    return name if name.isascii() or session.smtputf8 else "unknown"


def _text(address: str) -> str:
    """An address without anything that would end its line. (Those that came over the wire have nothing of the kind.)"""
    return _NOT_TEXT.sub("?", address)
