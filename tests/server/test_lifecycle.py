"""Start and stop in every way and order, listeners, and what happens to connections."""

from __future__ import annotations

import os
import socket as native_socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from gevent import sleep, socket, spawn
from gevent import ssl as gevent_ssl
from gevent.event import Event

from greensmtp import Ack, ArgumentError, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import collect_bodies, refused

if TYPE_CHECKING:
    from tests.conftest import Certificate


# Start


def test_port_0_becomes_the_real_port() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    assert server.address == ("127.0.0.1", 0)
    server.start()
    try:
        assert server.address[0] == "127.0.0.1"
        assert server.address[1] > 0
        with dial(server) as peer:
            peer.hello()
    finally:
        server.stop(1)


@pytest.mark.parametrize("listener", ["127.0.0.1:0", ("127.0.0.1", 0), "[::1]:0", ("::1", 0)])
def test_a_listener_is_written_as_gevent_takes_it(smtp_server: MakeServer, listener: Any) -> None:
    with dial(smtp_server(listener=listener)) as peer:
        peer.hello()


def test_a_second_start_changes_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server()
    address = server.address
    with dial(server) as peer:
        peer.hello()
        server.start()
        assert server.address == address
        peer.line("NOOP")
        peer.expect("250")


def test_the_stack_is_frozen_at_start(smtp_server: MakeServer) -> None:
    server = smtp_server()
    with pytest.raises(RuntimeError, match="before start"):
        server.use(lambda session, command, proceed: proceed(session, command))


def test_the_context_manager_stops() -> None:
    with SMTPServer(("127.0.0.1", 0), hostname="mx.example.com") as server:
        server.start()
        address = server.address
        with dial(server) as peer:
            peer.hello()
    assert not server.started
    assert refused(address)


def test_serve_forever_starts_and_returns_at_stop() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    serving = spawn(server.serve_forever)
    while not server.started:
        sleep(0.01)
    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
    assert not serving.ready()
    server.stop(1)
    serving.get(timeout=5)


def test_several_servers_in_one_process_keep_to_themselves(smtp_server: MakeServer) -> None:
    smtp, lmtp, small = smtp_server(), smtp_server(lmtp=True), smtp_server(max_message_size=10)
    bodies = collect_bodies(smtp)
    collect_bodies(small)
    lmtp.on("from", lambda session, address, ack: ack.reject(550, "not here"))
    with dial(smtp) as one, dial(lmtp) as two, dial(small) as three:
        one.hello()
        two.hello(verb="LHLO")
        three.hello()
        assert one.deliver(b"a longer message\r\n").startswith("250")
        two.line("MAIL FROM:<a@example.org>")
        two.expect("550")
        assert three.deliver(b"a longer message\r\n").startswith("552")
        small.stop(0.1)
        one.line("NOOP")
        one.expect("250")
    assert bodies == [b"a longer message\r\n"]


# Stop


def test_idle_peers_get_421_and_the_listener_is_closed(smtp_server: MakeServer) -> None:
    server = smtp_server()
    with dial(server) as new, dial(server) as greeted, dial(server) as talking:
        new.expect("220")
        greeted.hello()
        talking.hello()
        talking.send("half a li")
        stopping = spawn(server.stop, 5)
        for peer in (new, greeted, talking):
            peer.expect("421 4.3.2")
            peer.expect_end()
            peer.close()
        stopping.get(timeout=2)
        assert refused(server.address)


