"""A bucket in the place of the store's folder, against a server that speaks S3."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from moto.server import ThreadedMotoServer

from greensmtp import Ack, ArgumentError, Reject, Session, SMTPServer
from greensmtp.delivery import CeleryTask, Deliveries, _s3
from greensmtp.delivery._store import open_store, stored_message
from greensmtp.delivery.handed_off import MailContent, MailEnvelope
from greensmtp.delivery.mail_task import mail_task
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.delivery.test_celery import App

pytestmark = pytest.mark.xdist_group("s3")

PLACE = "s3://mail/incoming"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Run a server of S3, on a free port of loopback."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return boto3's client, for a server with an empty bucket ``mail``."""
    import boto3

    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    _s3._client_of.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="mail")
    yield client
    for name in keys(client):
        client.delete_object(Bucket="mail", Key=name)
    client.delete_bucket(Bucket="mail")
    _s3._client_of.cache_clear()


def keys(client: Any) -> list[str]:
    """Return the names of all objects."""
    return [each["Key"] for each in client.list_objects_v2(Bucket="mail").get("Contents", ())]


@pytest.fixture
def front(smtp_server: MakeServer) -> Callable[..., SMTPServer]:
    def make(app: Any, **options: Any) -> SMTPServer:
        server = smtp_server(start=False)
        Deliveries([CeleryTask("tasks.receive", app=app, store=PLACE, **options)]).attach(server)
        server.start()
        return server

    return make


@pytest.mark.parametrize("size", [2_000, 20_000_000])  # in one piece, and in parts
def test_a_large_message_goes_by_the_bucket(bucket: Any, front: Callable[..., SMTPServer], size: int) -> None:
    app = App()
    body = b"Subject: Tea\r\n\r\n" + (b"x" * 76 + b"\r\n") * (size // 78)
    with dial(front(app, inline=1_000)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send(body + b".\r\n")
        identifier = peer.expect("250").split()[-1]
    (sent,) = app.sent
    assert sent["args"][1] == {"path": f"{PLACE}/{identifier}.eml"}
    assert keys(bucket) == [f"incoming/{identifier}.eml"]

    got: list[bytes] = []
    worker = Celery("worker", set_as_current=False)

    @mail_task(worker, "tasks.receive")
    def receive(envelope: MailEnvelope, content: MailContent) -> None:
        assert content.path is None
        got.append(content.read())

    receive.apply(args=sent["args"])
    assert got == [body]
    assert keys(bucket) == [f"incoming/done/{identifier}"]
    receive.apply(args=sent["args"])  # the broker sends it again
    assert len(got) == 1


def test_what_no_worker_has_finished_is_overdue(bucket: Any) -> None:
    store = open_store(PLACE)
    place = store.write("1-2", lambda: io.BytesIO(b"Subject: Tea\r\n\r\nAt four.\r\n"))
    store.note("1-2", "what to do")
    assert store.overdue(60) == []
    assert store.overdue(-60) == ["what to do"]
    assert stored_message(place).read() == b"Subject: Tea\r\n\r\nAt four.\r\n"
    stored_message(place).settle()
    assert store.overdue(-60) == []
    assert keys(bucket) == ["incoming/done/1-2"]


def test_a_note_of_a_message_that_is_done_is_removed(bucket: Any) -> None:
    store = open_store(PLACE)
    stored_message(store.write("1-2", lambda: io.BytesIO(b"x"))).settle()
    store.note("1-2", "too late")
    assert store.overdue(-60) == []
    assert "incoming/tasks/1-2" not in keys(bucket)


def test_a_refused_message_leaves_nothing_in_the_bucket(bucket: Any, front: Callable[..., SMTPServer]) -> None:
    def refuse(session: Session, ack: Ack) -> None:
        raise Reject(550, "5.7.1 no")

    server = front(App(), inline=10)
    server.on("received", refuse)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("Subject: much more than ten bytes\r\n\r\n").startswith("550")
        peer.line("QUIT")
        peer.rest()
        peer.let_it_read()
    assert keys(bucket) == []


def test_a_bucket_that_fails_is_a_disk_that_fails(bucket: Any, front: Callable[..., SMTPServer]) -> None:
    app = App()
    server = front(app, inline=10)
    bucket.delete_bucket(Bucket="mail")
    try:
        with dial(server) as peer:
            peer.hello()
            assert peer.deliver("Subject: much more than ten bytes\r\n\r\n").startswith("451")
    finally:
        bucket.create_bucket(Bucket="mail")
    assert app.sent == []


def test_a_server_does_not_start_without_its_bucket(bucket: Any, front: Callable[..., SMTPServer]) -> None:
    with pytest.raises(OSError, match=r"S3: .* at HeadBucket") as raised:
        Deliveries([CeleryTask("t", app=App(), store="s3://missing")])._lives[0].start(None)  # type: ignore[arg-type]
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "place", ["s3://", "s3:///key", "s3://user:secret@bucket", "s3://bucket?x=1", "s3://bucket:1/"]
)
def test_a_malformed_url_is_an_error_that_shows_how(place: str) -> None:
    with pytest.raises(ArgumentError, match="s3://bucket/prefix") as raised:
        open_store(place)
    assert "secret" not in str(raised.value)


def test_a_bucket_that_cannot_be_used_is_named_at_the_start(
    bucket: Any, front: Callable[..., SMTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.delete_bucket(Bucket="mail")
    try:
        with pytest.raises(OSError, match=r"cannot use the bucket 'mail': S3: 404 at HeadBucket; check its name"):
            front(App())
    finally:
        bucket.create_bucket(Bucket="mail")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "jo:secret")
    _s3._client_of.cache_clear()
    with pytest.raises(OSError, match=r"is the endpoint a URL\?") as caught:
        front(App())
    assert "secret" not in str(caught.value)


def test_a_folder_is_still_a_folder(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.start()
    place = store.write("1-2", lambda: io.BytesIO(b"Subject: Tea\r\n"))
    assert place == str(tmp_path / "store" / "1-2.eml")
    assert stored_message(place).read() == b"Subject: Tea\r\n"
