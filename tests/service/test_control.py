"""The control socket: who may connect, what a request may be, what a look costs, what it must never show."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, sleep, socket
from gevent.server import StreamServer

from greensmtp import Ack, Reject, Session, SMTPServer
from greensmtp.middleware import Auth
from greensmtp.service import control as control_module
from greensmtp.service.control import AUTO, Control, choose_folder
from greensmtp.service.control_folder import (
    connect_each,
    default_folders,
    prepare_folder,
    remove_all_stale,
    socket_path,
)
from greensmtp.service.errors import StartError
from greensmtp.service.tally import MAX_KEYS, Board
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate

CLIENT = ("192.0.2.7", 4711)


class Look:
    """A client of the control socket, in this hub."""

    def __init__(self, folder: Path, request: bytes | dict[str, Any]) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(socket_path(folder, os.getpid())))
        self._buffer = b""
        self.socket.sendall(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")

    def line(self) -> dict[str, Any]:
        """Return the next line; ``{}`` at the end."""
        with Timeout(10):
            while b"\n" not in self._buffer:
                piece = self.socket.recv(65536)
                if not piece:
                    return {}
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def until(self, wanted: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
        """Return the lines up to the first that is wanted."""
        lines = [self.line()]
        while not wanted(lines[-1]):
            assert lines[-1], lines
            lines.append(self.line())
        return lines


Call = Callable[..., Peer]
LookIn = Callable[[bytes | dict[str, Any]], Look]


@pytest.fixture
def servers() -> list[SMTPServer]:
    """The servers that the control socket shows."""
    return []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path; it is empty in the end."""
    made = Path(tempfile.mkdtemp(prefix="greensmtp-"))
    yield made
    made.rmdir()


@pytest.fixture
def look(servers: list[SMTPServer], folder: Path) -> Iterator[LookIn]:
    """Start a control socket; give a function that sends it a request."""
    control = Control(folder, lambda: servers)
    control.start()
    looks: list[Look] = []

    def ask(request: bytes | dict[str, Any]) -> Look:
        looks.append(Look(folder, request))
        return looks[-1]

    yield ask
    for each in looks:
        each.socket.close()
    control.stop()


@pytest.fixture
def call() -> Iterator[Call]:
    """Give a function that connects a client; it is closed afterwards."""
    with ExitStack() as peers:
        yield lambda server, source=CLIENT: peers.enter_context(dial(server, source=source))


def trace(look: LookIn, **conditions: Any) -> Look:
    """Begin to trace, and wait until the server does."""
    made = look({"do": "trace", **conditions})
    assert made.line() == {"pid": os.getpid(), "tracing": True}
    sleep(0)
    return made


def texts(lines: list[dict[str, Any]]) -> list[str]:
    """Return a dialogue as lines."""
    return [f"{line['event']} {line['text']}" for line in lines]


def ended(line: dict[str, Any]) -> bool:
    return bool(line.get("event") == "end")


# The socket


def test_without_descriptors_a_client_waits(
    look: LookIn, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """There is one line in the log, and no traceback on standard error, as gevent would print."""

    def full(self: StreamServer) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(StreamServer, "do_read", full)
        waiting = look({"do": "stats"})
        sleep(0.05)
    assert "error" not in waiting.line()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot accept connections for now: Too many open files",
        "accepting connections again",
    ]
    assert capfd.readouterr().err == ""


def test_only_this_user_may_connect(look: LookIn, folder: Path) -> None:
    mode = socket_path(folder, os.getpid()).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"GET / HTTP/1.1\r\n", "expected a JSON object"),
        (b"[1]\n", "expected a JSON object"),
        (b"[" * 4000 + b"\n", "expected a JSON object"),
        (b"x" * 5000, "expected a line of at most 4096 bytes"),
        ({"do": "shell"}, "'do' takes 'stats' or 'trace', not 'shell'"),
        ({"do": "stats", "interval": 0}, "interval takes 0.1 to 3600 seconds, not 0"),
        ({"do": "stats", "interval": "1"}, "interval takes"),
        ({"do": "stats", "interval": True}, "interval takes"),
        ({"do": "trace", "peer": "example.com"}, "'example.com' does not appear to be"),
        ({"do": "trace", "from": 7}, "peer, from and session take strings"),
    ],
)
def test_a_wrong_request_is_refused(look: LookIn, request_: Any, error: str) -> None:
    made = look(request_)
    assert error in made.line()["error"]
    assert made.line() == {}


