"""Limits: what a peer is told at each bound, what happens at it exactly, and that the server lives on beyond it."""

from __future__ import annotations

import logging
import os
import socket as native_socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import sleep, spawn
from gevent import socket as gevent_socket
from gevent.event import Event

from greensmtp import Ack, Command, MessageRefused, MessageStream, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed, middleware
from greensmtp.middleware import Logging
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate


def wait_until_empty(server: SMTPServer) -> None:
    """Until the server has seen all its peers go."""
    while server.connections:
        sleep(0.01)


# max_connections


def test_one_connection_too_many_gets_421_at_once(smtp_server: MakeServer) -> None:
    server = smtp_server(max_connections=2)
    with dial(server) as first, dial(server) as second:
        first.hello()
        second.hello()
        for _ in range(3):
            with dial(server) as third:
                third.expect("421 4.7.0")
                third.expect_end()
        first.close()
        while len(server.connections) > 1:
            sleep(0.01)
        with dial(server) as next_one:
            next_one.hello()
        second.line("NOOP")
        second.expect("250")


def test_a_full_server_goes_on_accepting(smtp_server: MakeServer) -> None:
    """Though all that it has are stuck in handlers."""
    server = smtp_server(max_connections=3)
    go_on = Event()

    @server.on("connect")
    def stuck(session: Session, ack: Ack) -> None:
        go_on.wait(10)
        ack.accept()

    stuck_ones = [dial(server) for _ in range(3)]
    for _ in range(50):
        with dial(server) as peer:
            peer.expect("421 4.7.0")
    go_on.set()
    for peer in stuck_ones:
        peer.hello()
        peer.close()


def test_connections_come_and_go_without_being_miscounted(smtp_server: MakeServer) -> None:
    server = smtp_server(max_connections=5)
    for number in range(60):
        peer = dial(server)
        (peer.reset, peer.close, peer.half_close)[number % 3]()
        peer.close()
        wait_until_empty(server)
    peers = [dial(server) for _ in range(5)]
    for peer in peers:
        peer.hello()
        peer.close()


def test_one_tls_connection_too_many_is_closed_without_a_word_in_the_clear(
    smtp_server: MakeServer, certificate: Certificate
) -> None:
    server = smtp_server(
        max_connections=1, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True
    )
    with dial(server) as first, dial(server) as second:
        assert second.rest() == b""
        first.start_tls()
        first.hello()


def test_connections_may_be_without_limit(smtp_server: MakeServer) -> None:
    server = smtp_server(max_connections=None)
    peers = [dial(server) for _ in range(100)]
    for peer in peers:
        peer.expect("220")
        peer.close()


# max_recipients


def test_one_recipient_too_many_gets_452_and_the_others_get_their_mail(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_recipients=2)
    recipients: list[list[str]] = []
    server.on("message", lambda session, stream, ack: ack.accept())

    @server.on("to")
    def to(session: Session, address: str, ack: Ack) -> None:
        if address.startswith("nobody"):
            ack.reject()
        else:
            ack.accept()

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        recipients.append([str(address) for address in session.to])
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.converse("""
            C: MAIL FROM:<a@example.org>
            S: 250
            C: RCPT TO:<nobody@example.com>
            S: 550
            C: RCPT TO:<one@example.com>
            S: 250
            C: RCPT TO:<two@example.com>
            S: 250
            C: RCPT TO:<three@example.com>
            S: 452 4.5.3
            C: RCPT TO:<four@example.com>
            S: 452 4.5.3
            C: DATA
            S: 354
            C: .
            S: 250
        """)
        peer.envelope(to=["five@example.com", "six@example.com"])
    assert recipients == [["one@example.com", "two@example.com"]]


# max_errors, max_idle_commands


def test_rcpt_beyond_the_limit_is_free_as_often_again_and_then_an_error(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_errors=2, max_recipients=4, max_idle_commands=3)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line(*["RCPT TO:<more@example.com>"] * 20)
        peer.expect(*["250"] * 3, *["452"] * 4, "452", "452", "421 4.7.0")
        peer.expect_end()


