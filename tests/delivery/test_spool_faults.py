"""Spool: full disks, killed processes, damaged files, clocks and slow domains."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greensmtp import Reply, SMTPServer
from greensmtp.delivery.spool import Spool
from greensmtp.delivery.spool_folder import Busy, Entry, Folder, State
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.delivery.test_spool import BODY, folder, front, quick, refusing, send, url
from tests.helpers import until

__all__ = ["folder", "front", "quick"]

NAME = "6447ef957f640-5c1f0a-1f"


def add(folder: Folder, name: str = NAME, *to: str) -> None:
    folder.make()
    recipients = [[each, {}] for each in to or ("bob@example.org", "cyd@example.org")]
    folder.add(name, {"time": time.time(), "from": "", "from_ext": {}, "to": recipients}, BODY)


def test_a_full_disk_sends_nothing_twice(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"cyd": (450, "4.2.1 later")})
    failures = []
    known = Folder.write_state

    def full(*arguments: Any) -> None:
        failures.append(arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write_state", full)
    name = send(front(url(mx), schedule="0.1s*2, 500s"), "bob@example.org", "cyd@example.org")
    until(lambda: len(failures) > 3, "some tries to write the state")
    assert len(got.mail) == 1
    monkeypatch.setattr(Folder, "write_state", known)
    until(lambda: folder.state(name).attempts == 3, "the other tries")
    assert [recipients for _, recipients, _ in got.mail] == [["bob@example.org"]]


def test_a_report_that_finds_a_full_disk_is_added_later(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    refusing(mx, {"cyd": (550, "5.1.1 no")})
    failures = []
    known = Folder.add

    def full(*arguments: Any) -> None:
        failures.append(arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "add", full)
    send(front(url(mx)), "bob@example.org", "cyd@example.org")
    until(lambda: len(failures) > 3, "some tries to add the report")
    monkeypatch.setattr(Folder, "add", known)
    until(lambda: len(got.mail) == 2 and not folder.names(), "the report")
    assert [recipients for _, recipients, _ in got.mail] == [["bob@example.org"], ["ann@example.net"]]


@pytest.mark.parametrize("step", range(8))
def test_a_process_that_is_killed_while_it_buries_a_message_leaves_its_state(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Each rename, flush and removal is the last one once: the recipient who has the message never gets it again."""
    add(folder)
    left = [step]

    class Killed(BaseException):
        """Stands for the end of the process."""

    def counted(known: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return known(*arguments, **options)

        return call

    entry = folder.open(NAME)
    entry.state = State(attempts=1, done=["bob@example.org"])
    entry.save()
    entry.state.done.append("cyd@example.org")
    entry.state.lost.append("cyd@example.org")
    with monkeypatch.context() as patched:
        for name in ("replace", "unlink"):
            patched.setattr(Path, name, counted(getattr(Path, name)))
        patched.setattr("os.fsync", counted(__import__("os").fsync))
        try:
            entry.bury()
        except Killed:
            pass
    entry.close()
    assert sorted(folder.names() + folder.names("dead")) == [NAME]
    within = "new" if folder.names() else "dead"
    with folder.open(NAME, within) as found:
        assert "bob@example.org" not in found.waiting
        assert within == "new" or found.state.lost == ["cyd@example.org"]


def test_a_message_whose_removal_was_interrupted_is_not_sent_again(
    smtp_server: MakeServer, front: Callable[..., SMTPServer], folder: Folder
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    both = ["bob@example.org", "cyd@example.org"]
    add(folder)
    add(folder, NAME + "0")
    folder.write_state(NAME, State(attempts=1, done=both))
    folder.write_state(NAME + "0", State(attempts=1, done=both, lost=both[:1]))
    front(url(mx))
    until(lambda: not folder.names(), "the spool to be empty")
    assert folder.names("dead") == [NAME + "0"]
    assert got.mail == []


def test_a_clock_that_is_set_back_while_a_message_waits_holds_nothing(
    smtp_server: MakeServer,
    front: Callable[..., SMTPServer],
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mx = smtp_server()
    refusing(mx, {"bob": (450, "4.2.1 later")})
    name = send(front(url(mx), schedule="0.5s*50"))
    until(lambda: folder.state(name).attempts == 1, "a try")
    known = time.time
    monkeypatch.setattr("time.time", lambda: known() - 86400)
    until(lambda: folder.state(name).attempts == 2, "the next try")


def test_an_error_of_ours_counts_as_a_try(
    smtp_server: MakeServer,
    front: Callable[..., SMTPServer],
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mx = smtp_server()
    helpers.Deliveries(mx)

    def broken(entry: Entry) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Entry, "source", broken)
    name = send(front(url(mx), schedule="0.1s*2", at_the_end="dead-letter"))
    until(lambda: folder.names("dead") == [name], "the end of the schedule")
    assert "RuntimeError: a bug" in caplog.text


class Hops:
    """A next hop for each domain: one that hangs, another that answers."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.hanging = self.most = 0
        self.gate = Event()

    def __call__(self, hostname: str) -> Hops:
        return self

    def open(self, hostname: str) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def next_hops(self, waiting: Any) -> Any:
        self.tried += waiting
        if waiting[0].domain == "slow.example":
            self.hanging += 1
            self.most = max(self.most, self.hanging)
            assert self.gate.wait(20)
            gevent.sleep(0.01)
            self.hanging -= 1
        return [(Reply(550, "5.1.1 no"), waiting)]


def test_a_slow_domain_leaves_room_for_others(smtp_server: MakeServer, folder: Folder) -> None:
    spool = Spool(folder.path, mx=True, concurrency=4, domain_concurrency=2)
    hops = Hops()
    for number in range(6):
        add(folder, f"6447ef957f64{number}-5c1f0a-1f", "bob@slow.example")
    add(folder, "6447ef957f64f-5c1f0a-1f", "cyd@quick.example")
    spool._make_next_hop = hops  # type: ignore[assignment]
    server: Any = smtp_server(start=False)
    spool.start(server)
    until(lambda: "cyd@quick.example" in hops.tried, "the quick domain")
    until(lambda: hops.hanging == 2, "the slow domain")
    assert hops.tried.count("bob@slow.example") == 2

    def remove_one() -> bool:
        for number in range(6):
            with suppress(Busy), folder.open(f"6447ef957f64{number}-5c1f0a-1f") as entry:
                entry.remove()
                return True
        return False

    # One that is removed while it waits for its turn holds up none behind it.
    until(remove_one, "one that is not being tried")
    hops.gate.set()
    until(lambda: not folder.names(), "all of them")
    assert hops.most == 2
    assert hops.tried.count("bob@slow.example") == 5
    spool.stop(server)


def test_a_folder_in_the_place_of_a_file_keeps_nothing_from_starting(folder: Folder) -> None:
    folder.make()
    (folder.path / "tmp" / "lost+found").mkdir()
    folder.sweep(time.time() + 40 * 3600)
    assert (folder.path / "tmp" / "lost+found").is_dir()
