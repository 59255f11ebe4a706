"""The commit of a message to a Maildir: 250 is sent when the disk has it, whatever interrupts the wait."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import GreenletExit, get_hub
from gevent.event import Event

from greensmtp import Ack, Command, Reject, Reply, Session, SMTPServer, when
from greensmtp.chain.chain import Proceed
from greensmtp.delivery import Maildir, _disk, _maildir_file
from greensmtp.session.ack_state import HandlerTimeout
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.delivery.helpers import all_is_well, begin, files, wait_until

# 250 is said when the disk has it


class Disk:
    """Wrap the calls that make a file permanent: record each with its thread, and delay it on request.

    Nothing is flushed: on a busy disk that takes longer than a ``Peer`` waits for a reply.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, str]] = []
        self.threads: set[int] = set()
        self.go_on = threading.Event()
        self.go_on.set()
        #: Set when a step begins.
        self.reached = Event()
        self._hub = get_hub()
        self.fail: dict[str, int] = {}
        #: Hold this step up.
        self.stop_at: str | None = None
        rename = _disk.move

        def watched_sync(descriptor: int) -> None:
            self._step("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())

        def watched_rename(source: Any, target: Any) -> None:
            self._step("rename", Path(source))
            rename(source, target)

        monkeypatch.setattr(os, "fsync", watched_sync)
        monkeypatch.setattr(_maildir_file, "move", watched_rename)

    def _step(self, what: str, path: Path) -> None:
        self.threads.add(threading.get_ident())
        where = path.parent.name if path.is_file() else path.name
        if self.stop_at == f"{what} {where}":
            self.stop_at = None
            self.go_on.clear()
        self._hub.loop.run_callback_threadsafe(self.reached.set if not self.go_on.is_set() else int)
        assert self.go_on.wait(20)
        self.steps.append((what, where))
        if f"{what} {where}" in self.fail:
            raise OSError(self.fail[f"{what} {where}"], "as asked for")


@pytest.fixture
def disk(maildir: Maildir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.go_on.set()


STEPS = [("fsync", "tmp"), ("rename", "tmp"), ("fsync", "new")]


def test_250_is_sent_when_file_and_folder_are_on_the_disk_and_other_connections_go_on(
    smtp_server: MakeServer, maildir: Maildir, disk: Disk
) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    with dial(server) as peer, dial(server) as other:
        peer.hello()
        begin(peer)
        disk.go_on.clear()
        peer.line("Subject: Tea", ".")
        other.hello()  # the hub is not held up
        assert disk.reached.wait(10)
        assert disk.steps == []
        assert files(maildir) == ["tmp"]
        peer.line("NOOP")
        disk.go_on.set()
        peer.expect("250 2.0.0 Ok: queued as", "250 2.0.0 Ok")
    assert disk.steps == STEPS
    assert disk.threads.isdisjoint({threading.get_ident()})
    assert files(maildir) == ["new"]


@pytest.mark.parametrize(("number", "reply"), [("ENOSPC", "452 4.3.1"), ("EDQUOT", "452 4.3.1"), ("EIO", "451 4.3.0")])
@pytest.mark.parametrize("step", [" ".join(step) for step in STEPS])
def test_a_failed_rename_is_reported_and_leaves_no_file(
    smtp_server: MakeServer,
    maildir: Maildir,
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    *,
    step: str,
    number: str,
    reply: str,
) -> None:
    server = smtp_server(start=False, lmtp=True)
    maildir.attach(server)
    disk.fail[step] = getattr(errno, number)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO client.example", "MAIL FROM:<>", "RCPT TO:<bob@x>", "RCPT TO:<cyd@x>", "DATA", "Hi", ".")
        peer.expect("250", "250", "250", "250", "354", reply, reply)
        assert files(maildir) == []
        assert "as asked for" in caplog.text
        disk.fail.clear()
        assert all_is_well(peer, maildir)
    assert "Traceback" not in capfd.readouterr().err


# What interrupts the wait for the disk


def interrupt(server: SMTPServer, how: str) -> None:
    """Interrupt the greenlet of the only connection."""
    (conversation,) = (each for each in server.connections if each.session.message is not None)
    errors: dict[str, BaseException] = {
        "ack_timeout": HandlerTimeout("ack_timeout", 120.0, "END-OF-DATA"),
        "a handler's Timeout": gevent.Timeout(),
        "kill": GreenletExit(),
    }
    throw(conversation.transport.greenlet, errors[how])


def throw(greenlet: Any, error: BaseException) -> None:
    """Throw from the hub, as the deadline monitor and a kill do."""
    done = Event()

    def in_the_hub() -> None:
        done.set()
        greenlet.throw(error)

    get_hub().loop.run_callback(in_the_hub)
    assert done.wait(10)


INTERRUPTIONS = ["ack_timeout", "a handler's Timeout", "kill"]


@pytest.mark.parametrize("how", INTERRUPTIONS)
@pytest.mark.parametrize("step", [" ".join(step) for step in STEPS])
@pytest.mark.parametrize("size", [0, 600_000], ids=["small", "large"])
def test_an_interruption_leaves_250_and_the_file_or_neither(
    smtp_server: MakeServer,
    maildir: Maildir,
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
    *,
    how: str,
    step: str,
    size: int,
) -> None:
    server = smtp_server()
    maildir.attach(server)
    disk.stop_at = step
    with dial(server) as peer:
        peer.hello()
        begin(peer)
        peer.send(b"Subject: Tea\r\n" + b"x\r\n" * (size // 3) + b".\r\n")
        assert disk.reached.wait(10)
        interrupt(server, how)
        too_late = step != "fsync tmp"
        if not too_late:
            if how == "kill":
                peer.expect_end()
            else:
                peer.expect("451")
            disk.go_on.set()
            wait_until(lambda: files(maildir) == [])
            assert ("rename", "tmp") not in disk.steps
            return
        interrupt(server, how)  # nor does it help to insist
        disk.go_on.set()
        peer.expect("250 2.0.0 Ok: queued as")
        assert files(maildir) == ["new"]
        if how == "kill":
            peer.expect_end()
        else:
            assert all_is_well(peer, maildir, before=1)


@pytest.mark.parametrize("delay", range(0, 60, 3))
def test_at_every_moment_either_a_file_or_no_250(smtp_server: MakeServer, maildir: Maildir, delay: int) -> None:
    """The kill comes at some moment of the commit, on the real disk."""
    server = smtp_server()
    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        begin(peer)
        peer.line("Subject: Tea", ".")
        wait_until(lambda: any(each.session.message is not None for each in server.connections))
        gevent.sleep(delay / 20_000)
        for conversation in list(server.connections):
            greenlet: Any = conversation.transport.greenlet
            if greenlet is not None:
                throw(greenlet, GreenletExit())
        said = peer.rest()
    wait_until(lambda: list((maildir.path / "tmp").iterdir()) == [])
    assert files(maildir) == ["new"] * (b"250 2.0.0 Ok: queued" in said)


def test_the_wait_for_lmtps_other_recipients_is_not_begun_again(
    smtp_server: MakeServer, maildir: Maildir, disk: Disk
) -> None:
    server = smtp_server(lmtp=True)
    maildir.attach(server)
    disk.stop_at = "fsync tmp"
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO client.example", "MAIL FROM:<>", "RCPT TO:<bob@x>", "RCPT TO:<cyd@x>", "DATA", "Hi", ".")
        peer.expect("250", "250", "250", "250", "354")
        assert disk.reached.wait(10)
        interrupt(server, "ack_timeout")
        peer.expect("451", "451 4.3.0")
        disk.go_on.set()
        wait_until(lambda: files(maildir) == [])


# What answers behind the Maildir


def answer_451(session: Session, command: Command, proceed: Proceed) -> Reply:
    assert proceed(session, command).code == 250
    return Reply(451, "4.7.1 on second thoughts")


def answer_with_an_error(session: Session, command: Command, proceed: Proceed) -> Reply:
    raise LookupError(proceed(session, command))


def answer_with_a_timeout(session: Session, command: Command, proceed: Proceed) -> Reply:
    raise gevent.Timeout(proceed(session, command).code)


@pytest.mark.parametrize("answer", [answer_451, answer_with_an_error, answer_with_a_timeout])
@pytest.mark.parametrize("size", [0, 600_000], ids=["small", "large"])
def test_what_a_middleware_refuses_after_the_maildir_leaves_no_file(
    smtp_server: MakeServer, maildir: Maildir, answer: Callable[[Session, Command, Proceed], Reply], size: int
) -> None:
    server = smtp_server(start=False, middleware=[when(lambda session: "refuse" in session.to[0], Only(answer))])
    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<refuse@example.org>", "DATA")
        peer.expect("250", "250", "354")
        peer.send(b"Subject: Tea\r\n" + b"x\r\n" * (size // 3) + b".\r\n")
        peer.expect("451")
        assert files(maildir) == []
        assert all_is_well(peer, maildir)


class Only:
    """A middleware that handles END-OF-DATA only."""

    verbs = ("END-OF-DATA",)

    def __init__(self, answer: Callable[[Session, Command, Proceed], Reply]) -> None:
        self._answer = answer

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return self._answer(session, command, proceed)


def test_what_a_later_handler_refuses_leaves_no_file(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)

    @server.on("received")
    def refuse(session: Session, ack: Ack) -> None:
        if not session.from_:
            raise Reject(550, "5.7.1 no")

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@example.org>", "DATA", "Subject: Tea", ".")
        peer.expect("250", "250", "354", "550")
        assert files(maildir) == []
        assert all_is_well(peer, maildir)


@pytest.mark.parametrize("refused", [["bob@x"], ["cyd@x"], ["bob@x", "cyd@x"]])
def test_in_lmtp_the_file_is_stored_if_one_recipient_gets_250(
    smtp_server: MakeServer, maildir: Maildir, refused: list[str]
) -> None:
    def answer(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(451, "4.7.1 no") if command.argument in refused else reply

    server = smtp_server(start=False, lmtp=True, middleware=[Only(answer)])
    maildir.attach(server)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO client.example", "MAIL FROM:<>", "RCPT TO:<bob@x>", "RCPT TO:<cyd@x>", "DATA", "Hi", ".")
        peer.expect("250", "250", "250", "250", "354")
        peer.expect(*("451" if name in refused else "250 2.0.0 Ok: queued as" for name in ("bob@x", "cyd@x")))
    assert files(maildir) == ["new"] * (len(refused) < 2)


@pytest.mark.parametrize("step", ["rename tmp", "fsync new"])
def test_a_stop_after_the_rename_has_begun_waits_for_250(
    smtp_server: MakeServer, maildir: Maildir, disk: Disk, step: str
) -> None:
    server = smtp_server()
    maildir.attach(server)
    disk.stop_at = step
    with dial(server) as peer:
        peer.hello()
        begin(peer)
        peer.line("Subject: Tea", ".")
        assert disk.reached.wait(10)
        stopping = gevent.spawn(server.stop, 0.0)
        wait_until(lambda: any(each.dismissed for each in server.connections))
        disk.go_on.set()
        peer.expect("250 2.0.0 Ok: queued as", "421")
        stopping.join()
    assert files(maildir) == ["new"]


def test_a_timeout_while_the_disk_thread_is_awaited_is_the_end_of_it_for_all_recipients(
    smtp_server: MakeServer, maildir: Maildir, disk: Disk
) -> None:
    """The disk thread works for another message, so that the job has not begun."""
    server = smtp_server(lmtp=True)
    maildir.attach(server)
    disk.stop_at = "fsync tmp"
    with dial(server) as first, dial(server) as peer:
        for each in (first, peer):
            each.expect("220")
            each.line("LHLO client.example", "MAIL FROM:<>", "RCPT TO:<bob@x>", "RCPT TO:<cyd@x>", "DATA", "Hi", ".")
            each.expect("250", "250", "250", "250", "354")
            assert disk.reached.wait(10)
        wait_until(lambda: len(maildir.disk._jobs) == 1)
        name = peer.socket.getsockname()
        (waiting,) = (each for each in server.connections if each.session.peer == name)
        throw(waiting.transport.greenlet, HandlerTimeout("ack_timeout", 120.0, "END-OF-DATA"))
        peer.expect("451", "451 4.3.0")
        disk.go_on.set()
        first.expect("250", "250")
        peer.line("RSET")
        peer.expect("250")
        wait_until(lambda: files(maildir) == ["new"])


# No file work in the hub


@pytest.mark.parametrize("size", [0, 300_000, 900_000])
@pytest.mark.parametrize("end", [b".\r\n", b""], ids=["stored", "abandoned"])
def test_the_hub_does_no_file_work(
    smtp_server: MakeServer, maildir: Maildir, monkeypatch: pytest.MonkeyPatch, size: int, end: bytes
) -> None:
    hub = threading.get_ident()
    done: list[str] = []

    def audit(event: str, arguments: Any) -> None:
        if watching and threading.get_ident() == hub and str(maildir.path) in str(arguments):
            done.append(f"{event} {arguments}")

    watching = False
    sys.addaudithook(audit)
    server = smtp_server()
    over = Event()
    server.on("disconnect", lambda session, reason: over.set())
    maildir.attach(server)
    try:
        with dial(server) as peer:
            peer.hello()
            watching = True
            begin(peer)
            peer.send(b"Subject: Tea\r\n" + b"x\r\n" * (size // 3) + end)
            if end:
                peer.expect("250 2.0.0 Ok: queued as")
            else:
                peer.close()
            assert end or over.wait(10)
    finally:
        watching = False
    assert done == []
    assert files(maildir) == ["new"] * bool(end)