def test_a_transaction_is_finished_and_then_dismissed(smtp_server: MakeServer) -> None:
    """With several connections, busy and idle, in any order."""
    server = smtp_server()
    bodies = collect_bodies(server)
    with dial(server) as idle, dial(server) as first, dial(server) as second:
        for peer in (idle, first, second):
            peer.hello()
        first.envelope()
        second.envelope()
        second.line("DATA")
        second.expect("354")
        stopping = spawn(server.stop, 10)
        idle.expect("421")
        idle.close()
        first.let_it_read()
        first.line("RCPT TO:<another@example.com>", "DATA")
        first.expect("250", "354")
        first.send("first\r\n.\r\n")
        first.expect("250", "421 4.3.2")
        first.close()
        second.let_it_read()
        assert not stopping.ready()
        second.send("second\r\n.\r\n")
        second.expect("250", "421 4.3.2")
        second.close()
        stopping.get(timeout=2)
    assert bodies == [b"first\r\n", b"second\r\n"]


def test_what_was_pipelined_behind_the_transaction_is_not_begun(smtp_server: MakeServer) -> None:
    server = smtp_server()
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        stopping = spawn(server.stop, 10)
        peer.let_it_read()
        peer.line("RSET")
        peer.expect("250", "421 4.3.2")
        peer.expect_end()
        peer.close()
        stopping.get(timeout=2)
    assert bodies == []


@pytest.mark.usefixtures("short_kill")
def test_what_is_left_after_the_timeout_is_cut_off(smtp_server: MakeServer) -> None:
    server = smtp_server()
    reasons: list[str] = []
    received: list[Session] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    server.on("received", lambda session, ack: received.append(session))
    collect_bodies(server)
    stuck_forever = Event()

    @server.on("to")
    def stuck(session: Session, address: str, ack: Ack) -> None:
        if address.startswith("stuck"):
            stuck_forever.wait(30)
        ack.accept()

    with dial(server) as in_data, dial(server) as in_handler, dial(server) as in_transaction:
        for peer in (in_data, in_handler, in_transaction):
            peer.hello()
        in_data.envelope()
        in_data.line("DATA")
        in_data.expect("354")
        in_data.send("half a message")
        in_handler.line("MAIL FROM:<a@example.org>", "RCPT TO:<stuck@example.com>")
        in_transaction.envelope()
        began = time.monotonic()
        server.stop(0.3)
        assert 0.25 < time.monotonic() - began < 2
        for peer in (in_data, in_transaction):
            assert b"250" not in peer.rest()
    assert reasons == ["shutdown"] * 3
    assert received == []
    assert not server.connections


@pytest.mark.parametrize("timeout", [0, 0.2])
@pytest.mark.usefixtures("short_kill")
def test_peers_that_are_told_to_go_and_stay_do_not_hold_it_up(smtp_server: MakeServer, timeout: float) -> None:
    """Handlers of ``disconnect`` and ``at_end`` run all the same."""
    server = smtp_server()
    reasons: list[str] = []
    at_end: list[bool] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(lambda: at_end.append(True))
        ack.accept()

    with dial(server) as idle, dial(server) as busy:
        idle.hello()
        busy.hello()
        busy.envelope()
        busy.line("DATA")
        busy.expect("354")
        began = time.monotonic()
        server.stop(timeout)
        assert time.monotonic() - began < timeout + 1
    assert reasons == ["shutdown"] * 2
    assert at_end == [True]
    assert not server.connections


def test_a_second_stop_is_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server()
    server.stop(1)
    server.stop(1)
    assert not server.started


@pytest.mark.usefixtures("short_kill")
def test_a_second_stop_while_the_first_waits_cuts_short(smtp_server: MakeServer) -> None:
    """As a second SIGTERM does."""
    server = smtp_server()
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        first = spawn(server.stop, 30)
        peer.let_it_read()
        server.stop(0)
        first.get(timeout=3)
        peer.expect("421 4.3.2")
        peer.expect_end()


def test_stopping_what_never_started_is_nothing() -> None:
    SMTPServer(("127.0.0.1", 0), hostname="mx.example.com").stop(1)


def test_it_can_be_started_again_where_it_was(smtp_server: MakeServer) -> None:
    server = smtp_server()
    address = server.address
    bodies = collect_bodies(server)
    for number in range(3):
        with dial(server) as peer:
            peer.hello()
            assert peer.deliver(f"{number}\r\n").startswith("250")
            peer.line("QUIT")
            peer.expect("221")
        server.stop(1)
        assert refused(address)
        server.start()
        assert server.address == address
    assert bodies == [b"0\r\n", b"1\r\n", b"2\r\n"]


