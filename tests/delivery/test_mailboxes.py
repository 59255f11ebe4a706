"""A Maildir for each recipient: nothing that a client sends leaves the tree, and each gets its own message."""

from __future__ import annotations

import os
import string
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp import SMTPServer
from greensmtp.delivery import Deliveries, Maildir, Route, _disk
from greensmtp.delivery._mailbox_path import fixed_part, mailbox, safe_part
from greensmtp.errors import ArgumentError, ProtocolError
from greensmtp.protocol.address import Address
from greensmtp.protocol.mailbox import quote_local_part
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

# Paths

#: What a client may send, and what no client can.
HOSTILE = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="./\\\0%~+ aA\u212a\u0301e:", max_size=40),
    st.sampled_from(["..", ".", "", "/", "../../etc/passwd", "new", "tmp", "%2e%2e", "a" * 400, "\u00e9" * 200, "\0"]),
)


@given(HOSTILE, HOSTILE, st.sampled_from(["", "+", "-"]))
def test_no_address_leaves_the_tree(local_part: str, domain: str, subaddress: str) -> None:
    address = Address("x", local_part, domain)
    template = "/srv/mail/{domain}/{local}"
    found = mailbox(template, address, hostname="mx.example.com", subaddress=subaddress)
    assert found.parts[:3] == ("/", "srv", "mail")
    assert len(found.parts) == 5
    assert os.path.normpath(found) == str(found)
    for part in found.parts[3:]:
        assert set(part) <= set(string.ascii_lowercase + string.digits + "_=+.-%~ABCDEF")
        assert not part.startswith(".")
        assert 1 <= len(part) <= 200


@given(HOSTILE, HOSTILE)
def test_two_mailboxes_have_one_folder_only_if_they_differ_in_case_or_normalization(one: str, other: str) -> None:
    import unicodedata

    def same(text: str) -> bytes:
        return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass").lower()

    assert (safe_part(one) == safe_part(other)) == (same(one) == same(other))


@given(st.text(max_size=60))
def test_addresses_that_a_server_accepts_have_a_folder(text: str) -> None:
    try:
        address = Address.parse(f"{quote_local_part(text)}@b.example")
    except ProtocolError:
        return
    assert mailbox("m/{address}", address, hostname="h", subaddress="").parent == Path("m")


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("Jo.Doe+news@Inbox.Example", "m/inbox.example/jo.doe"),
        ("jo@b\u00fccher.example", "m/xn--bcher-kva.example/jo"),
        ('"../../etc"@b.example', "m/b.example/%2E.%2F..%2Fetc"),
        ('".hidden"@b.example', "m/b.example/%2Ehidden"),
        ('"a b"@b.example', "m/b.example/a%20b"),
        ('""@b.example', "m/b.example/%"),
        ("+x@b.example", "m/b.example/+x"),
        ("jo@[192.0.2.1]", "m/%5B192.0.2.1%5D/jo"),
        ("jo@[IPv6:2001:db8::1]", "m/%5Bipv6%3A2001%3Adb8%3A%3A1%5D/jo"),
        ("postmaster", "m/mx.example.com/postmaster"),
        ("\u212aa@b.example", "m/b.example/ka"),
        ("e\u0301@b.example", "m/b.example/%C3%A9"),
    ],
)
def test_the_folder_of_an_address(address: str, folder: str) -> None:
    found = mailbox("m/{domain}/{local}", Address.parse(address), hostname="mx.example.com", subaddress="+")
    assert found == Path(folder)


def test_the_path_is_checked() -> None:
    for path, complaint in (
        ("m/{user}", "expected {local}, {domain} or {address}; got {user}"),
        ("m/{local", "expected '}' before end of string"),
        ("m/{local!r}", "expected {local}"),
        ("m/{local.__class__}", "expected {local}"),
    ):
        with pytest.raises(ArgumentError) as error:
            Maildir(path)
        assert error.value.text.startswith(complaint)
    with pytest.raises(ArgumentError, match="create and subaddress are about them"):
        Maildir("m", create=False)
    with pytest.raises(ArgumentError, match="expected 'filesystem' or 'files'; got 'no'"):
        Maildir("m", sync="no")  # type: ignore[arg-type]
    assert [fixed_part(path) for path in ("m/{domain}/{local}", "{local}", "a/b-{local}", "a")] == [
        "m/",
        ".",
        "a/",
        "a",
    ]


