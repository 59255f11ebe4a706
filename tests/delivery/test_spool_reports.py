"""Spool and DSN: who is told of failure, delay and success, and what a next hop with DSN is told."""

from __future__ import annotations

import email
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from greensmtp import Ack, Session, SMTPServer
from greensmtp.delivery import Spool
from greensmtp.delivery.spool_folder import Folder
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.delivery.test_spool import folder, front, quick, refusing, url
from tests.helpers import until

__all__ = ["folder", "front", "quick"]

DSN = {"extensions": {"DSN": True}}


def send(server: SMTPServer, to: dict[str, str], *, mail: str = "", sender: str = "ann@example.net") -> str:
    """Send a message to recipients, each with its parameters; return its ID."""
    with dial(server) as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<{sender}>{mail}", *(f"RCPT TO:<{each}>{more}" for each, more in to.items()), "DATA")
        peer.expect("250", *["250"] * len(to), "354")
        peer.send(b"Subject: Tea\r\n\r\nAt four, caf\xc3\xa9.\r\n.\r\n")
        return peer.expect("250").split()[-1]


def actions(report: bytes) -> dict[str, str]:
    """Return recipient -> action of a report."""
    status = email.message_from_bytes(report).get_payload()[1].get_payload()  # type: ignore[union-attr, index]
    return {each["Final-Recipient"].partition(";")[2]: each["Action"] for each in status[1:]}  # type: ignore[index]


def reports(got: helpers.Deliveries) -> list[bytes]:
    return [body for sender, _, body in got.mail if not sender]