def test_a_client_without_a_request_is_dropped(look: LookIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "REQUEST_SECONDS", 0.05)
    made = look(b"{")
    assert made.line() == {"error": "no request within 0.05 s"}
    assert made.line() == {}


def test_one_client_too_many_is_refused(look: LookIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "MAX_CLIENTS", 1)
    first = look({"do": "stats"})
    assert first.line()["connections"] == 0
    assert "1 clients are connected" in look({"do": "stats"}).line()["error"]
    first.socket.close()
    sleep(0.01)
    assert look({"do": "stats"}).line()["connections"] == 0


def test_the_socket_of_a_process_that_has_ended_is_removed(look: LookIn, folder: Path) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    stale = socket_path(folder, pid)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    found = dict(connect_each([folder]))
    for connection in found.values():
        connection.close()
    assert [*found] == [os.getpid()]
    assert not stale.exists()


def test_a_socket_that_is_served_is_not_removed(look: LookIn, folder: Path) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    with socket.socket(socket.AF_UNIX) as elsewhere:  # in another container, where that process runs
        path = socket_path(folder, pid)
        elsewhere.bind(str(path))
        elsewhere.listen()
        remove_all_stale(folder)
        assert path.exists()
    with pytest.raises(FileExistsError, match="another server has"):
        Control(folder, list).start()
    remove_all_stale(folder)
    assert [*folder.iterdir()] == [socket_path(folder, os.getpid())]


def test_a_folder_that_others_can_write_to_is_refused(short_path: Path) -> None:
    folder = short_path / "f"
    prepare_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    prepare_folder(folder)
    folder.chmod(0o770)
    with pytest.raises(PermissionError, match="no other user may write to; it belongs"):
        prepare_folder(folder)
    link = short_path / "link"
    folder.chmod(0o700)
    link.symlink_to(folder)
    with pytest.raises(NotADirectoryError):
        prepare_folder(link)
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
        with pytest.raises(PermissionError, match="belongs to user 12345"):
            prepare_folder(folder)
        prepare_folder(folder, (12345, 12345))
        mine = short_path / "mine"
        prepare_folder(mine, (12345, 12345))
        assert mine.stat().st_uid == 12345


def test_the_first_default_folder_that_fits_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{folder}/a/missing:{folder}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr("greensmtp.service.control_folder.SYSTEM_FOLDER", folder / "no" / "such")
    assert next(default_folders(7)) == folder / "a" / "missing"
    assert choose_folder(AUTO) == folder / "greensmtp"
    (folder / "greensmtp").rmdir()
    assert choose_folder(None) is None
    with pytest.raises(StartError, match=r"cannot make the control socket in '.*missing/x': No such file"):
        choose_folder(f"{folder}/missing/x")
    with pytest.raises(StartError, match="expected a folder of at most 80 bytes"):
        choose_folder(f"/{'x' * 90}")


# Snapshots