# Messages


def stored(folder: Path) -> dict[str, list[str]]:
    """Return the names of the messages, by the Maildir; there is none in tmp."""
    assert not [*folder.rglob("tmp/*")]
    found: dict[str, list[str]] = {}
    for path in folder.rglob("new/*"):
        found.setdefault(str(path.parent.parent.relative_to(folder)), []).append(path.name)
    return found


def send(peer: Peer, *recipients: str, replies: int = 1) -> list[str]:
    peer.line("MAIL FROM:<ann@a.example>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA")
    peer.expect("250", *["250"] * len(recipients), "354")
    peer.line("Subject: Tea", ".")
    return [peer.reply() for _ in range(replies)]


@pytest.mark.parametrize("lmtp", [False, True])
def test_each_recipient_gets_the_message_once(smtp_server: MakeServer, tmp_path: Path, lmtp: bool) -> None:
    server = smtp_server(start=False, lmtp=lmtp)
    Maildir(tmp_path / "mail" / "{domain}" / "{local}").attach(server)
    to = ["bob@b.example", "Bob@b.example", "cyd@c.example", '"../dan"@c.example']
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO client.example" if lmtp else "EHLO client.example")
        peer.expect("250")
        replies = send(peer, *to, replies=len(to) if lmtp else 1)
        assert all(reply.startswith("250 2.0.0 Ok: queued as") for reply in replies)
    found = stored(tmp_path / "mail")
    assert {folder: len(names) for folder, names in found.items()} == {
        "b.example/bob": 1,
        "c.example/cyd": 1,
        "c.example/%2E.%2Fdan": 1,
    }
    paths = [*(tmp_path / "mail").rglob("new/*")]
    assert {path.stat().st_nlink for path in paths} == {3}  # it was written once
    assert b"Envelope-To" not in paths[0].read_bytes()  # no recipient sees the others


