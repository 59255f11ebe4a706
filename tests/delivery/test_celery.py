"""CeleryTask and mail_task: what is sent to a broker, and what a task makes of it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from greensmtp import Ack, Session, SMTPServer
from greensmtp._native import native
from greensmtp.delivery import CeleryTask, Deliveries
from greensmtp.delivery._store import STALE
from greensmtp.delivery.handed_off import MailContent, MailEnvelope
from greensmtp.delivery.mail_task import mail_task
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from greensmtp.thread_pool import in_thread_pool
from tests.helpers import until

BODY = b"Subject: Tea\r\n\r\n.At four.\r\n"


ENVELOPE: dict[str, Any] = {
    "id": "1-2-3",
    "sender": "ann@example.net",
    "recipients": ["bob@example.org"],
    **dict.fromkeys(("peer", "hello", "identity")),
    "server": "mx.example.com",
    "time": 0.0,
}


class App:
    """A Celery application without a broker."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.do: Callable[[], object] = lambda: None

    def send_task(self, name: str, **options: Any) -> None:
        self.do()
        self.sent.append({"name": name, **options})


@pytest.fixture
def front(smtp_server: MakeServer) -> Callable[..., SMTPServer]:
    def make(app: Any, **options: Any) -> SMTPServer:
        server = smtp_server(start=False)
        Deliveries([CeleryTask("tasks.receive", app=app, **options)]).attach(server)
        server.start()
        return server

    return make


def gone() -> None:
    raise OperationalError("Connection refused")