def test_success_is_reported_where_the_next_hop_has_no_dsn(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder, tmp_path: Path
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    to = {
        "bob@example.org": " NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Bob+2Btag@old.example",
        "cyd@example.org": "",
        "dan@example.org": " NOTIFY=FAILURE",
        "eve@example.org": " NOTIFY=NEVER",
    }
    send(front(url(mx), server=DSN), to, mail=" ENVID=QQ1 RET=FULL")
    until(lambda: len(got.mail) == 2 and not folder.names(), "the report")
    (report,) = reports(got)
    assert actions(report) == {"bob@example.org": "relayed"}
    assert b"Original-Recipient: rfc822;Bob+tag@old.example\r\n" in report
    assert b"Original-Envelope-Id: QQ1\r\n" in report
    assert b"Subject: Tea" in report
    assert b"At four" not in report  # RET is about failures
    path = str(tmp_path / "spool")
    assert REGISTRY.get_sample_value("greensmtp_spool_reports_total", {"spool": path, "kind": "relayed"}) == 1


def test_a_next_hop_with_dsn_is_told_all_and_reports_by_itself(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server(extensions={"DSN": True})
    seen: list[Any] = []

    @mx.on_mail
    def keep(mail: Any) -> None:
        seen.append((dict(mail.sender.parameters), [dict(each.parameters) for each in mail.recipients]))

    to = {"bob@example.org": " NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob@old.example", "cyd@example.org": " NOTIFY=NEVER"}
    send(front(url(mx), server=DSN), to, mail=" RET=HDRS ENVID=QQ1")
    until(lambda: not folder.names() and seen != [], "the spool to be empty")
    ((sender, recipients),) = seen
    assert (sender["RET"], sender["ENVID"]) == ("HDRS", "QQ1")
    assert recipients == [{"NOTIFY": "SUCCESS,DELAY", "ORCPT": "rfc822;Bob@old.example"}, {"NOTIFY": "NEVER"}]


def test_lmtp_delivers(smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder) -> None:
    # The report goes to ann, over LMTP as well.
    mx = smtp_server(lmtp=True)
    got: list[bytes] = []

    @mx.on_mail
    def keep(mail: Any) -> None:
        if not mail.sender:
            got.append(mail.open().read())

    send(front(url(mx).replace("smtp:", "lmtp:"), server=DSN), {"bob@example.org": " NOTIFY=SUCCESS"})
    until(lambda: got != [] and not folder.names(), "the report")
    assert actions(got[0]) == {"bob@example.org": "delivered"}


def test_a_delay_is_reported_once(smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    users = ("bob", "cyd", "dan", "eve")
    refusing(mx, dict.fromkeys(users, (450, "4.2.1 later")))
    to = {
        "bob@example.org": "",
        "cyd@example.org": " NOTIFY=DELAY",
        "dan@example.org": " NOTIFY=SUCCESS,FAILURE",
        "eve@example.org": " NOTIFY=NEVER",
    }
    name = send(front(url(mx), server=DSN, schedule="0.1s*5, 500s", delay_report="0.2s"), to)
    until(lambda: folder.state(name).attempts == 6 and reports(got) != [], "six tries")
    (report,) = reports(got)
    assert actions(report) == {"bob@example.org": "delayed", "cyd@example.org": "delayed"}
    assert b"Will-Retry-Until: " in report
    assert b"Subject: Delayed mail" in report
    assert folder.state(name).delayed == ["bob@example.org", "cyd@example.org"]
    assert len(folder.names()) == 1


@pytest.mark.parametrize(
    ("sender", "options"),
    [
        ("", {"delay_report": "0.1s"}),
        ("ann@example.net", {"delay_report": False}),
        ("ann@example.net", {"delay_report": "1h"}),
        ("ann@example.net", {"delay_report": "0.1s", "at_the_end": "dead-letter"}),
    ],
)
def test_no_delay_is_reported(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder, sender: str, options: dict[str, Any]
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"bob": (450, "4.2.1 later")})
    name = send(front(url(mx), server=DSN, schedule="0.1s*4, 500s", **options), {"bob@example.org": ""}, sender=sender)
    until(lambda: folder.state(name).attempts == 5, "five tries")
    assert got.mail == []
    assert folder.names() == [name]


def test_success_and_failure_of_one_try_are_two_reports(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"cyd": (550, "5.1.1 no")})
    to = dict.fromkeys(("bob@example.org", "cyd@example.org"), " NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x@y.example")
    send(front(url(mx), server=DSN), to, mail=" RET=FULL BODY=8BITMIME")
    until(lambda: len(reports(got)) == 2 and not folder.names(), "two reports")
    found = {action: report for report in reports(got) for action in actions(report).values()}
    assert {action: [*actions(report)] for action, report in found.items()} == {
        "relayed": ["bob@example.org"],
        "failed": ["cyd@example.org"],
    }
    assert "café".encode() in found["failed"]
    assert b"Original-Recipient: rfc822;x@y.example" in found["failed"]


def test_a_report_of_8_bit_headers_needs_no_8bitmime(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server(extensions={"8BITMIME": False, "SMTPUTF8": False})
    got = helpers.Deliveries(mx)

    @mx.on("to")
    def decide(session: Session, address: Any, ack: Ack) -> None:
        ack.reject(550, "5.1.1 kein Platz für Bob") if address.local_part == "bob" else ack.accept()

    with dial(front(url(mx))) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send("Subject: Café\r\n\r\nAt four.\r\n.\r\n".encode())
        peer.expect("250")
    until(lambda: reports(got) != [] and not folder.names(), "the report")
    assert reports(got)[0].isascii()
    parts: Any = email.message_from_bytes(reports(got)[0]).get_payload()
    assert "Café".encode() in parts[2].get_payload(decode=True)


def test_two_messages_of_one_transaction_have_reports_of_their_own(tmp_path: Path) -> None:
    from greensmtp import Reply
    from greensmtp.delivery.spool_reports import Outcome, add_report

    folder = Folder(tmp_path)
    folder.make()
    base = "6447ef957f640-5c1f0a-1f"
    about = {"time": "", "from": "ann@example.net", "from_ext": {}, "to": [["bob@example.org", {}]]} | {"time": 1e6}
    names = set()
    for name in (base, f"{base}_2", f"{base}_3"):
        folder.add(name, about, b"Subject: x\r\n\r\n")
        with folder.open(name) as entry:
            outcomes = [Outcome(entry.recipients[0], Reply(550, "5.1.1 no"))]
            names |= {
                add_report(folder, entry, action, outcomes, hostname="h.example")
                for action in ("failed", "delayed", "relayed", "delivered")
            }
    assert len(names) == 12
    assert len(folder.names()) == 15


@pytest.mark.parametrize("value", ["often", "0s", "1m*2", "", True, 4])
def test_what_is_no_delay(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="delay_report: expected a duration"):
        Spool(tmp_path, to="smtp://x.example", delay_report=value)
