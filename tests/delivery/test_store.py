"""Stores of large messages while their place hangs: a folder, and a bucket of S3."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from greensmtp import SMTPServer
from greensmtp._native import native
from greensmtp.delivery import CeleryTask, Deliveries, Spool, _s3, _store
from greensmtp.delivery._store import open_store
from greensmtp.session.spool import BATCH
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from greensmtp.thread_pool import in_thread_pool
from tests.delivery.test_celery import App
from tests.helpers import until


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have threads that store a message wait for an event."""
    event = native("threading", "Event")()
    event.written = []

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def wait_first(*arguments: Any, **keywords: Any) -> None:
            event.wait()
            function(*arguments, **keywords)
            event.written.append(arguments)

        return wait_first

    monkeypatch.setattr(_store, "write_durably", after(_store.write_durably))
    monkeypatch.setattr(_store.StoredMessage, "remove", after(_store.StoredMessage.remove))
    for name in ("_upload", "_ask"):
        monkeypatch.setattr(_s3, name, after(lambda *arguments, **keywords: None))
    yield event
    event.set()


@pytest.fixture
def slow(smtp_server: MakeServer, tmp_path: Path) -> SMTPServer:
    """Return a server with a store, whose messages must not take long."""
    server = smtp_server(start=False, handler_timeout=0.3)
    Deliveries([CeleryTask("tasks.receive", app=App(), store=tmp_path / "store", inline=10)]).attach(server)
    server.start()
    return server


@pytest.mark.parametrize("does", ["write", "note", "remove"])
@pytest.mark.parametrize("place", ["folder", "s3://mail/incoming"])
def test_a_store_that_hangs_leaves_threads_for_others(hangs: Any, tmp_path: Path, place: str, does: str) -> None:
    store = open_store(place if "://" in place else tmp_path)
    calls: dict[str, Callable[[str], object]] = {
        "write": lambda name: store.write(name, io.BytesIO),
        "note": lambda name: store.note(name, "what to do"),
        "remove": lambda name: store.remove(f"{place if '://' in place else tmp_path}/{name}.eml"),
    }
    writing = [gevent.spawn(calls[does], f"{number}-1") for number in range(12)]
    gevent.sleep(0.1)
    with gevent.Timeout(2):
        in_thread_pool(int)
    hangs.set()
    gevent.joinall(writing, timeout=20, raise_error=True)


@pytest.mark.parametrize("size", [1_000, 2 * BATCH])  # in memory, and on disk
def test_a_message_whose_client_was_refused_meanwhile_is_removed(
    hangs: Any, slow: SMTPServer, tmp_path: Path, size: int
) -> None:
    with dial(slow) as peer:
        peer.hello()
        assert peer.deliver(("x" * 78 + "\r\n") * (size // 80)).startswith("451")
    hangs.set()
    until(lambda: hangs.written, "the thread has written the message")
    until(lambda: not [*(tmp_path / "store").iterdir()], "it is removed")


@pytest.mark.parametrize(
    ("make", "runs"),
    [
        (lambda path: CeleryTask("t", app=App(), store=path, resend=60.0), "_resender"),
        (lambda path: Spool(path, to="smtp://127.0.0.1:1"), "_sender"),
    ],
)
def test_a_delivery_ends_with_its_server_though_it_failed_to_start_before(
    smtp_server: MakeServer, tmp_path: Path, make: Callable[[Path], Any], runs: str
) -> None:
    path = tmp_path / "folder"
    path.touch()
    delivery = make(path)
    server = smtp_server(start=False)
    with pytest.raises(OSError, match="folder"):
        delivery.start(server)
    path.unlink()
    delivery.start(server)
    assert getattr(delivery, runs) is not None
    delivery.stop(server)
    assert getattr(delivery, runs) is None