def send(peer: Peer, body: bytes = BODY, end: str = "250") -> str:
    peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>", "DATA")
    peer.expect("250", "250", "250", "354")
    peer.send(body.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return peer.expect(end).split()[-1]


def test_a_message_becomes_a_task(front: Callable[..., SMTPServer]) -> None:
    app = App()
    server = front(app, queue="mail")
    with dial(server, source=("192.0.2.7", 4711)) as peer:
        peer.hello()
        identifier = send(peer)
    (sent,) = app.sent
    assert (sent["name"], sent["queue"], sent["task_id"], sent["retry"]) == ("tasks.receive", "mail", identifier, False)
    got: list[tuple[MailEnvelope, MailContent]] = []
    task = mail_task(Celery("x", broker="memory://", set_as_current=False), "tasks.receive")(
        lambda envelope, content: got.append((envelope, content))
    )
    task.apply(args=sent["args"], throw=True)
    ((envelope, content),) = got
    assert envelope == MailEnvelope(
        id=identifier,
        sender="ann@example.net",
        recipients=("bob@example.org", "cyd@example.org"),
        peer="192.0.2.7",
        hello="client.example",
        identity=None,
        server="mx.example.com",
        time=envelope.time,
    )
    assert content.read() == BODY
    assert content.parse()["Subject"] == "Tea"


def test_a_large_message_goes_by_the_store(front: Callable[..., SMTPServer], tmp_path: Path) -> None:
    app = App()
    server = front(app, store=tmp_path / "store", inline=1000)
    large = BODY + b"x" * 900 + b"\r\n" + b"y" * 900 + b"\r\n"
    with dial(server) as peer:
        peer.hello()
        identifier = send(peer, large)
    path = tmp_path / "store" / f"{identifier}.eml"
    assert app.sent[0]["args"][1] == {"path": str(path)}
    assert path.read_bytes() == large
    read: list[bytes] = []
    task = mail_task(Celery("x", broker="memory://", set_as_current=False), "t")(
        lambda envelope, content: read.append(content.read())
    )
    task.apply(args=app.sent[0]["args"], throw=True)
    assert read == [large]
    assert not path.exists()
    task.apply(args=app.sent[0]["args"], throw=True)  # a worker was killed before it had acknowledged the task
    assert read == [large]
    path.with_suffix(".done").unlink()
    with pytest.raises(FileNotFoundError):
        task.apply(args=app.sent[0]["args"], throw=True, retries=10)


def test_without_a_store_a_large_message_is_refused(
    front: Callable[..., SMTPServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "greensmtp")
    app = App()
    with dial(front(app, inline=20)) as peer:
        peer.hello()
        send(peer, end="552 5.3.4")
    assert "bytes, and no store is set; replying 552" in caplog.text
    assert app.sent == []


def test_without_a_broker_it_is_451(front: Callable[..., SMTPServer], tmp_path: Path) -> None:
    app = App()
    app.do = gone
    with dial(front(app, store=tmp_path / "store")) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")
        app.do = lambda: None
        send(peer)


def test_a_broker_that_hangs_is_451_in_time(front: Callable[..., SMTPServer]) -> None:
    app = App()
    app.do = partial(time.sleep, 0.5)
    with dial(front(app, timeout=0.1)) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")


def test_a_broker_that_hangs_while_its_connection_is_closed_is_451_in_time(
    front: Callable[..., SMTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greensmtp.delivery.celery.is_module_patched", lambda name: True)
    app = App()

    def hang() -> None:
        try:
            gevent.sleep(1000)
        finally:
            gevent.sleep(1000)  # AMQP waits for the broker's CloseOk

    app.do = hang
    with dial(front(app, timeout=0.1)) as peer:
        peer.hello()
        send(peer, end="451 4.4.1")
        app.do = gone
        send(peer, end="451 4.4.1")
        app.do = lambda: None
        send(peer)
    assert len(app.sent) == 1


def test_a_message_that_is_refused_late_leaves_nothing(front: Callable[..., SMTPServer], tmp_path: Path) -> None:
    app = App()
    server = front(app, store=tmp_path / "store", inline=10)

    @server.on("received")
    def fail(session: Session, ack: Ack) -> None:
        raise RuntimeError

    with dial(server) as peer:
        peer.hello()
        send(peer, end="451")
    assert app.sent == []
    assert [*(tmp_path / "store").iterdir()] == []


def test_what_nobody_fetched_is_removed_after_a_week(
    front: Callable[..., SMTPServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name, age in (("old.eml", STALE + 100), ("old.partial", STALE + 100), ("new.eml", 100), ("old.txt", STALE * 2)):
        (store / name).touch()
        os.utime(store / name, (time.time() - age,) * 2)
    front(App(), store=store)
    assert sorted(path.name for path in store.iterdir()) == ["new.eml", "old.txt"]
    assert "old.eml: no program has fetched it in 7 days; removed" in caplog.text


def test_a_task_that_fails_is_tried_again_and_reported_in_the_end(tmp_path: Path) -> None:
    tries: list[str] = []
    reports: list[tuple[bytes, str]] = []
    stored = tmp_path / "x.eml"
    stored.write_bytes(BODY)

    def fail(envelope: MailEnvelope, content: MailContent) -> None:
        tries.append(envelope.id)
        raise ConnectionError("no database")

    app = Celery("x", broker="memory://", set_as_current=False)
    register = mail_task(
        app,
        "t",
        max_retries=2,
        retry_backoff=False,
        default_retry_delay=0,
        report=lambda report, sender: reports.append((report, sender)),
        dead_letters=tmp_path / "dead",
    )
    task = register(fail)
    about = ENVELOPE
    task.apply(args=[about, {"path": str(stored)}])
    assert tries == ["1-2-3"] * 3
    ((report, sender),) = reports
    assert sender == "ann@example.net"
    for text in (b"multipart/report", b"rfc822;bob@example.org", b"Subject: Tea"):
        assert text in report
    assert (tmp_path / "dead" / "1-2-3.eml").read_bytes() == BODY
    kept = json.loads((tmp_path / "dead" / "1-2-3.json").read_bytes())
    assert kept == {**about, "error": "ConnectionError: no database"}
    assert not stored.exists()
    task.apply(args=[about | {"sender": ""}, {"content": ""}])
    assert len(reports) == 1  # the null sender gets none


@pytest.mark.parametrize("with_dead_letters", [True, False])
def test_a_report_that_fails_does_not_lose_the_message(
    tmp_path: Path, with_dead_letters: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stored, dead = tmp_path / "x.eml", tmp_path / "dead"
    stored.write_bytes(BODY)

    def fail(*arguments: Any) -> None:
        raise ConnectionError("no server")

    app = Celery("x", broker="memory://", set_as_current=False)
    options = {"dead_letters": dead} if with_dead_letters else {}
    task = mail_task(app, "t", max_retries=0, report=fail, **options)(fail)
    task.apply(args=[ENVELOPE, {"path": str(stored)}])
    assert "1-2-3: report raised" in caplog.text
    assert stored.exists() is not with_dead_letters
    assert (dead / "1-2-3.eml").exists() is with_dead_letters


@pytest.mark.parametrize(("sender", "with_report"), [("ann@example.net", True), ("", True), ("ann@example.net", False)])
def test_dead_letters_that_cannot_be_kept_do_not_lose_the_message(
    tmp_path: Path, sender: str, with_report: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stored, reports = tmp_path / "x.eml", []
    stored.write_bytes(BODY)

    def fail(*arguments: Any) -> None:
        raise ConnectionError("no database")

    app = Celery("x", broker="memory://", set_as_current=False)
    options = {"report": lambda *arguments: reports.append(arguments)} if with_report else {}
    task = mail_task(app, "t", max_retries=0, dead_letters=stored / "dead", **options)(fail)
    task.apply(args=[{**ENVELOPE, "sender": sender}, {"path": str(stored)}])
    assert f"1-2-3: cannot keep the dead letter in {stored}/dead" in caplog.text
    is_reported = with_report and sender != ""
    assert len(reports) == is_reported
    assert stored.exists() is not is_reported


def test_a_stored_message_that_cannot_be_read_is_not_taken_for_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read(envelope: MailEnvelope, content: MailContent) -> None:
        content.read()

    app = Celery("x", broker="memory://", set_as_current=False)
    task = mail_task(app, "t", max_retries=0, dead_letters=tmp_path / "dead")(read)
    task.apply(args=[ENVELOPE, {"path": str(tmp_path / "x.eml")}])
    assert f"1-2-3: cannot read {tmp_path}/x.eml" in caplog.text
    assert [*tmp_path.iterdir()] == []  # no mark of a task that is done


def test_what_no_worker_finishes_is_sent_again(front: Callable[..., SMTPServer], tmp_path: Path) -> None:
    app = App()
    store = tmp_path / "store"
    server = front(app, store=store, resend=0.2)
    with dial(server) as peer:
        peer.hello()
        identifier = send(peer)
        app.do = gone
        send(peer, end="451 4.4.1")
        app.do = lambda: None
    until(lambda: len(app.sent) >= 3, "the task to come again")
    assert {each["task_id"] for each in app.sent} == {identifier}  # not that of the message that was refused
    assert len({json.dumps(each["args"]) for each in app.sent}) == 1
    task = mail_task(Celery("x", broker="memory://", set_as_current=False), "t")(lambda envelope, content: None)
    task.apply(args=app.sent[0]["args"], throw=True)
    sent = len(app.sent)
    gevent.sleep(0.6)
    assert len(app.sent) <= sent + 1
    assert not (store / f"{identifier}.task").exists()
    assert not (store / f"{identifier}.eml").exists()


def test_a_malformed_note_holds_up_no_other(
    front: Callable[..., SMTPServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    store = tmp_path / "store"
    store.mkdir()
    for name in "0z":  # one of them comes before the other note, whatever the order of the folder is
        (store / f"{name}.task").touch()
        os.utime(store / f"{name}.task", (0, 0))
    with dial(front(app, store=store, resend=0.2)) as peer:
        peer.hello()
        send(peer)
    until(lambda: len(app.sent) >= 2, "the task to come again")
    assert "a note in the store is malformed" in caplog.text


def test_a_delivery_with_fewer_connections_publishes_while_others_are_in_use() -> None:
    """Celery has one limit for the process, and cannot lower it then."""
    many, few = (CeleryTask("t", broker="memory://", connections=number) for number in (20, 1))
    with many._app.connection_for_write(), many._app.pool.acquire():  # type: ignore[attr-defined]
        few._publish("some-id", [])


def test_a_broker_that_hangs_leaves_threads_for_others(front: Callable[..., SMTPServer]) -> None:
    app = App()
    hangs = native("threading", "Event")()
    app.do = hangs.wait
    server = front(app, connections=20, timeout=5)
    with ExitStack() as stack:
        stack.callback(hangs.set)
        for _ in range(12):
            peer = stack.enter_context(dial(server))
            peer.hello()
            peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
            peer.expect("250", "250", "354")
            peer.send(b"Hi.\r\n.\r\n")
        gevent.sleep(0.1)
        with gevent.Timeout(2):
            in_thread_pool(int)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": ""}, "task: expected the name"),
        ({"task": "t"}, "broker or app must be given"),
        ({"task": "t", "broker": "redis://", "app": object()}, "broker or app must be given"),
        ({"task": "t", "broker": "127.0.0.1:6379"}, "broker: expected a URL like"),
        ({"task": "t", "broker": "foo://x"}, "No such transport: foo"),
        ({"task": "t", "broker": "redis://jo:sec#ret@127.0.0.1/0"}, "127.0.0.1:6379/0', for Celery"),
        ({"task": "t", "broker": "redis://localhost", "resend": 5.0}, "resend: expected a store with it"),
        ({"task": "t", "broker": "redis://", "resend": "5", "store": "x"}, "resend: expected a number above 0"),
        ({"task": "t", "broker": "redis://", "timeout": "5"}, "timeout: expected a number above 0"),
        ({"task": "t", "app": 5}, "app: expected a Celery application"),
        ({"task": "t", "broker": "redis://", "inline": 0}, "inline: expected a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        CeleryTask(**options)
    assert "sec" not in str(caught.value)
