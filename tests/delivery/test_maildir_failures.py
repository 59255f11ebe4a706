"""Failures of delivery into a Maildir: no partial file is left, and 250 is never sent too early."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent.event import Event

from greensmtp import Ack, MessageStream, Reject, Session, SMTPServer
from greensmtp.delivery import Deliveries, Maildir
from greensmtp.testing import Peer, dial
from tests.delivery.helpers import all_is_well, begin, files, send

MakeServer = Callable[..., SMTPServer]


# Messages that fail for other reasons


def vanish(peer: Peer) -> None:
    begin(peer)
    peer.send(b"Subject: half of\r\n")
    peer.let_it_read()
    peer.close()


def exceed(peer: Peer) -> None:
    assert send(peer, b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n").startswith("552")


def smuggle(peer: Peer) -> None:
    assert send(peer, b"one\ntwo\r\n").startswith("554")


def give_up(peer: Peer) -> None:
    peer.line("MAIL FROM:<>", "RCPT TO:<bob@example.org>")
    peer.send(b"BDAT 5\r\n12345RSET\r\n")
    peer.expect("250", "250", "250", "250")


def greet_again(peer: Peer) -> None:
    peer.line("MAIL FROM:<>", "RCPT TO:<bob@example.org>")
    peer.send(b"BDAT 5\r\n12345EHLO again.example\r\n")
    peer.expect("250", "250", "250", "250")


@pytest.mark.parametrize("fail", [vanish, exceed, smuggle, give_up, greet_again])
def test_half_a_message_leaves_nothing(smtp_server: MakeServer, maildir: Maildir, fail: Callable[[Peer], None]) -> None:
    server = smtp_server(start=False, max_message_size=1500, bare_newlines="reject")
    over = Event()
    server.on("disconnect", lambda session, reason: over.set())
    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        fail(peer)
        if fail is vanish:
            assert over.wait(10)
            assert files(maildir) == []
            return
        assert files(maildir) == []
        assert all_is_well(peer, maildir)


def reject(session: Session, ack: Ack, **given: Any) -> None:
    ack.reject(550, "5.7.1 No")


def raise_reject(session: Session, ack: Ack, **given: Any) -> None:
    raise Reject(550, "5.7.1 No")


def abort(session: Session, stream: MessageStream, ack: Ack) -> None:
    stream.abort(550, "5.7.1 No")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("signal", "handler"),
    [
        ("message", reject),
        ("message", raise_reject),
        ("message", abort),
        ("received", reject),
        ("received", raise_reject),
    ],
)
def test_what_another_handler_refuses_leaves_nothing(
    smtp_server: MakeServer,
    maildir: Maildir,
    caplog: pytest.LogCaptureFixture,
    *,
    signal: str,
    handler: Callable[..., None],
    place: int,
) -> None:
    """In either order of the handlers; a handler that decides after the Maildir gets an error."""
    server = smtp_server(start=False)
    deliveries = Deliveries([maildir])
    handlers: list[tuple[Any, Callable[..., None]]] = [
        ("message", deliveries.tap),
        ("message", deliveries.accept),
        ("received", deliveries.store),
    ]
    handlers.insert(place, (signal, handler))
    for each in handlers:
        server.on(*each)
    too_late = handler is reject and (place == 3 if signal == "received" else place >= 2)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250")
        reply = peer.reply()
        if reply.startswith("354"):
            peer.line("Subject: Tea", ".")
            reply = peer.reply()
        assert reply.startswith("451" if too_late else "550 5.7.1 No")
        peer.line("RSET")
        peer.expect("250")
        if signal == "message" or place < 3:
            assert files(maildir) == []
        assert bool(caplog.records) == too_late


def test_a_tap_that_comes_too_late_stores_nothing(
    smtp_server: MakeServer, maildir: Maildir, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def read(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read()

    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        assert send(peer).startswith("451")
    assert files(maildir) == []
    assert "connect Deliveries.tap before the handlers that read the body" in caplog.text


# No room, no folder

BIG = (b"x" * 98 + b"\r\n") * 3000


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Limit files to 200,000 bytes, which looks like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 200,000 bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def check_full_disk(server: SMTPServer, maildir: Maildir, log: pytest.LogCaptureFixture) -> None:
    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        assert send(peer).startswith("250")
        begin(peer)
        peer.send(BIG)
        peer.line("NOOP", ".")
        peer.expect("452 4.3.1")
        assert files(maildir) == ["new"]
        assert all_is_well(peer, maildir, before=1)
    assert len(log.records) == 1


@pytest.mark.usefixtures("no_large_files")
def test_a_message_that_grows_beyond_what_a_file_may_be_is_452(
    smtp_server: MakeServer, maildir: Maildir, caplog: pytest.LogCaptureFixture
) -> None:
    check_full_disk(smtp_server(start=False), maildir, caplog)


@pytest.mark.subprocess
def test_a_disk_that_gets_full_is_452(
    smtp_server: MakeServer, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_full_disk(smtp_server(start=False), Maildir(small_disk / "maildir"), caplog)


@pytest.mark.subprocess
def test_a_disk_that_is_full_is_452(smtp_server: MakeServer, small_disk: Path) -> None:
    server = smtp_server(start=False)
    maildir = Maildir(small_disk / "maildir")
    maildir.attach(server)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"x" * 300_000)
    with dial(server) as peer:
        peer.hello()
        assert send(peer).startswith("452 4.3.1")
        filler.unlink()
        assert all_is_well(peer, maildir)


@pytest.mark.subprocess
def test_a_disk_that_is_not_writable_is_451_and_an_error_at_once_for_a_new_maildir(
    smtp_server: MakeServer, small_disk: Path
) -> None:
    server = smtp_server(start=False)
    maildir = Maildir(small_disk / "maildir")
    maildir.attach(server)
    with dial(server) as peer:
        peer.hello()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert send(peer).startswith("451 4.3.0")
        with pytest.raises(ValueError, match=r"^maildir: cannot write to '.*/maildir/tmp'$"):
            Maildir(maildir.path)
        with pytest.raises(ValueError, match=r"^maildir: cannot make '.*/another': Read-only file system$"):
            Maildir(small_disk / "another")
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        peer.line("RSET")
        peer.expect("250")
        assert all_is_well(peer, maildir)


@pytest.mark.usefixtures("no_large_files")
def test_a_failure_that_a_reader_swallows_is_a_failure_all_the_same(smtp_server: MakeServer, maildir: Maildir) -> None:
    server = smtp_server(start=False)
    swallowed = []
    deliveries = Deliveries([maildir])
    server.on("message", deliveries.tap)

    @server.on("message")
    def swallow(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            stream.read()
        except Exception as error:
            swallowed.append(error)

    deliveries.attach_rest(server)
    with dial(server) as peer:
        peer.hello()
        assert send(peer, BIG).startswith("452 4.3.1")
    assert len(swallowed) == 1
    assert files(maildir) == []


def test_a_disk_that_gets_full_while_a_late_field_is_inserted_is_452(
    smtp_server: MakeServer, maildir: Maildir, no_large_files: None
) -> None:
    """The kernel writes a part of the last piece, without an error; the error comes with the next write."""
    server = smtp_server(start=False)

    @server.on("received")
    def add_field(session: Session, ack: Ack) -> None:
        stream = session.message
        assert stream is not None
        stream.add_header("X-Late", "y" * 2000)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (stream.size + 1000, hard))  # room for all but the field

    maildir.attach(server)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with dial(server) as peer:
        peer.hello()
        assert send(peer, BIG).startswith("452 4.3.1")
    assert files(maildir) == []


@pytest.mark.parametrize("missing", ["tmp", "new", "."])
def test_a_folder_that_is_gone_is_451_until_it_is_back(smtp_server: MakeServer, maildir: Maildir, missing: str) -> None:
    server = smtp_server(start=False)
    maildir.attach(server)
    shutil.rmtree(maildir.path / missing)
    with dial(server) as peer:
        peer.hello()
        assert send(peer).startswith("451 4.3.0")
        peer.line("RSET")
        peer.expect("250")
        assert files(maildir) == []
        Maildir(maildir.path)
        assert all_is_well(peer, maildir)
