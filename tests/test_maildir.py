"""Delivery into a Maildir: what is stored, what is written before it, and that failures leave nothing behind."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import datetime
from email import message_from_bytes, policy
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from greensmtp import Ack, MessageStream, Reject, Session, SMTPServer
from greensmtp.delivery import Maildir
from greensmtp.testing import Peer, dial

MakeServer = Callable[..., SMTPServer]

ENVELOPE = ("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>")

# RFC 5321 section 4.4: "Received:" From-domain By-domain Opt-info [CFWS] ";" FWS date-time
DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
LITERAL = r"\[(?:\d+\.\d+\.\d+\.\d+|IPv6:[0-9A-Fa-f:.]+)\]"
FWS = r"(?:\r\n)?[ \t]"
ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]+"
RECEIVED = re.compile(
    rf"Received: from (?P<client>{DOMAIN}|{LITERAL})(?: \((?P<address>{LITERAL})\))?"
    rf"{FWS}by (?P<server>{DOMAIN}) with (?P<protocol>{ATOM}) id (?P<id>{ATOM})"
    rf"(?:{FWS}for <(?P<recipient>[^<>]+)>)?;{FWS}(?P<date>[^\r\n]+)\r\n"
)


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    return Maildir(tmp_path / "maildir")


@pytest.fixture
def server(smtp_server: MakeServer, maildir: Maildir) -> SMTPServer:
    """Not started: dialled over a socket pair."""
    server = smtp_server(start=False)
    maildir.attach(server)
    return server


def files(maildir: Maildir, *names: str) -> list[Path]:
    """What is in these folders; in all of them by default."""
    return [path for name in names or ("tmp", "new", "cur") for path in (maildir.path / name).iterdir()]


def stored(maildir: Maildir) -> tuple[str, bytes]:
    """The one message: what was written before it, and the body; and there is nothing else."""
    (path,) = files(maildir)
    assert path.parent.name == "new"
    head, received, rest = path.read_bytes().partition(b"Received: ")
    trace, end, body = (received + rest).partition(b"\r\n\r\n") if b"" else split_trace(received + rest)
    return (head + trace).decode(), body


def split_trace(text: bytes) -> tuple[bytes, bytes, bytes]:
    """Behind the first line that no folded one follows."""
    match = re.match(rb"Received: .*?\r\n(?![ \t])", text, re.DOTALL)
    assert match
    return match[0], b"", text[match.end() :]