def test_a_snapshot_counts_what_has_happened_since_somebody_looks(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("to", lambda session, address, ack: ack.accept() if address.local_part == "b" else ack.reject(550, "no"))
    before = call(server)
    before.expect("220")
    made = look({"do": "stats", "interval": 0.1})
    first = made.line()
    assert first["totals"]["commands"] == 0
    assert first["connections"] == 1
    before.line("EHLO a", "MAIL FROM:<a@example.org>", "RCPT TO:<x@example.com>", "RCPT TO:<b@example.com>", "DATA")
    before.expect("250", "250", "550", "250", "354")
    before.send(b"hello\r\n")
    (session,) = made.until(lambda line: line["messages_in_flight"])[-1]["sessions"]
    assert (session["peer"], session["sender"], session["recipients"]) == ("192.0.2.7", "a@example.org", 1)
    before.send(b".\r\n")
    before.expect("250")
    now = made.until(lambda line: line["totals"]["messages"])[-1]
    assert now["totals"] == {
        **{"connections": 0, "commands": 5, "messages": 1, "recipients": 1, "bytes": 7, "rejections": 1}
    }
    assert now["senders"] == [["a@example.org", 1, 1, 7]]
    assert now["peers"] == [["192.0.2.7", 0, 1, 1]]
    assert now["rejections"] == [["RCPT", 550, "5.0.0 no", 1]]
    assert now["memory"] > 1_000_000
    assert 0 <= now["lag"] < 10


def test_a_message_that_cannot_be_stored_counts_as_rejected(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)

    def fail() -> None:
        raise Reject(452, "4.3.1 disk full")

    def receive(session: Session, ack: Ack) -> None:
        session.stage(fail)
        ack.accept()

    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", receive)
    made = look({"do": "stats", "interval": 0.1})
    made.line()
    peer = call(server)
    peer.line("EHLO a", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
    peer.expect("220", "250", "250", "250", "354")
    peer.send(b"x\r\n.\r\n")
    peer.expect("452")
    now = made.until(lambda line: line["totals"]["rejections"])[-1]
    assert now["totals"]["messages"] == 0
    assert now["rejections"] == [["message", 451, "could not be stored; the log says why", 1]]


def test_a_server_that_comes_by_a_reload_is_seen(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    made = look({"do": "stats", "interval": 0.1})
    assert made.line()["listeners"] == []
    servers.append(smtp_server())
    now = made.until(lambda line: line["listeners"])[-1]
    sleep(2 * control_module.BEAT)
    call(servers[0]).expect("220")
    assert made.until(lambda line: line["totals"]["connections"])[-1]["peers"] == [["192.0.2.7", 1, 0, 0]]
    assert now["connections"] == 0


def test_a_board_keeps_what_counts_most_in_bounded_memory() -> None:
    board = Board(2, 1)
    for _ in range(50):
        board.add("often", 1, 5)
    for number in range(3 * MAX_KEYS):
        board.add(f"once {number}", 1)
    assert len(board._rows) <= MAX_KEYS
    assert board.top()[0] == ("often", [50, 250])


# Dialogues


def test_a_connection_that_is_open_already_is_followed_under_tls_without_secrets(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call, certificate: Certificate
) -> None:
    server = smtp_server(
        certfile=certificate.certfile, keyfile=certificate.keyfile, middleware=[Auth({"beep": "boop"})], start=True
    )
    servers.append(server)
    server.on("message", lambda session, stream, ack: ack.accept())
    peer = call(server)
    peer.line("EHLO a")
    peer.expect("220", "250")
    other = call(server, source=("192.0.3.1", 1))
    other.expect("220")
    made = trace(look, peer="192.0.2.0/24")
    peer.line("STARTTLS")
    peer.expect("220")
    peer.start_tls()
    other.line("NOOP")
    other.expect("250")
    peer.line("EHLO b")
    peer.expect("250")
    peer.line("AUTH LOGIN")
    peer.expect("334")
    peer.line("YmVlcA==")
    peer.expect("334")
    peer.line("cGFzc3dvcmQ=")
    peer.expect("535")
    peer.line("cGFzc3dvcmQ=")
    peer.expect("500")
    peer.line("AUTH PLAIN AGJlZXAAYm9vcA==")
    peer.expect("235")
    peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
    peer.expect("250", "250", "354")
    peer.send(b"Subject: private\r\n\r\n..private\r\n.\r\n")
    peer.expect("250")
    peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "BDAT 7")
    peer.send(b"privateBDAT 9 LAST\r\nprivate\r\n")
    peer.expect("250", "250", "250", "250")
    peer.line("QUIT")
    peer.expect("221")
    lines = made.until(ended)
    said = texts(lines)
    assert said[:4] == [
        "begin connected before; hello=a",
        "client STARTTLS",
        "server 220 2.0.0 Ready to start TLS",
        "client EHLO b",
    ]
    for wanted in ("client AUTH ***", "server 334 ***", "client ***", "client UNKNOWN ***", "client BDAT 9 LAST"):
        assert wanted in said
    assert "client (30 bytes of a message)" in said
    assert "client (16 bytes of a message)" in said
    assert said[-3:] == ["client QUIT", "server 221 2.0.0 Bye", "end quit"]
    everything = json.dumps(lines)
    for secret in ("YmVlcA", "cGFzc3", "AGJlZX", "private", "UGFzc3"):
        assert secret not in everything
    assert {line["peer"] for line in lines} == {"192.0.2.7:4711"}


def test_a_password_after_an_auth_that_was_not_followed_is_not_shown(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)
    peer = call(server)
    peer.line("EHLO a", "AUTH LOGIN")
    peer.expect("220", "250", "502")
    made = trace(look, peer="192.0.2.7")
    peer.line("hunter2", "hunter3 hunter4", "NOOP", "QUIT")
    peer.expect("500", "500", "250", "221")
    said = made.until(ended)
    assert texts(said).count("client UNKNOWN ***") == 2
    assert "client NOOP" in texts(said)
    assert "hunter" not in json.dumps(said)


def test_a_trace_may_begin_when_tls_is_up(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, certificate: Certificate
) -> None:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)
    servers.append(server)
    with dial(server) as peer:
        peer.line("EHLO a")
        peer.expect("220", "250")
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO a", "MAIL FROM:<a@example.org>")
        peer.expect("250", "250")
        made = trace(look, **{"from": "a@example.org"})
        peer.line("RSET", "QUIT")
        peer.expect("250", "221")
    said = texts(made.until(ended))
    assert said[0].startswith("begin connected before; hello=a tls=TLSv1.3 TLS_")
    assert said[0].endswith(" from=<a@example.org>")
    assert said[1:] == ["client RSET", "client QUIT", "server 250 2.0.0 Ok", "server 221 2.0.0 Bye", "end quit"]


def test_a_new_connection_under_implicit_tls_is_followed(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, certificate: Certificate
) -> None:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    servers.append(server)
    made = trace(look, peer="127.0.0.1")
    with dial(server) as peer:
        peer.start_tls()
        peer.line("EHLO a", "QUIT")
        peer.expect("220", "250", "221")
    said = texts(made.until(ended))
    assert said[0] == "begin connected"
    assert said[1].startswith("note TLS is up: TLSv1.3 TLS_")
    assert said[2:4] == ["server 220 mx.example.com ESMTP", "client EHLO a"]
    assert said[-2:] == ["server 221 2.0.0 Bye", "end quit"]


def test_a_reply_that_no_middleware_sees_is_shown(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)
    made = trace(look, peer="192.0.2.7")
    call(server).expect("220")
    server.stop(timeout=1)
    said = texts(made.until(ended))
    assert said[-2].startswith("server 421 ")
    assert said[-1] == "end shutdown"


def test_commands_between_chunks_are_shown_and_chunks_are_not(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)
    server.on("message", lambda session, stream, ack: ack.accept())
    made = trace(look, peer="192.0.2.7")
    peer = call(server)
    peer.line("EHLO a", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "BDAT 14")
    peer.send(b"RSET\r\nNOOP x\r\nNOOP y\r\nBDAT 6 LAST\r\nVRFY\r\nQUIT\r\n")
    said = texts(made.until(ended))
    assert [line for line in said if line.startswith("client")] == [
        "client EHLO a",
        "client MAIL FROM:<a@example.org>",
        "client RCPT TO:<b@example.com>",
        "client BDAT 14",
        "client NOOP y",
        "client BDAT 6 LAST",
        "client (20 bytes of a message)",
        "client QUIT",
    ]


def test_a_message_for_several_recipients_over_lmtp_counts_once(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server(lmtp=True)
    servers.append(server)
    server.on("message", lambda session, stream, ack: ack.accept())
    made = look({"do": "stats", "interval": 0.1})
    made.line()
    peer = call(server)
    peer.line("LHLO a", "MAIL FROM:<>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "DATA")
    peer.expect("220", "250", "250", "250", "250", "354")
    peer.send(b"hello\r\n.\r\n")
    peer.expect("250", "250")
    now = made.until(lambda line: line["totals"]["recipients"] == 2)[-1]
    assert (now["totals"]["messages"], now["totals"]["bytes"]) == (1, 7)
    assert now["senders"] == [["<>", 1, 0, 7]]


def test_hostile_text_is_escaped(smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call) -> None:
    server = smtp_server()
    servers.append(server)
    made = trace(look, peer="192.0.2.7")
    peer = call(server)
    peer.send("EHLO \x1b]0;owned\x07\r\nVRFY \u202e\u0085\x9b31m\r\nQUIT\r\n")
    assert all(line["text"].isprintable() for line in made.until(ended))


def test_the_conditions_of_a_trace(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)
    peer = call(server)
    peer.line("EHLO a")
    peer.expect("220", "250")
    (handler,) = server.connections
    by_sender = trace(look, **{"from": "@Example.ORG"})
    by_session = trace(look, session=f"6447ef-{handler.session.id}")
    of_another = trace(look, session="ffffff-1")
    peer.line("MAIL FROM:<a@example.com>", "RSET", "MAIL FROM:<b@example.org>", "QUIT")
    assert texts(by_sender.until(ended))[:2] == ["begin connected before; hello=a", "client MAIL FROM:<b@example.org>"]
    assert "client RSET" in texts(by_session.until(ended))
    other = call(server, source=("192.0.2.8", 1))
    other.line("QUIT")
    other.expect("220", "221")
    of_another.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        of_another.socket.recv(1)


def test_a_slow_reader_loses_lines_and_is_told(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module._Client, "max_backlog", 10)
    server = smtp_server(max_idle_commands=100_000, max_errors=100_000)
    servers.append(server)
    made = trace(look, peer="192.0.2.7")
    peer = call(server)
    peer.expect("220")
    began = time.monotonic()
    for _ in range(200):
        peer.send(b"NOOP " + b"x" * 400 + b"\r\n" + b"NOOP\r\n" * 20)
        peer.expect(*["250"] * 21)
    assert time.monotonic() - began < 30
    peer.line("QUIT")
    lines: list[dict[str, Any]] = []
    while not any("lost" in line for line in lines):
        lines.append(made.line())
    assert lines[-1]["lost"] > 0


def test_a_message_that_never_ends_is_shown_as_such(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)
    server.on("message", lambda session, stream, ack: ack.accept())
    made = trace(look, peer="192.0.2.7")
    peer = call(server)
    peer.line("EHLO a", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
    peer.expect("220", "250", "250", "250", "354")
    peer.send(b"x" * 100)
    peer.let_it_read()
    peer.socket.close()
    assert texts(made.until(ended))[-2:] == [
        "client (a message that has not ended; 100 bytes came)",
        "end closed",
    ]


# What it costs


def test_nothing_is_left_when_nobody_looks_any_more(
    smtp_server: MakeServer, servers: list[SMTPServer], look: LookIn, call: Call
) -> None:
    server = smtp_server()
    servers.append(server)
    peer = call(server)
    peer.line("EHLO a")
    peer.expect("220", "250")
    routes = server._routes
    assert routes is not None
    (handler,) = server.connections

    def state() -> list[Any]:
        transport = handler.transport
        rest = (routes.accept, routes.connect, routes.end_of_data, routes.disconnect, routes._handle_unknown)
        return [dict(routes.routes), *rest, transport._recv, transport._send_some]

    before = state()
    looks = [trace(look, peer="192.0.2.7"), trace(look, peer="192.0.2.0/24"), look({"do": "stats"})]
    looks[-1].line()
    peer.line("NOOP")
    peer.expect("250")
    assert state() != before
    for each in looks:
        each.socket.close()
    with Timeout(5):
        while state() != before:
            sleep(0.005)
    assert routes._observers == ()
    peer.line("NOOP", "BLURB")
    peer.expect("250", "500")
