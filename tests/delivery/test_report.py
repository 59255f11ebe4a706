"""Delivery status notifications are well-formed, whatever was in the message, and say what has happened."""

from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greensmtp import Reply
from greensmtp.delivery import RecipientStatus, delivery_report

MESSAGE = b"From: ann@a.example\r\nSubject: Tea\r\n\r\nAt five.\r\n"
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def read(report: bytes) -> tuple[Any, list[Any]]:
    """Return the report as a recipient reads it, and its parts."""
    read = email.message_from_bytes(report, policy=email.policy.SMTP)
    assert (read.get_content_type(), read.get_param("report-type")) == ("multipart/report", "delivery-status")
    assert not read.defects
    return read, read.get_payload()  # type: ignore[return-value]


def test_a_report_has_a_text_the_status_and_the_header_section() -> None:
    failed = RecipientStatus(
        recipient="bob@b.example",
        reply=Reply(550, "5.1.1 No such user"),
        remote="mx.b.example",
        original="rfc822;bob+2Btag@b.example",
        last_attempt=WHEN,
    )
    report = delivery_report(
        [failed],
        sender="ann@a.example",
        hostname="mx.example.com",
        message=MESSAGE,
        envelope_id="id+2B1",
        arrival=WHEN,
        now=WHEN,
    )
    whole, (text, status, returned) = read(report)
    assert (whole["To"], whole["From"]) == ("ann@a.example", "Mail Delivery System <MAILER-DAEMON@mx.example.com>")
    assert whole["Auto-Submitted"] == "auto-replied"
    assert "mx.b.example said: 550 5.1.1 No such user" in text.get_content()
    about, recipient = status.get_payload()
    assert status.get_content_type() == "message/delivery-status"
    assert dict(about.items()) == {
        "Original-Envelope-Id": "id+1",
        "Reporting-MTA": "dns;mx.example.com",
        "Arrival-Date": "Fri, 02 Jan 2026 03:04:05 +0000",
    }
    assert dict(recipient.items()) == {
        "Original-Recipient": "rfc822;bob+tag@b.example",
        "Final-Recipient": "rfc822;bob@b.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns;mx.b.example",
        "Diagnostic-Code": "smtp;550 5.1.1 No such user",
        "Last-Attempt-Date": "Fri, 02 Jan 2026 03:04:05 +0000",
    }
    assert returned.get_content_type() == "text/rfc822-headers"
    assert returned.get_payload() == "From: ann@a.example\r\nSubject: Tea\r\n\r\n"


def test_a_whole_message_can_be_returned() -> None:
    status = RecipientStatus(
        recipient="bob@b.example", reply=Reply(450, "busy"), action="delayed", will_retry_until=WHEN
    )
    report = delivery_report(
        [status], sender="ann@a.example", hostname="mx.example.com", message=MESSAGE + b"\xff\r\n", headers_only=False
    )
    whole, (_, fields, returned) = read(report)
    assert whole["Subject"] == "Delayed mail: still being tried"
    assert fields.get_payload()[1]["Will-Retry-Until"] == "Fri, 02 Jan 2026 03:04:05 +0000"
    assert returned.get_content_type() == "message/rfc822"
    assert returned.get_payload(0)["Subject"] == "Tea"
    assert MESSAGE + b"\xff\r\n" in report


def test_addresses_beyond_ascii_have_their_own_type() -> None:
    status = RecipientStatus(recipient="j\u00f6@b.example", reply=Reply(550, "no"))
    _, (_, fields) = read(delivery_report([status], sender="ann@a.example", hostname="mx.example.com"))
    assert fields.get_content_type() == "message/global-delivery-status"
    assert "utf-8;j\u00f6@b.example".encode() in delivery_report([status], sender="a@b.example", hostname="h")


@pytest.mark.parametrize("letter", ["a", "ü"])
def test_the_longest_address_is_reported_in_full(letter: str) -> None:
    longest = letter * (64 // len(letter.encode())) + "@" + ".".join(["b" * 62] * 3)  # RFC 5321 section 4.5.3.1
    status = RecipientStatus(recipient=longest, reply=Reply(550, "5.1.1 " + letter * 1000), remote="c" * 1000)
    report = delivery_report([status], sender=longest, hostname="mx.example.com")
    assert f"\r\nFinal-Recipient: {'rfc822' if letter == 'a' else 'utf-8'};{longest}\r\n".encode() in report
    assert f"\r\nTo: <{longest}>\r\n".encode() in report
    assert max(map(len, report.split(b"\r\n"))) <= 998


def test_what_cannot_be_reported_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one RecipientStatus"):
        delivery_report([], sender="ann@a.example", hostname="mx.example.com")
    with pytest.raises(ValueError, match="the null sender, which gets no report"):
        delivery_report([RecipientStatus(recipient="b", reply=Reply(550, "no"))], sender="", hostname="h")


@settings(max_examples=60)
@given(st.text(max_size=80), st.text(max_size=80), st.binary(max_size=200), st.booleans())
def test_nothing_hostile_breaks_the_report(address: str, other: str, message: bytes, headers_only: bool) -> None:
    status = RecipientStatus(recipient=address, reply=Reply(550, "no"), remote=other, original=other)
    report = delivery_report(
        [status],
        sender=address + "a@b",
        hostname="mx.example.com",
        message=message,
        headers_only=headers_only,
        envelope_id=other,
    )
    lines = report.split(b"\r\n")
    assert not any(b"\n" in line for line in lines) or b"\n" in message
    read(report)
    fields = report.split(b"\r\n--")[2].partition(b"\r\n\r\n")[2]
    names = {line.decode().partition(":")[0] for line in fields.split(b"\r\n") if line}
    assert names <= {
        "Original-Envelope-Id",
        "Reporting-MTA",
        "Original-Recipient",
        "Final-Recipient",
        "Action",
        "Status",
        "Remote-MTA",
        "Diagnostic-Code",
    }