def test_where_there_are_no_links_the_message_is_copied(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: str, target: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    server = smtp_server(start=False)
    Maildir(tmp_path / "{local}").attach(server)
    monkeypatch.setattr(os, "link", no_link)
    with dial(server) as peer:
        peer.hello()
        send(peer, "bob@b.example", "cyd@c.example")
    paths = [*tmp_path.rglob("new/*")]
    assert len({path.read_bytes() for path in paths}) == 1
    assert [(path.stat().st_nlink, path.stat().st_mode & 0o777) for path in paths] == [(1, 0o600)] * 2
    assert len(stored(tmp_path)) == 2


def test_a_mailbox_that_cannot_be_written_refuses_all_in_smtp(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = smtp_server(start=False)
    maildir = Maildir(tmp_path / "{local}")
    maildir.attach(server)
    (tmp_path / "cyd").write_text("in the way")
    with dial(server) as peer:
        peer.hello()
        assert send(peer, "bob@b.example", "cyd@c.example")[0].startswith("451 4.3.0")
        (tmp_path / "cyd").unlink()
        assert send(peer, "bob@b.example", "cyd@c.example")[0].startswith("250")
    assert {folder: len(names) for folder, names in stored(tmp_path).items()} == {"bob": 1, "cyd": 1}


def test_a_mailbox_that_was_removed_is_made_again(smtp_server: MakeServer, tmp_path: Path) -> None:
    import shutil

    server = smtp_server(start=False)
    Maildir(tmp_path / "{local}").attach(server)
    with dial(server) as peer:
        peer.hello()
        send(peer, "bob@b.example")
        shutil.rmtree(tmp_path / "bob")
        assert send(peer, "bob@b.example")[0].startswith("451")
        assert send(peer, "bob@b.example")[0].startswith("250")


def test_without_create_unknown_mailboxes_are_refused_at_rcpt(smtp_server: MakeServer, tmp_path: Path) -> None:
    server: SMTPServer = smtp_server(start=False)
    for name in ("tmp", "new", "cur"):
        (tmp_path / "jo" / name).mkdir(parents=True)
    maildir = Maildir(tmp_path / "{local}", create=False, subaddress="+")
    Deliveries([Route(maildir, "*@b.example")]).attach(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@b.example>", "RCPT TO:<jo+x@b.example>", "RCPT TO:<jo@c.example>")
        peer.expect("250", "550 5.1.1", "250", "550 5.1.1")
        peer.line("DATA", ".")
        peer.expect("354", "250")
    assert [*stored(tmp_path)] == ["jo"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jo"]


# The folders


def test_a_move_never_replaces_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for library in (_disk._library, object):  # without renameat2, a link does it
        monkeypatch.setattr(_disk, "_library", library)
        source.write_text("new")
        target.write_text("old")
        with pytest.raises(FileExistsError):
            _disk.move(str(source), str(target))
        assert (source.read_text(), target.read_text()) == ("new", "old")
        target.unlink()
        _disk.move(str(source), str(target))
        assert (source.exists(), target.read_text()) == (False, "new")


@pytest.mark.parametrize("path", ["mail", "mail/{domain}/{local}"])
def test_own_files_that_a_dead_process_has_left_are_removed_after_36_hours(tmp_path: Path, path: str) -> None:
    tmp = tmp_path / path.format(domain="b.example", local="bob") / "tmp"
    tmp.mkdir(parents=True)
    old, young, foreign = (
        "1700000000.6447ef957f640-5c1f0a-1f.mx.example.com",
        "1700000001.6447ef957f640-5c1f0a-1f_2.mx.example.com",
        "1700000000.M1P2.host",
    )
    for name in (old, young, foreign):
        (tmp / name).write_text("x")
    now = time.time()
    for name in (old, foreign):
        os.utime(tmp / name, (now - 37 * 3600,) * 2)
    os.utime(tmp / young, (now - 35 * 3600,) * 2)
    Maildir(tmp_path / path).sweep()
    assert sorted(each.name for each in tmp.iterdir()) == sorted([young, foreign])


def test_one_flush_serves_many_messages(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[str] = []
    flush, sync = _disk.flush_file_systems, os.fsync

    def flush_all(devices: Mapping[int, int]) -> bool:
        flushes.append("all")
        return flush(devices)

    def flush_one(descriptor: int) -> None:
        flushes.append("one")
        sync(descriptor)

    monkeypatch.setattr(_disk, "flush_file_systems", flush_all)
    monkeypatch.setattr(os, "fsync", flush_one)
    server = smtp_server(start=False)
    Maildir(tmp_path).attach(server)
    peers = [dial(server) for _ in range(20)]
    for peer in peers:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<bob@b.example>", "DATA")
        peer.expect("250", "250", "354")
    flushes.clear()
    for peer in peers:
        peer.line("Subject: Tea", ".")
    for peer in peers:
        peer.expect("250")
        peer.close()
    assert len(stored(tmp_path)["."]) == 20
    assert len(flushes) < 20


def test_if_the_whole_cannot_be_flushed_each_file_is(
    smtp_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    sync = os.fsync

    def flush_one(descriptor: int) -> None:
        flushed.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(_disk, "flush_file_systems", lambda devices: False)
    monkeypatch.setattr(os, "fsync", flush_one)
    server = smtp_server(start=False)
    Maildir(tmp_path).attach(server)
    peers = [dial(server) for _ in range(8)]
    for peer in peers:
        peer.hello()
        assert send(peer, "bob@b.example")[0].startswith("250")
        peer.close()
    assert len(flushed) >= 8


@pytest.mark.parametrize(
    ("system", "release", "tells"),
    [
        ("Linux", "6.1.0-13-amd64", True),
        ("Linux", "5.8", True),
        ("Linux", "5.4.0-1", False),
        ("Darwin", "23.1.0", False),
    ],
)
def test_a_kernel_that_hides_errors_of_syncfs_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, tells: bool
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((system, "host", release, "", "")))
    _disk._syncfs_tells_errors.cache_clear()
    assert _disk._syncfs_tells_errors() is tells
    monkeypatch.undo()
    _disk._syncfs_tells_errors.cache_clear()