def test_middleware_can_be_stacked_between_two_starts(smtp_server: MakeServer) -> None:
    server = smtp_server()
    server.stop(1)
    seen: list[str] = []

    @server.use
    def watch(session: Session, command: Any, proceed: Any) -> Any:
        seen.append(command.verb)
        return proceed(session, command)

    server.start()
    with dial(server) as peer:
        peer.hello()
    assert seen[:3] == ["ACCEPT", "CONNECT", "EHLO"]


def test_a_handler_can_stop_the_server(smtp_server: MakeServer) -> None:
    server = smtp_server()
    bodies = collect_bodies(server)

    @server.on("received")
    def enough(session: Session, ack: Ack) -> None:
        server.stop(5)
        ack.accept()

    with dial(server) as peer, dial(server) as idle:
        idle.hello()
        peer.hello()
        closing = spawn(hang_up_at_421, idle)
        assert peer.deliver(b"the last one\r\n").startswith("250")
        peer.expect("421 4.3.2")
        peer.expect_end()
        closing.get(timeout=5)
    assert not server.started
    assert bodies == [b"the last one\r\n"]


def hang_up_at_421(peer: Peer) -> None:
    peer.expect("421")
    peer.close()


# Unix sockets


@pytest.fixture
def path() -> Iterator[Path]:
    """Yield a path that is short enough for a Unix socket."""
    folder = Path(f"/tmp/greensmtp-{os.getpid()}-{threading.get_native_id()}")  # pytest's own are too long for some
    folder.mkdir()
    yield folder / "smtp.sock"
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()


def test_a_unix_path_is_a_listener_and_is_removed_at_stop(path: Path) -> None:
    for listener in (path, str(path)):
        server = SMTPServer(listener, hostname="mx.example.com")
        sessions: list[Session] = []
        server.on("connect", lambda session, ack, into=sessions: (into.append(session), ack.accept())[1])
        server.start()
        assert stat.S_ISSOCK(path.stat().st_mode)
        with dial(server) as peer:
            peer.hello()
        assert sessions[0].peer_host is None
        server.stop(1)
        assert not path.exists()


def test_a_relative_unix_path_begins_with_a_dot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with SMTPServer("./smtp.sock", hostname="mx.example.com") as server:
        server.start()
        with dial(server) as peer:
            peer.hello()
    assert not path.exists()


