"""Spool: what was accepted reaches the next hop or its sender, whatever happens in between."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from prometheus_client import REGISTRY

from greensmtp import Ack, Address, Session, SMTPServer
from greensmtp.delivery import Deliveries, Spool, spool_sender
from greensmtp.delivery.schedule import parse_schedule
from greensmtp.delivery.spool_folder import Busy, Folder, Gone, State
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.helpers import free_port, until

BODY = b"Subject: Tea\r\n\r\n.At four.\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_sender, "SCAN_SECONDS", 0.05)
    monkeypatch.setattr(spool_sender, "STOP_SECONDS", 0.5)


@pytest.fixture
def front(smtp_server: MakeServer, tmp_path: Path) -> Iterator[Callable[..., SMTPServer]]:
    """Return a function that makes a server with a spool: ``front(to)``."""
    running: list[SMTPServer] = []

    def make(to: Any, *, server: dict[str, Any] | None = None, **options: Any) -> SMTPServer:
        options.setdefault("schedule", "100s*3")
        made = smtp_server(start=False, hostname="front.example.com", **(server or {}))
        Deliveries([Spool(tmp_path / "spool", to=to, timeout=10, **options)]).attach(made)
        made.start()
        running.append(made)
        return made

    yield make
    for each in running:
        each.stop(timeout=1)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "spool")


def url(server: SMTPServer) -> str:
    return f"smtp://127.0.0.1:{server.address[1]}"


def send(server: SMTPServer, *recipients: str, sender: str = "ann@example.net", more: str = "") -> str:
    """Send a message; return its ID."""
    with dial(server) as peer:
        peer.hello()
        return deliver(peer, *recipients, sender=sender, more=more)


def deliver(peer: Peer, *recipients: str, sender: str = "ann@example.net", more: str = "") -> str:
    to = recipients or ("bob@example.org",)
    peer.line(f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>{more}" for each in to), "DATA")
    peer.expect("250", *["250"] * len(to), "354")
    peer.send(BODY.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return peer.expect("250").split()[-1]


def refusing(mx: SMTPServer, table: dict[str, tuple[int, str]]) -> None:
    @mx.on("to")
    def decide(session: Session, address: Address, ack: Ack) -> None:
        ack.reject(*table[address.local_part]) if address.local_part in table else ack.accept()


def test_a_message_is_passed_on_and_gone(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = front(url(mx))
    identifier = send(server, "bob@example.org", "cyd@example.org")
    until(lambda: not folder.names(), "the spool to be empty")
    ((sender, recipients, body),) = got.mail
    assert (sender, recipients) == ("ann@example.net", ["bob@example.org", "cyd@example.org"])
    assert re.match(rb"Received: from client.example .*\r\n\tby front.example.com with ESMTP id (\S+);", body)
    assert identifier.encode() in body
    assert body.endswith(BODY)
    assert [*(folder.path / "state").iterdir()] == []
    assert [*(folder.path / "tmp").iterdir()] == []


def test_what_is_refused_for_now_is_tried_by_the_schedule(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    table = {"cyd": (450, "4.2.1 later")}
    refusing(mx, table)
    server = front(url(mx), schedule="0.1s*2, 100s")
    name = send(server, "bob@example.org", "cyd@example.org")
    until(lambda: folder.state(name).attempts == 3, "three tries")
    state = folder.state(name)
    assert state.done == ["bob@example.org"]
    assert state.replies == {"bob@example.org": "250 2.1.5 Ok", "cyd@example.org": "450 4.2.1 later"} | {
        "bob@example.org": state.replies["bob@example.org"]
    }
    assert 90 < state.due - time.time() < 101
    assert [recipients for _, recipients, _ in got.mail] == [["bob@example.org"]]
    table.clear()
    gevent.sleep(0.2)
    assert len(got.mail) == 1  # it is not due
    state.due = 0.0
    folder.write_state(name, state)  # as `greensmtp spool retry` does
    folder.wake()
    until(lambda: not folder.names(), "the spool to be empty")
    assert [recipients for _, recipients, _ in got.mail] == [["bob@example.org"], ["cyd@example.org"]]


def test_metrics_tell_what_waits(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder, tmp_path: Path
) -> None:
    mx = smtp_server()
    helpers.Deliveries(mx)
    refusing(mx, {"cyd": (450, "4.2.1 later"), "dan": (550, "5.1.1 no")})
    name = send(front(url(mx)), "bob@example.org", "cyd@example.org", "dan@example.org")
    until(lambda: folder.state(name).attempts == 1 and len(folder.names()) == 1, "a try, and the report")
    path = str(tmp_path / "spool")

    def value(metric: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"greensmtp_spool_{metric}", {"spool": path, **labels})

    until(lambda: value("messages") == 1, "the number")
    assert 0 < (value("oldest_seconds") or 0) < 60
    # The report to ann was sent as well.
    counts = [value("recipients_total", result=each) for each in ("sent", "failed", "deferred")]
    assert counts == [2, 1, 1]


def test_what_is_refused_for_good_is_reported(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"cyd": (550, "5.1.1 no such user")})
    name = send(front(url(mx)), "bob@example.org", "cyd@example.org")
    until(lambda: len(got.mail) == 2 and not folder.names(), "the report")
    (_, first, _), (sender, recipients, report) = got.mail
    assert (first, sender, recipients) == (["bob@example.org"], "", ["ann@example.net"])
    for text in (b"multipart/report", b"Final-Recipient: rfc822;cyd@example.org", b"550 5.1.1 no such user"):
        assert text in report
    assert b"Subject: Tea" in report
    assert b"bob@example.org" not in report
    assert name.encode() in report  # in the header section that is returned


def test_at_the_end_of_the_schedule_the_sender_is_told(
    front: Callable[..., SMTPServer], folder: Folder, smtp_server: MakeServer
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    table = {"bob": (451, "4.3.0 not now")}
    refusing(mx, table)
    send(front(url(mx), schedule="0.1s*2"))
    until(lambda: len(got.mail) == 1 and not folder.names(), "the report")
    assert b"451 4.3.0 not now" in got.mail[0][2]


def test_notify_never_is_heeded(smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"bob": (550, "5.1.1 no")})
    send(front(url(mx), server={"extensions": {"DSN": True}}), more=" NOTIFY=NEVER")
    until(lambda: not folder.names(), "the spool to be empty")
    assert got.mail == []


@pytest.mark.parametrize("at_the_end", ["report", "dead-letter"])
def test_without_a_report_it_is_a_dead_letter(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder, at_the_end: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"bob": (550, "5.1.1 no"), "dan": (450, "4.2.1 later")})
    sender = "" if at_the_end == "report" else "ann@example.net"
    server = front(url(mx), at_the_end=at_the_end, schedule="0.2s")
    name = send(server, "bob@example.org", "cyd@example.org", "dan@example.org", sender=sender)
    until(lambda: folder.names("dead") == [name], "the dead letter")
    assert [recipients for _, recipients, _ in got.mail] == [["cyd@example.org"]]
    assert folder.names() == []
    state = json.loads((folder.path / "dead" / f"{name}.state").read_bytes())
    assert state["lost"] == ["bob@example.org", "dan@example.org"]


def test_a_next_hop_that_is_gone_costs_nothing(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    port = free_port()
    server = front(f"smtp://127.0.0.1:{port}", schedule="0.2s*50")
    for _ in range(5):
        send(server)
    until(lambda: all(folder.state(name).attempts for name in folder.names()), "a try each")
    assert len(folder.names()) == 5
    mx = smtp_server(start=False, listener=("127.0.0.1", port))
    got = helpers.Deliveries(mx)
    mx.start()
    until(lambda: not folder.names(), "the spool to be empty")
    assert len(got.mail) == 5


def test_in_lmtp_a_recipient_that_is_refused_late_is_left_out(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], tmp_path: Path, folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = smtp_server(start=False, lmtp=True)

    @server.on("received")
    def not_bob(session: Session, ack: Ack, recipient: Address) -> None:
        ack.reject(550, "5.7.1 not bob") if recipient.local_part == "bob" else ack.accept()

    Deliveries([Spool(tmp_path / "spool", to=url(mx))]).attach(server)
    server.start()
    with dial(server) as peer:
        peer.line("LHLO client.example", "MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>")
        peer.line("RCPT TO:<cyd@example.org>", "DATA")
        peer.expect("220", "250", "250", "250", "250", "354")
        peer.send(BODY + b".\r\n")
        peer.expect("550 5.7.1 not bob", "250")
    until(lambda: not folder.names(), "the spool to be empty")
    assert [recipients for _, recipients, _ in got.mail] == [["cyd@example.org"]]
    server.stop(timeout=1)


def test_two_processes_send_a_message_once(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    """Two spools with one folder stand for two processes: locks belong to open files."""
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    one, two = front(url(mx)), front(url(mx))
    for _ in range(10):
        send(one)
        send(two)
    until(lambda: not folder.names(), "the spool to be empty")
    assert len(got.mail) == 20
    assert len({match for _, _, body in got.mail for match in re.findall(rb"\bid (\S+)", body)[:1]}) == 20


def test_a_message_that_is_held_waits(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"bob": (450, "4.2.1 later")})
    name = send(front(url(mx), schedule="0.1s*50"))
    until(lambda: folder.state(name).attempts > 0, "a try")

    def hold() -> bool:
        try:
            with folder.open(name) as entry:
                entry.state.held = True
                entry.save()
        except Busy:
            return False
        return True

    until(hold, "the lock")
    attempts = folder.state(name).attempts
    gevent.sleep(0.6)
    assert folder.state(name).attempts == attempts
    assert folder.names() == [name]
    assert got.mail == []


def test_a_clock_that_is_set_back_holds_nothing(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    folder.make()
    name = "6447ef957f640-5c1f0a-1f"
    folder.write_state(name, State(due=time.time() + 1e6))
    folder.add(name, {"time": 0, "from": "", "from_ext": {}, "to": [["bob@example.org", {}]]}, BODY)
    front(url(mx))
    until(lambda: len(got.mail) == 1, "the message")


def test_what_is_no_message_stays_and_is_logged(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    folder.make()
    (folder.path / "new" / "6447ef957f640-5c1f0a-1f").write_bytes(b"Subject: x\r\n")
    (folder.path / "new" / "README").write_bytes(b"not ours")
    server = front(url(mx))
    send(server)
    until(lambda: len(got.mail) == 1, "the message")
    until(lambda: "failed; it stays" in caplog.text, "the log")
    assert folder.names() == ["6447ef957f640-5c1f0a-1f"]


def test_a_large_body_with_late_fields(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    server = front(url(mx))
    server.signals.on("received", lambda session, ack: None if ack.decided else session.message.add_header("X", "y"))
    body = b"Subject: x\r\n\r\n" + (b"x" * 990 + b"\r\n") * 2000
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send(body + b".\r\n")
        peer.expect("250")
    until(lambda: not folder.names(), "the spool to be empty")
    assert got.mail[0][2].endswith(body)


def test_a_client_that_vanishes_leaves_nothing(front: Callable[..., SMTPServer], folder: Folder) -> None:
    server = front(f"smtp://127.0.0.1:{free_port()}")
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send(b"x" * 1_000_000)
    until(lambda: not server.connections, "the client to be gone")
    assert folder.names() == []
    until(lambda: not [*(folder.path / "tmp").iterdir()], "the unfinished file to be removed")


def test_a_full_disk_is_452(front: Callable[..., SMTPServer], monkeypatch: pytest.MonkeyPatch) -> None:
    server = front(f"smtp://127.0.0.1:{free_port()}")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("greensmtp.delivery._maildir_file._write_all", full)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("x\r\n").startswith("452 4.3.1")


# The folder


def test_a_locked_message_is_busy_and_a_removed_one_gone(folder: Folder) -> None:
    folder.make()
    name = "6447ef957f640-5c1f0a-1f"
    to = [["b@x.example", {"NOTIFY": "NEVER"}]]
    folder.add(name, {"time": 0, "from": "a@x.example", "from_ext": {}, "to": to}, BODY)
    with folder.open(name) as entry:
        assert (entry.sender, entry.recipients, entry.size) == ("a@x.example", ["b@x.example"], len(BODY))
        assert entry.recipients[0].parameters == {"NOTIFY": "NEVER"}
        assert entry.read(0, 7) + entry.read(7, 1000) == BODY
        with pytest.raises(Busy):
            folder.open(name)
        entry.remove()
    with pytest.raises(Gone):
        folder.open(name)


def test_what_killed_processes_have_left_is_swept(folder: Folder) -> None:
    folder.make()
    (folder.path / "tmp" / "x").touch()
    folder.write_state("6447ef957f640-5c1f0a-1f", State())
    folder.sweep(time.time())
    assert len([*folder.path.glob("*/*")]) == 2
    folder.sweep(time.time() + 40 * 3600)
    assert [*folder.path.glob("*/*")] == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1m", (60,)), ("1m, 5m*2,1h*3", (60, 300, 300, 3600, 3600, 3600)), ("0.5s", (0.5,)), (" 2d ", (172800,))],
)
def test_a_schedule(text: str, seconds: tuple[float, ...]) -> None:
    assert parse_schedule(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "m", "1m*", "1m*0", "0s", "1m;2m", "-1m", "1m*999,1m*2", "1w"])
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ValueError, match="schedule: expected"):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"to": "x x"}, "to: expected the URL"),
        ({"to": "smtp://x.example", "at_the_end": "forget"}, "at_the_end: expected 'report' or 'dead-letter'"),
        ({"to": "smtp://x.example", "concurrency": 0}, "concurrency: expected at least 1"),
        ({"to": "smtp://x.example", "schedule": "often"}, "schedule: expected times"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        Spool(tmp_path, **options)
    assert [*tmp_path.iterdir()] == []
