"""LoadShed: mail is turned away while the server cannot take it, and taken again afterwards."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from greensmtp import health
from greensmtp._native import native
from greensmtp.middleware import LoadShed, load_shed
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

PLENTY = (1 << 50, 1 << 30)
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(health, "_stores", {})  # those of other tests
    health.add_store(tmp_path)
    yield str(tmp_path)
    health.remove_store(tmp_path)
    assert str(tmp_path) not in health.stores()


def test_a_late_hub_refuses_connections_and_mail_of_open_ones(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    shed = LoadShed(max_lag=1.0)
    server = smtp_server(start=False, middleware=[shed])
    with dial(server) as peer:
        peer.hello()
        shed.note_lag(0.9, 100.0)
        shed.note_lag(0.9, 101.0)
        peer.line("MAIL FROM:<ann@example.com>", "RSET")
        peer.expect("250", "250")
        shed.note_lag(1.0, 102.0)
        shed.note_lag(1.0, 103.0)
        peer.line("MAIL FROM:<ann@example.com>", "NOOP")
        peer.expect("452 4.3.1", "250")
        with dial(server) as other:
            other.expect("421 4.3.2")
            other.expect_end()
        shed.note_lag(0.6, 104.0)  # more than half of the limit
        shed.note_lag(0.4, 108.9)
        peer.line("MAIL FROM:<ann@example.com>")
        peer.expect("452 4.3.1")
        shed.note_lag(0.4, 109.0)
        peer.line("MAIL FROM:<ann@example.com>")
        peer.expect("250")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines[0] == "refusing mail: the hub is late by 1.0 s"
    assert lines[1].endswith("3 connections and messages were refused")
    assert len(lines) == 2


def test_a_hub_that_is_late_once_refuses_nothing() -> None:
    shed = LoadShed(max_lag=1.0)
    for now in (0.0, 11.0, 22.0):
        shed.note_lag(5.0, now)
        shed.note_lag(-0.2, now + 0.1)
        assert not shed.reasons
    shed.note_lag(5.0, 32.0)
    assert shed.reasons == {"hub": "the hub is late by 5.0 s"}


def test_mail_is_accepted_again_once_the_hub_was_in_time_for_a_while() -> None:
    """A burst of late ticks is one overload, not one for each of them."""
    shed = LoadShed(max_lag=1.0)
    for now in (100.0, 103.0, 106.0, 109.0):
        shed.note_lag(1.5, now)
        shed.note_lag(0.0, now + 2.9)
        assert bool(shed.reasons) == (now > 100.0)
    shed.note_lag(0.0, 114.1)
    assert not shed.reasons


def test_each_reason_that_begins_or_ends_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    shed = LoadShed(max_lag=1.0, max_memory=100 * MIB)
    shed.note_lag(1.5, 100.0)
    shed.note_lag(1.5, 101.0)
    shed.note_lag(2.5, 102.0)
    shed.note_resources(120 * MIB, None, {})
    shed.note_lag(0.0, 110.0)
    shed.note_resources(10 * MIB, None, {})
    assert [record.getMessage().partition(" after ")[0] for record in caplog.records] == [
        "refusing mail: the hub is late by 1.5 s",
        "refusing mail: the hub is late by 2.5 s; the process has 120 MiB",
        "still refusing mail: the process has 120 MiB",
        "accepting mail again",
    ]


def test_a_store_that_cannot_be_examined_refuses_mail(smtp_server: MakeServer, store: str) -> None:
    Path(store).rmdir()
    shed = LoadShed()
    server = smtp_server(middleware=[shed])
    with gevent.Timeout(10):
        while not shed.reasons:
            gevent.sleep(0.01)
    assert shed.reasons == {"store": f"{store} cannot be examined: No such file or directory"}
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>")
        peer.expect("452 4.3.1 No space")


def test_a_store_that_does_not_answer_refuses_mail(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = native("threading", "Event")()
    for name, seconds in (("INTERVAL", 0.02), ("SLOW_INTERVAL", 0.02), ("STALLED_SECONDS", 0.1)):
        monkeypatch.setattr(load_shed, name, seconds)
    monkeypatch.setattr(load_shed, "_measure", lambda folders: answers.wait(20) and (0, None, {}))
    shed = LoadShed()
    smtp_server(middleware=[shed])
    try:
        with gevent.Timeout(10):
            while "store" not in shed.reasons:
                gevent.sleep(0.01)
        assert shed.reasons["store"].startswith("a store has not answered for")
    finally:
        answers.set()
    with gevent.Timeout(10):
        while shed.reasons:
            gevent.sleep(0.01)


def test_a_full_store_refuses_mail_and_no_connection(smtp_server: MakeServer) -> None:
    shed = LoadShed(min_free=64 * MIB, min_inodes=1000)
    server = smtp_server(start=False, middleware=[shed])
    with dial(server) as peer:
        peer.hello()
        for space in ((63 * MIB, 5000), (1 << 40, 999), (65 * MIB, 5000), (1 << 40, 1010)):
            shed.note_resources(0, None, {"mail": space, "other": PLENTY})
            peer.line("MAIL FROM:<ann@example.com>")
            peer.expect("452 4.3.1 No space")
        shed.note_resources(0, None, {"mail": (80 * MIB, 5000), "other": PLENTY})
        peer.line(f"MAIL FROM:<ann@example.com> SIZE={17 * MIB}", f"MAIL FROM:<ann@example.com> SIZE={15 * MIB}")
        peer.expect("452 4.3.1 No space", "250")


def test_memory_counts_by_what_is_given_or_by_the_containers_limit(smtp_server: MakeServer) -> None:
    given, container, none = LoadShed(max_memory=100 * MIB), LoadShed(), LoadShed()
    given.note_resources(100 * MIB, None, {})
    container.note_resources(181 * MIB, 200 * MIB, {})
    none.note_resources(1 << 50, None, {})
    assert [bool(each.reasons) for each in (given, container, none)] == [True, True, False]
    with dial(smtp_server(start=False, middleware=[container])) as peer:
        peer.expect("421 4.3.2")
    for each in (given, container):
        each.note_resources(80 * MIB, 200 * MIB, {})
        assert not each.reasons


def test_it_measures_the_real_hub_and_the_real_store(
    smtp_server: MakeServer, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_shed, "INTERVAL", 0.02)
    monkeypatch.setattr(load_shed, "SLOW_INTERVAL", 0.02)
    monkeypatch.setattr(load_shed, "QUIET_SECONDS", 0.2)
    shed = LoadShed(max_lag=0.2, min_free=1 << 62)
    server = smtp_server(middleware=[shed])
    with gevent.Timeout(10):
        while "store" not in shed.reasons:
            gevent.sleep(0.01)
    assert store in shed.reasons["store"]
    with gevent.Timeout(10):
        while "hub" not in shed.reasons:
            time.sleep(0.3)  # blocks the hub
            gevent.sleep(0.05)
        while "hub" in shed.reasons:
            gevent.sleep(0.01)
    server.stop()
    assert not load_shed._Sampler._running


def test_one_timer_measures_for_all_servers(smtp_server: MakeServer) -> None:
    shed, other = LoadShed(), LoadShed()
    first, second = smtp_server(middleware=[shed]), smtp_server(middleware=[shed, other])
    assert len(load_shed._Sampler._running) == 1
    first.stop()
    assert len(load_shed._Sampler._running) == 1
    second.stop()
    assert not load_shed._Sampler._running


@pytest.mark.parametrize(
    "arguments", [{"max_lag": 0}, {"max_lag": "1"}, {"max_memory": 0}, {"min_free": -1}, {"min_inodes": 1.5}]
)
def test_wrong_arguments_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}.* takes "):
        LoadShed(**arguments)  # type: ignore[arg-type]