def test_a_unix_socket_of_a_dead_server_is_replaced(path: Path) -> None:
    with native_socket.socket(native_socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with SMTPServer(path, hostname="mx.example.com") as server:
        server.start()
        with dial(server) as peer:
            peer.hello()
    assert not path.exists()


def test_a_unix_socket_of_a_live_server_is_not(path: Path) -> None:
    with SMTPServer(path, hostname="first.example.com") as first:
        first.start()
        second = SMTPServer(path, hostname="second.example.com")
        with pytest.raises(OSError, match=path.name):
            second.start()
        second.stop(0)
        with dial(first) as peer:
            assert "first.example.com" in peer.hello()
    assert not path.exists()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_socket_is_left_alone(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    server = SMTPServer(path, hostname="mx.example.com")
    with pytest.raises(OSError, match=path.name):
        server.start()
    server.stop(0)
    assert path.exists()
    if path.is_dir():
        path.rmdir()


def test_a_folder_that_is_missing_is_an_error_that_names_it(path: Path) -> None:
    server = SMTPServer(path / "missing", hostname="mx.example.com")
    with pytest.raises(OSError, match="missing"):
        server.start()


def test_a_unix_server_starts_again(path: Path) -> None:
    server = SMTPServer(path, hostname="mx.example.com")
    for _ in range(2):
        server.start()
        with dial(server) as peer:
            peer.hello()
        server.stop(1)
        assert not path.exists()


# Adopted connections


def test_adopt_serves_a_connection_that_was_accepted_elsewhere() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    bodies = collect_bodies(server)
    peers: list[Any] = []

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        peers.append((session.peer, session.peer_host))
        ack.accept()

    ours, theirs = socket.socketpair()
    server.adopt(theirs, ("192.0.2.1", 4711))
    with Peer(ours) as peer:
        peer.hello()
        assert peer.deliver(b"adopted\r\n").startswith("250")
        stopping = spawn(server.stop, 5)
        peer.expect("421 4.3.2")
        peer.close()
        stopping.get(timeout=2)
    assert bodies == [b"adopted\r\n"]
    assert peers == [(("192.0.2.1", 4711), "192.0.2.1")]


def test_an_adopted_connection_has_the_address_of_its_socket() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", proxy_from=["unix"])
    peers: list[Any] = []

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        peers.append(session.peer)
        ack.accept()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.create_connection(listener.getsockname(), 5)
        server.adopt(listener.accept()[0])
    with Peer(ours) as peer:
        peer.hello()  # and no PROXY header is waited for
        assert peers == [ours.getsockname()]


@pytest.mark.usefixtures("clock")
def test_adopted_connections_count_and_time_out() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", max_connections=1, command_timeout=0.2)
    with dial(server) as first, dial(server) as second:
        first.hello()
        second.expect("421 4.7.0")
        first.expect("421 4.4.2")
    server.stop(1)


def test_adopt_serves_a_connection_that_has_tls(certificate: Certificate) -> None:
    server = SMTPServer(
        ("127.0.0.1", 0), hostname="mx.example.com", certfile=certificate.certfile, keyfile=certificate.keyfile
    )
    bodies = collect_bodies(server)
    seen: list[tuple[str, bool]] = []
    server.on("tls", lambda session: seen.append(("tls", session.tls)))

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        seen.append(("connect", session.tls))
        ack.accept()

    ours, theirs = socket.socketpair()

    def shake_hands() -> None:
        server.adopt(gevent_ssl.SSLSocket(sock=theirs, server_side=True, _context=server.tls_context), "")

    adopting = spawn(shake_hands)
    with Peer(ours) as peer:
        peer.start_tls()
        peer.expect("220")
        peer.line("EHLO x")
        assert "STARTTLS" not in peer.reply()
        assert peer.deliver(b"octets\r\n" * 50_000).startswith("250")
        peer.line("QUIT")
        peer.expect("221")
    adopting.get()
    assert bodies == [b"octets\r\n" * 50_000]
    assert seen == [("tls", True), ("connect", True)]


def test_adopt_refuses_a_socket_that_blocks() -> None:
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
    ours, theirs = native_socket.socketpair()
    with ours, theirs, pytest.raises(TypeError, match="takes a gevent socket"):
        server.adopt(theirs)


def test_adopt_refuses_a_socket_that_is_closed() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    server = SMTPServer(("127.0.0.1", 0))
    with pytest.raises((OSError, ValueError)):
        server.adopt(theirs)
    assert not server.connections
    ours.close()


@pytest.mark.parametrize("separate", [False, True])
def test_an_encrypted_key_is_refused_by_the_name_of_its_file(
    certificate: Certificate, tmp_path: Path, separate: bool
) -> None:
    key = serialization.load_pem_private_key(certificate.keyfile.read_bytes(), None)
    protection = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(pem if separate else certificate.certfile.read_bytes() + pem)
    files: dict[str, Any] = {"certfile": locked}
    if separate:
        files = {"certfile": certificate.certfile, "keyfile": locked}
    with pytest.raises(ArgumentError, match=r"locked\.pem' is encrypted") as error:
        SMTPServer(("127.0.0.1", 0), **files)
    assert error.value.name == ("keyfile" if separate else "certfile")
