"""Tests of the plugins, with greensmtp.testing: over socket pairs, without a network."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import gevent
import pytest
from greensmtp_courtesy.require_tls import RequireTLS
from greensmtp_courtesy.vacation import Vacation, install

from greensmtp import SMTPServer, signals
from greensmtp.testing import Peer, dial

TEXTS = {"jo@example.com": "I am in the mountains."}

MESSAGE = """\
From: Ann <ann@example.org>\r
To: Jo <jo@example.com>\r
Subject: Tea?\r
Message-ID: <1@example.org>\r
{extra}\r
At four.\r
"""


@pytest.fixture
def answers() -> list[tuple[EmailMessage, str]]:
    """Return the list that notices and their recipients are added to."""
    return []


@pytest.fixture
def peer(smtp_server: Any, answers: list[tuple[EmailMessage, str]]) -> Iterator[Peer]:
    """Return a client of a server with a vacation notice for jo@example.com, after EHLO."""
    server: SMTPServer = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    Vacation(TEXTS, lambda notice, recipient: answers.append((notice, recipient))).attach(server)
    with dial(server) as peer:
        peer.hello()
        yield peer


def write(peer: Peer, extra: str = "", sender: str = "ann@example.org", to: str = "jo@example.com") -> None:
    """Send a message, and let its notice be sent."""
    assert peer.deliver(MESSAGE.format(extra=extra and f"{extra}\r\n"), sender=sender, to=to).startswith("250")
    gevent.idle()


def test_each_sender_is_answered_once(peer: Peer, answers: list[tuple[EmailMessage, str]]) -> None:
    write(peer)
    write(peer)
    write(peer, sender="bob@example.net")
    assert [recipient for _, recipient in answers] == ["ann@example.org", "bob@example.net"]
    notice = answers[0][0]
    assert (notice["From"], notice["To"], notice["Subject"]) == ("jo@example.com", "ann@example.org", "Auto: Tea?")
    assert (notice["Auto-Submitted"], notice["In-Reply-To"]) == ("auto-replied", "<1@example.org>")
    assert notice.get_content() == "I am in the mountains.\n"


@pytest.mark.parametrize(
    "extra",
    ["Auto-Submitted: auto-replied", "auto-submitted: auto-generated; x=y", "Precedence: bulk", "List-Id: <tea>"],
)
def test_machines_are_not_answered(peer: Peer, answers: list[tuple[EmailMessage, str]], extra: str) -> None:
    write(peer, extra)
    assert not answers


@pytest.mark.parametrize("sender", ["", "MAILER-DAEMON@example.org", "owner-tea@example.org", "no-reply@example.org"])
def test_senders_that_are_machines_are_not_answered(
    peer: Peer, answers: list[tuple[EmailMessage, str]], sender: str
) -> None:
    write(peer, sender=sender)
    assert not answers


def test_recipients_without_a_notice_do_not_answer(peer: Peer, answers: list[tuple[EmailMessage, str]]) -> None:
    write(peer, to="cyd@example.com")
    assert not answers


def test_recipients_not_in_to_or_cc_do_not_answer(peer: Peer, answers: list[tuple[EmailMessage, str]]) -> None:
    body = MESSAGE.format(extra="").replace("jo@example.com", "all@example.com")
    assert peer.deliver(body, to="jo@example.com").startswith("250")
    gevent.idle()
    assert not answers


def test_a_subject_cannot_add_a_header_field(peer: Peer, answers: list[tuple[EmailMessage, str]]) -> None:
    body = MESSAGE.format(extra="").replace("Tea?", "Tea?\r\n\tBcc: everybody@example.net\x01")
    peer.deliver(body, sender="ann@example.org", to="jo@example.com")
    gevent.idle()
    assert answers[0][0]["Subject"] == "Auto: Tea? Bcc: everybody@example.net"
    assert answers[0][0]["Bcc"] is None


def test_a_notice_that_fails_is_logged_and_the_message_accepted(
    smtp_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def send(notice: EmailMessage, recipient: str) -> None:
        raise LookupError("no such thing")

    server: SMTPServer = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    Vacation(TEXTS, send).attach(server)
    with dial(server) as peer:
        peer.hello()
        write(peer)
        write(peer, sender='"a b"@example.org')
    assert [record.getMessage() for record in caplog.records] == [
        "the notice to ann@example.org could not be made",
        'the notice to "a b"@example.org could not be made',
    ]


def test_without_settings_install_fails(smtp_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VACATION_FILE", raising=False)
    with pytest.raises(ValueError, match="VACATION_FILE"):
        install(smtp_server(start=False))


def test_the_allow_list_refuses_other_domains(smtp_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "greensmtp_courtesy.allow_list"
    sys.modules.pop(name, None)
    monkeypatch.delenv("ALLOWED_DOMAINS", raising=False)
    with pytest.raises(RuntimeError, match="ALLOWED_DOMAINS"):
        importlib.import_module(name)
    monkeypatch.setenv("ALLOWED_DOMAINS", "example.com Example.ORG")
    module = importlib.import_module(name)
    try:
        with dial(smtp_server(start=False)) as peer:
            peer.hello()
            peer.line("MAIL FROM:<a@b.example>")
            peer.line(*(f"RCPT TO:<jo@{domain}>" for domain in ("EXAMPLE.com", "example.org", "example.net")))
            peer.expect("250", "250", "250", "550 5.7.1")
    finally:
        signals.to.disconnect(module.allow)


def test_mail_without_tls_gets_530(smtp_server: Any) -> None:
    with dial(smtp_server(start=False, middleware=[RequireTLS()])) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@b.example>", "NOOP")
        peer.expect("530 5.7.0", "250")