def test_a_message_makes_rcpt_beyond_the_limit_free_again(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_errors=1, max_recipients=2)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        for _ in range(5):
            peer.envelope()
            peer.line(*["RCPT TO:<more@example.com>"] * 3)
            peer.expect("250", "452", "452")
            peer.line("DATA")
            peer.expect("354")
            peer.line("x", ".")
            peer.expect("250")


@pytest.mark.parametrize(
    "verb", ["MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "BDAT 0 LAST", "VRFY x"]
)
def test_a_4xx_again_and_again_gets_421(smtp_server: MakeServer, verb: str) -> None:
    server = smtp_server(start=False, max_idle_commands=5)
    name = verb.partition(" ")[0]

    @server.use
    def later(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(450, "4.7.1 later") if command.verb == name else proceed(session, command)

    with dial(server) as peer:
        peer.hello()
        if name == "RCPT":
            peer.line("MAIL FROM:<a@example.org>")
            peer.expect("250")
        peer.line(*[verb] * 20)
        # (EHLO was the first idle command.)
        peer.expect(*["450 4.7.1"] * 5, "421 4.7.0")
        peer.expect_end()


def test_recipients_that_are_deferred_do_not_keep_the_others_from_their_mail(smtp_server: MakeServer) -> None:
    """They would be deferred at the next attempt, too, and so no attempt would ever succeed."""
    server = smtp_server(start=False, max_idle_commands=5, max_errors=1)
    server.on("message", lambda session, stream, ack: ack.accept())

    @server.on("to")
    def to(session: Session, address: str, ack: Ack) -> None:
        if len(session.to) < 10:
            ack.accept()
        else:
            ack.reject(450)

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", *[f"RCPT TO:<b{n}@example.com>" for n in range(200)], "DATA")
        peer.expect("250", *["250"] * 10, *["450"] * 190, "354")
        peer.line("x", ".")
        peer.expect("250")


def test_a_message_that_is_deferred_again_and_again_gets_421(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_idle_commands=3)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack: ack.reject(451))
    with dial(server) as peer:
        peer.hello()
        for _ in range(3):
            peer.envelope()
            peer.line("DATA")
            peer.expect("354")
            peer.line("x", ".")
            peer.expect("451")
        peer.expect("421 4.7.0")
        peer.expect_end()


@pytest.mark.parametrize("line", ["NOOP", "RSET", "VRFY x", "EXPN x", "HELP", "EHLO x", "HELO x", "WHAT", "AUTH X"])
def test_too_many_commands_without_a_message_get_421(smtp_server: MakeServer, line: str) -> None:
    with dial(smtp_server(start=False, max_idle_commands=5, max_errors=100)) as peer:
        peer.hello()
        peer.line(*[line] * 10)
        code = peer.reply()[:3]
        peer.expect(code, code, code, code, "421 4.7.0")
        peer.expect_end()


def test_a_message_gives_a_peer_new_credit(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_idle_commands=3)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        for _ in range(5):
            peer.line("NOOP", "RSET")
            peer.expect("250", "250")
            assert peer.deliver().startswith("250")


def test_a_long_transaction_is_not_idle(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_idle_commands=1)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.envelope(to=[f"{number}@example.com" for number in range(50)])
        for _ in range(50):
            peer.send("BDAT 256\r\n" + "x" * 256)
            peer.expect("250")
        peer.line("BDAT 0 LAST")
        peer.expect("250")


def test_small_chunks_count_as_idle_commands(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_idle_commands=5)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()  # an idle command
        peer.envelope()
        for _ in range(5):  # the first one begins the message
            peer.send("BDAT 1\r\nx")
            peer.expect("250")
        peer.send("BDAT 1\r\nx")
        peer.expect("421 4.7.0 Too many commands")
        peer.expect_end()


@pytest.mark.parametrize("limit", [1, 2])
def test_other_staged_changes_are_no_recipients(smtp_server: MakeServer, limit: int) -> None:
    server = smtp_server(start=False, max_recipients=limit)

    @server.use
    @middleware(verbs=("RCPT",))
    def stage_first(session: Session, command: Command, proceed: Proceed) -> Reply:
        session.stage(lambda: None)
        session.stage(lambda: None)
        return proceed(session, command)

    with dial(server) as peer:
        peer.hello()
        peer.envelope(to=[f"{number}@example.com" for number in range(limit)])
        peer.line("RCPT TO:<more@example.com>")
        peer.expect("452 4.5.3")


# max_message_size


def test_a_message_of_the_size_is_taken_and_a_larger_one_is_not(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_message_size=1_000)
    sizes: list[int] = []
    errors: list[MessageRefused] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            sizes.append(len(stream.read()))
        except MessageRefused as error:
            errors.append(error)
            raise

    with dial(server) as peer:
        assert "SIZE 1000" in peer.hello()
        assert peer.deliver(b"x" * 998 + b"\r\n").startswith("250")
        assert peer.deliver(b"x" * 999 + b"\r\n").startswith("552 5.3.4")
        assert peer.deliver((b"." + b"x" * 97 + b"\r\n") * 10).startswith("250")
        peer.line("MAIL FROM:<a@example.org> SIZE=1000", "RSET", "MAIL FROM:<a@example.org> SIZE=1001")
        peer.expect("250", "250", "552 5.3.4")
    assert sizes == [1_000, 1_000]
    assert [error.code for error in errors] == [552]


def test_a_message_may_be_without_limit(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_message_size=None)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        assert "SIZE 0" in peer.hello()
        assert peer.deliver(b"x" * 100_000, sender="a@example.org> SIZE=99999999999").startswith("250")


# Lines


@pytest.mark.parametrize(
    ("line", "room"),
    [
        ("NOOP ", 512),
        ("WHAT ", 512),
        ("EHLO ", 512),
        ("RCPT TO:<", 512),
        ("MAIL FROM:<", 512 + 26 + 17 + 10),
        ("mail from:<", 512 + 26 + 17 + 10),
        ("VRFY ", 512 + 9),
        ("AUTH ", 12_288),
    ],
)
def test_a_line_has_the_room_that_its_command_and_the_extensions_give(
    smtp_server: MakeServer, line: str, room: int
) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line(line.ljust(room - 2, "x"), line.ljust(room - 1, "x"), "NOOP")
        assert "too long" not in peer.reply()
        peer.expect("500 5.5.6 Line too long", "250")


def test_the_longest_line_can_be_chosen(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, max_line_length=2_000)) as peer:
        peer.hello()
        peer.line("NOOP ".ljust(1_998, "x"), "NOOP ".ljust(1_999, "x"))
        peer.expect("250", "500 5.5.6")


@pytest.mark.parametrize("length", [10, 510, 511, 4_000, 12_286])
def test_an_answer_to_a_challenge_has_the_room_of_auth(smtp_server: MakeServer, length: int) -> None:
    answers: list[bytes] = []

    def asks(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "AUTH":
            return proceed(session, command)
        answers.append(session.challenge("c2F5"))
        return Reply(235, "2.7.0 thank you")

    with dial(smtp_server(start=False, middleware=[asks])) as peer:
        peer.hello()
        peer.line("AUTH X")
        peer.expect("334 c2F5")
        peer.send(b"A" * length + b"\r\nNOOP\r\n", cut=length // 2)
        peer.expect("235", "250")
    assert answers == [b"A" * length]


def test_a_longer_answer_is_a_failure_and_no_command(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def asks(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "AUTH":
            return proceed(session, command)
        session.challenge()
        return Reply(235, "2.7.0 thank you")

    logger = logging.getLogger("greensmtp.test")
    caplog.set_level(logging.DEBUG)
    with dial(smtp_server(start=False, middleware=[Logging(logger), asks])) as peer:
        peer.hello()
        peer.line("AUTH X", "SECRET" * 3_000, "NOOP")
        peer.expect("334", "451", "250")
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("line", [998, 999])
def test_a_body_line_may_have_so_many_octets_and_no_more(smtp_server: MakeServer, line: int) -> None:
    body = b"short\r\n" + b"x" * line + b"\r\nshort\r\n"
    for cut in (1, 7, 500, 1_004, 1_005, 1_006, 1_007, 1_008):
        server = smtp_server(start=False, max_body_line_length=1_000)
        server.on("message", lambda session, stream, ack: ack.accept())
        with dial(server) as peer:
            peer.hello()
            peer.envelope()
            peer.line("DATA")
            peer.expect("354")
            peer.send(body + b".\r\nNOOP\r\n", cut=cut)
            peer.expect("250" if line == 998 else "554 5.6.0", "250 2.0.0 Ok")


def test_a_body_line_may_be_without_limit(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"x" * 1_000_000).startswith("250")


# File descriptors


SERVER = """
import logging, resource, sys
logging.basicConfig(format="%(levelname)s %(message)s")
from greensmtp import SMTPServer
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
server.start()
print(server.address[1], flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
server.serve_forever()
"""


def has_banner(connection: native_socket.socket, timeout: float) -> bool:
    connection.settimeout(timeout)
    try:
        return connection.recv(100).startswith(b"220")
    except TimeoutError:
        return False


@pytest.mark.subprocess
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_running_out_of_descriptors_backs_off_and_recovers(tmp_path: Path) -> None:
    """In a process of its own: the descriptors of this one are wanted."""
    errors = tmp_path / "stderr"
    with errors.open("wb") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, "40"], stdout=subprocess.PIPE, stderr=stderr, env=os.environ
        )
    try:
        assert server.stdout is not None
        address = ("127.0.0.1", int(server.stdout.readline()))
        for _ in range(2):
            connections = [native_socket.create_connection(address) for _ in range(60)]
            served = sum(
                has_banner(connection, 0.05 if number > 20 else 5) for number, connection in enumerate(connections)
            )
            assert 20 < served < 40
            with native_socket.socket() as late:
                late.settimeout(5)
                late.connect(address)
                for connection in connections:
                    connection.close()
                assert has_banner(late, 10)
        assert server.poll() is None
        assert cpu_seconds(server.pid) < 5
    finally:
        server.terminate()
        server.wait(10)
        if server.stdout is not None:
            server.stdout.close()
    said = errors.read_text().splitlines()
    assert said == [
        "WARNING cannot accept connections for now: Too many open files",
        "WARNING accepting connections again",
    ] * (len(said) // 2)
    assert 2 <= len(said) <= 8


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_descriptors_of_dropped_connections_are_given_back(smtp_server: MakeServer, certificate: Certificate) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0

    plain = smtp_server(max_connections=3)
    tls = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)

    def come_and_go() -> None:
        for server in (plain, tls):
            for number in range(12):
                peer = dial(server)
                if number % 4 == 0:
                    peer.send("GET / HTTP/1.1\r\n\r\n")
                    peer.rest()
                (peer.reset if number % 2 else peer.close)()
            wait_until_empty(server)

    come_and_go()
    before = count()
    come_and_go()
    assert count() == before


# Arguments


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"max_erors": 3}, ["max_erors", "max_errors"]),
        ({"timeout": 3}, ["timeout"]),
        ({"max_errors": 0}, ["max_errors", "at least 1"]),
        ({"max_errors": "3"}, ["max_errors"]),
        ({"max_errors": True}, ["max_errors"]),
        ({"max_message_size": 0}, ["max_message_size", "None"]),
        ({"max_message_size": -1}, ["max_message_size"]),
        ({"max_connections": 1.5}, ["max_connections"]),
        ({"max_line_length": 10}, ["max_line_length", "64"]),
        ({"command_timeout": 0}, ["command_timeout", "seconds"]),
        ({"command_timeout": -1}, ["command_timeout"]),
        ({"data_timeout": None}, ["data_timeout"]),
        ({"ack_timeout": "1"}, ["ack_timeout"]),
        ({"tls_timeout": float("nan")}, ["tls_timeout"]),
        ({"min_data_rate": -1}, ["min_data_rate"]),
        ({"bare_newlines": "allow"}, ["bare_newlines", '"reject"', '"keep"']),
        ({"hostname": ""}, ["hostname"]),
        ({"hostname": "mx example com"}, ["hostname"]),
        ({"hostname": "mx.example.com\r\n250 x"}, ["hostname"]),
        ({"hostname": "caf\u00e9.example"}, ["hostname"]),
        ({"hostname": 5}, ["hostname"]),
        ({"hostname": b"mx.example.com"}, ["hostname"]),
        ({"certfile": "/does/not/exist.pem"}, ["certfile", "/does/not/exist.pem"]),
        ({"certfile": 5}, ["certfile"]),
        ({"keyfile": "key.pem"}, ["keyfile", "certfile"]),
        ({"implicit_tls": True}, ["implicit_tls", "certfile"]),
        ({"ssl_context": "context"}, ["ssl_context", "SSLContext"]),
        ({"middleware": Logging()}, ["middleware"]),
        ({"middleware": [Logging]}, ["Logging(...)"]),
        ({"middleware": [None]}, ["middleware"]),
        ({"middleware": [lambda session, command: None]}, ["middleware", "proceed"]),
        ({"backlog": "many"}, ["backlog"]),
    ],
    ids=lambda part: str(part)[:40] if isinstance(part, dict) else None,
)
def test_a_wrong_argument_is_named(options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        SMTPServer(("127.0.0.1", 0), **options)
    assert all(name in str(raised.value) for name in names)


@pytest.mark.parametrize(
    "listener",
    [
        None,
        pytest.param(object(), id="object()"),
        ("127.0.0.1",),
        ("127.0.0.1", "smtp", 3, 4, 5),
        ("127.0.0.1", 70_000),
        ("127.0.0.1", -1),
        "127.0.0.1:port",
        ("127.0.0.1", "25x"),
        b"127.0.0.1:25",
    ],
    ids=repr,
)
def test_a_wrong_listener_is_named(listener: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="listener"):
        SMTPServer(listener)


def test_a_wrong_certificate_is_named(tmp_path: Path, certificate: Certificate) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    wrong: list[dict[str, Any]] = [
        {"certfile": nonsense},
        {"certfile": certificate.certfile, "keyfile": nonsense},
        {"certfile": certificate.certfile},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match="certfile"):
            SMTPServer(("127.0.0.1", 0), **options)
    with pytest.raises(ValueError, match="keyfile"):
        SMTPServer(("127.0.0.1", 0), certfile=certificate.certfile, keyfile=tmp_path / "missing.pem")


def test_a_busy_port_is_an_error_that_names_it(smtp_server: MakeServer) -> None:
    server = smtp_server()
    other = SMTPServer(server.address, hostname="mx.example.com")
    with pytest.raises(OSError, match=str(server.address[1])):
        other.start()
    assert not other.started
    with dial(server) as peer:
        peer.hello()


def test_a_listening_socket_is_a_listener(smtp_server: MakeServer) -> None:
    listener = gevent_socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    server = smtp_server(listener=listener)
    with dial(server) as peer:
        peer.hello()


def test_many_peers_at_once_are_all_served(smtp_server: MakeServer) -> None:
    server = smtp_server()
    server.on("message", lambda session, stream, ack: ack.accept())

    def talk() -> str:
        with dial(server) as peer:
            peer.hello()
            return peer.deliver(b"x" * 10_000)

    talking = [spawn(talk) for _ in range(200)]
    assert {each.get(timeout=20)[:3] for each in talking} == {"250"}
