"""Resource exhaustion: the memory, CPU time and waiting that one client can cause are bounded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from gevent import spawn, subprocess
from gevent.event import Event

from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from tests.attacks.conftest import Play
    from tests.conftest import Certificate

pytestmark = pytest.mark.xdist_group("serial")

MEGABYTE = 1024 * 1024
#: Twenty times what a connection may take of memory.
LARGE = 20 * MEGABYTE
Measure = Callable[[Callable[[], object]], int]


class Ending:
    """Waits for the end of a connection, and keeps its reason."""

    def __init__(self, server: SMTPServer) -> None:
        self.reasons: list[str] = []
        self._over = Event()
        server.on("disconnect", self.ended)

    def ended(self, session: Session, reason: str) -> None:
        self.reasons.append(reason)
        self._over.set()

    def wait(self) -> str:
        assert self._over.wait(10), "the connection has not ended"
        return self.reasons[-1]


def flood(peer: Peer, block: bytes, total: int) -> int:
    """Send the same bytes over and over, until ``total`` or the server closes; return how many were sent."""
    sent = 0
    try:
        while sent < total:
            peer.socket.sendall(block)
            sent += len(block)
    except ConnectionError:
        pass
    return sent


# Memory


@pytest.mark.parametrize("octet", [b"x", b"\n", b"\r", b"\0", b" "], ids=repr)
def test_20_mb_without_an_end_of_line_take_no_memory(
    smtp_server: MakeServer, measure_memory: Measure, octet: bytes
) -> None:
    server = smtp_server(start=False)
    block = octet * 65536

    def attack() -> None:
        with dial(server) as peer:
            peer.hello()
            assert flood(peer, block, LARGE) < 4 * MEGABYTE
            assert b"\r\n421 4" in b"\r\n" + peer.rest()

    assert measure_memory(attack) < MEGABYTE


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_a_body_of_20_mb_without_an_end_of_line_takes_no_memory(
    smtp_server: MakeServer, measure_memory: Measure, verb: str, reads: bool
) -> None:
    server = smtp_server(start=False, max_message_size=None)
    sizes: list[int] = []
    block = b"x" * 65536

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        if reads:
            while stream.read(100_000):
                pass

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        assert session.message is not None
        sizes.append(session.message.size)
        ack.accept()

    def attack() -> None:
        with dial(server) as peer:
            peer.hello()
            peer.envelope()
            peer.line("DATA" if verb == "DATA" else f"BDAT {LARGE} LAST")
            if verb == "DATA":
                peer.expect("354")
            assert flood(peer, block, LARGE) == LARGE
            if verb == "DATA":
                peer.send("\r\n.\r\n")
            peer.expect("250 2.0.0 Ok")

    assert measure_memory(attack) < MEGABYTE
    assert sizes == [LARGE + (2 if verb == "DATA" else 0)]


@pytest.mark.parametrize(
    "block", [b"\r\n" * 32768, b".\r\n.\n" * 13107, b"\r\n..\r\n" * 10922], ids=lambda block: repr(block[:8])
)
def test_a_refused_body_of_20_mb_takes_no_memory(
    smtp_server: MakeServer, measure_memory: Measure, block: bytes
) -> None:
    """It is too large after 1 kB, and is then drained to an end that does not come."""
    server = smtp_server(start=False, max_message_size=1_000)
    server.on("message", lambda session, stream, ack: ack.accept())

    def attack() -> None:
        with dial(server) as peer:
            peer.hello()
            peer.envelope()
            peer.line("DATA")
            peer.expect("354")
            flood(peer, b"x" + block.replace(b"\r\n.\r\n", b"\r\n..\r\n"), LARGE)
            peer.send("\r\n.\r\n")
            peer.expect("552")

    assert measure_memory(attack) < 2 * MEGABYTE


def test_a_slow_reader_slows_its_peer(smtp_server: MakeServer, measure_memory: Measure) -> None:
    """The server reads nothing ahead of the receiver."""
    server = smtp_server(start=False, max_message_size=None)
    go_on = Event()

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        go_on.wait(10)
        for _ in stream:
            pass

    def attack() -> None:
        with dial(server) as peer:
            peer.hello()
            peer.envelope()
            peer.line("DATA")
            peer.expect("354")
            flooding = spawn(flood, peer, b"x" * 65536, LARGE)
            flooding.join(0.2)
            assert not flooding.ready()
            go_on.set()
            assert flooding.get(timeout=10) == LARGE
            peer.send("\r\n.\r\n")
            peer.expect("250")

    assert measure_memory(attack) < MEGABYTE


def test_100_000_recipients_are_a_thousand_and_then_421(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    block = b"RCPT TO:<somebody@example.com>\r\n" * 2_000
    codes: dict[bytes, int] = {}

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("250")
        flooding = spawn(flood, peer, block, len(block) * 50)
        rest = b""
        while b"421" not in codes:
            *lines, rest = (rest + peer.socket.recv(65536)).split(b"\r\n")
            for line in lines:
                codes[line[:3]] = codes.get(line[:3], 0) + 1
        flooding.kill()
    assert codes == {b"250": 1_000, b"452": 1_020, b"421": 1}


def test_connections_that_come_and_go_leave_nothing_behind(smtp_server: MakeServer, measure_memory: Measure) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())

    def come_and_go() -> None:
        for number in range(100):
            with dial(server) as peer:
                peer.hello()
                if number % 3:
                    peer.deliver(b"x" * 50_000)
                if number % 2:
                    peer.line("QUIT")
                    peer.expect("221")
            peer.let_it_read()

    come_and_go()
    assert measure_memory(come_and_go) < MEGABYTE
    assert not server.connections


# CPU


@pytest.mark.parametrize("newline", [b"\r\n", b"\n", b"\r", b"\n\r"], ids=repr)
def test_64_kib_of_newlines_end_in_421_soon(play: Play, newline: bytes) -> None:
    began = time.monotonic()
    outcome = play(newline * (65536 // len(newline)) + b"\r\n", max_errors=10)
    assert time.monotonic() - began < 2
    assert set(outcome.codes[1:]) <= {500, 421}
    assert len(outcome.codes) <= 12


def test_64_kib_of_newlines_in_a_body_are_a_body(play: Play) -> None:
    began = time.monotonic()
    wire = b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
    for body in (b"\r\n" * 32768, b"\n" * 65534 + b"\r\n", b"\r" * 65534 + b"\r\n", b"..\r\n" * 16384):
        outcome = play(wire + body + b".\r\nQUIT\r\n", bare_newlines="keep")
        assert [len(message) for message in outcome.messages] == [len(body.replace(b"..", b"."))]
    assert time.monotonic() - began < 2


ROOM = 64 * 1024

NESTED = [
    b'MAIL FROM:<"' + b'\\"' * 30_000 + b">",
    b'MAIL FROM:<"' + b"a" * 60_000,
    b"MAIL FROM:<" + b'"a"' * 20_000 + b"@example.org>",
    b"MAIL FROM:<" + b"<" * 60_000 + b">" * 100,
    b"MAIL FROM:<" + b"(" * 60_000 + b")@example.org>",
    b"MAIL FROM:<" + b"@a," * 20_000 + b"@a:b@c>",
    b"MAIL FROM:<" + b"@a," * 20_000 + b"b@c>",
    b"MAIL FROM:<@" + b"a-" * 30_000 + b":b@c>",
    b"MAIL FROM:<@" + b"a." * 30_000 + b"a,b@c>",
    b"MAIL FROM:<" + b"a." * 30_000 + b"@example.org>",
    b"MAIL FROM:<" + b"a" * 60_000 + b">",
    b"MAIL FROM:<" + b"a@" * 30_000 + b">",
    b"MAIL FROM:<a@" + b"a-" * 30_000 + b">",
    b"MAIL FROM:<a@" + b"a." * 30_000 + b">",
    b"MAIL FROM:<a@" + b"a" * 60_000 + b"!>",
    b"MAIL FROM:<a@[IPv6:" + b"1:" * 30_000 + b"]>",
    b"MAIL FROM:<a@[" + b"1." * 30_000 + b"]>",
    b"MAIL FROM:<a@[x:" + b"y" * 60_000 + b"\\]>",
    b"MAIL FROM:<a@b.c> " + b"A=1 " * 15_000,
    b"MAIL FROM:<a@b.c> " + b"".join(b"A%d=1 " % number for number in range(7_000)),
    b"MAIL FROM:<a@b.c> " + b" " * 60_000 + b"!",
    b"MAIL FROM:" + b" " * 60_000 + b"!",
    b"MAIL " + b" " * 60_000 + b"FROM:<a@b.c>",
    b"MAIL FROM:<a@b.c> SIZE=" + b"9" * 60_000,
    b"BDAT " + b"0" * 60_000,
    b"BDAT " + b"0" * 60_000 + b"x",
    b"BDAT 1" + b" " * 60_000 + b"x",
    b"EHLO " + b"x" * 60_000,
    b"NOOP " + b"\xc3\xa9" * 30_000,
    b"NOOP " + b"x HTTP/ " * 7_000,
    b"x " * 30_000,
    b"[" * 60_000,
    b"\t" * 60_000,
    b"\xff" * 60_000,
]


@pytest.mark.parametrize("line", NESTED, ids=lambda line: repr(line[:18]))
def test_no_line_is_long_in_parsing(play: Play, line: bytes) -> None:
    """Even if the longest allowed line is a hundred times that of RFC 5321."""
    began = time.process_time()
    outcome = play(b"EHLO x\r\n" + line + b"\r\nQUIT\r\n", max_line_length=ROOM)
    assert time.process_time() - began < 0.5
    assert len(outcome.codes) == 4
    assert outcome.codes[2] in (500, 501, 553, 555, 250, 503)


def test_thousands_of_odd_lines_are_no_load(play: Play) -> None:
    began = time.process_time()
    wire = b"EHLO x\r\n" + b"".join(line[:500] + b"\r\n" for line in NESTED) * 100
    outcome = play(wire, max_errors=100_000, max_idle_commands=100_000)
    assert len(outcome.codes) == 2 + 100 * len(NESTED)
    assert time.process_time() - began < 3


# Timeouts


def drip(peer: Peer, octets: bytes, clock: VirtualClock) -> None:
    """Send a byte each 20 ms until the server closes the connection."""
    try:
        for octet in octets:
            peer.socket.sendall(bytes((octet,)))
            clock.sleep(0.02)
    except OSError:
        pass


def test_a_command_that_drips_is_timed_out_as_a_whole(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, command_timeout=0.3)
    ending = Ending(server)
    with dial(server) as peer:
        peer.hello()
        began = clock.now
        dripping = spawn(drip, peer, b"NOOP " + b"x" * 400, clock)
        peer.expect("421 4.4.2")
        peer.expect_end()
        assert 0.25 < clock.now - began < 0.4
        dripping.kill()
    assert ending.wait() == "timeout"


def test_a_line_too_long_that_drips_is_timed_out_as_a_whole(smtp_server: MakeServer, clock: VirtualClock) -> None:
    server = smtp_server(start=False, command_timeout=0.3)
    with dial(server) as peer:
        peer.hello()
        peer.send(b"x" * 20_000)
        dripping = spawn(drip, peer, b"x" * 400, clock)
        peer.expect("421 4.4.2")
        dripping.kill()


@pytest.mark.parametrize("verb", ["DATA", "BDAT 1000 LAST", "BDAT refused"])
def test_a_body_that_drips_is_given_up(smtp_server: MakeServer, clock: VirtualClock, verb: str) -> None:
    server = smtp_server(start=False, min_data_rate=1_000, data_rate_grace=0.3)
    ending = Ending(server)
    errors: list[BaseException] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        if verb == "BDAT refused":
            ack.reject()
            return
        ack.accept()
        try:
            stream.read()
        except OSError as error:
            errors.append(error)
            raise

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line(verb.replace("refused", "1000 LAST"))
        if verb == "DATA":
            peer.expect("354")
        elif verb == "BDAT refused":
            peer.expect("550")
        dripping = spawn(drip, peer, b"x" * 400, clock)
        peer.expect("421 4.4.2")
        peer.expect_end()
        dripping.kill()
    assert ending.wait() == "slow"
    assert len(errors) == (verb != "BDAT refused")


@pytest.mark.usefixtures("clock")
def test_a_peer_that_never_reads_is_dropped(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, command_timeout=0.3, max_idle_commands=10**9, max_errors=10**9)
    ending = Ending(server)
    with dial(server) as peer:
        flooding = spawn(flood, peer, b"HELP\r\n" * 10_000, LARGE)
        assert ending.wait() == "timeout"
        assert flooding.get(timeout=10) < 10 * MEGABYTE


@pytest.mark.usefixtures("clock")
def test_a_peer_that_never_reads_takes_no_memory(smtp_server: MakeServer, measure_memory: Measure) -> None:
    server = smtp_server(start=False, command_timeout=0.3, max_idle_commands=10**9, max_errors=10**9)

    def attack() -> None:
        ending = Ending(server)
        with dial(server) as peer:
            flooding = spawn(flood, peer, b"RCPT\r\n" * 10_000, LARGE)
            assert ending.wait() == "timeout"
            flooding.kill()

    # 16 KiB of commands at once, and their replies.
    assert measure_memory(attack) < 2 * MEGABYTE


@pytest.mark.usefixtures("clock")
def test_a_peer_that_never_reads_tls_is_dropped(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(
        start=False,
        command_timeout=0.3,
        max_idle_commands=10**9,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=True,
    )
    ending = Ending(server)
    with dial(server) as peer:
        peer.start_tls()
        flooding = spawn(flood, peer, b"HELP\r\n" * 10_000, LARGE)
        assert ending.wait() == "timeout"
        flooding.kill()


def test_a_peer_that_hangs_on_after_its_last_reply_is_let_go(smtp_server: MakeServer) -> None:
    """The server waits for the client's close for a bounded time, and reads a bounded number of bytes."""
    server = smtp_server(start=False, max_errors=1)
    ending = Ending(server)
    with dial(server) as peer:
        peer.hello()
        peer.line("WHAT")
        peer.expect("500", "421")
        assert flood(peer, b"x" * 65536, LARGE) < 10 * MEGABYTE
        assert ending.wait() == "errors"


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "STARTTLS"])
@pytest.mark.parametrize("octets", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 40], ids=len)
def test_half_a_tls_hello_is_timed_out(
    smtp_server: MakeServer, clock: VirtualClock, certificate: Certificate, implicit: bool, octets: bytes
) -> None:
    server = smtp_server(
        start=False,
        tls_timeout=0.3,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=implicit,
    )
    ending = Ending(server)
    with dial(server) as peer:
        if not implicit:
            peer.hello()
            peer.line("STARTTLS")
            peer.expect("220")
        began = clock.now
        peer.send(octets)
        peer.rest()
        assert 0.25 < clock.now - began < 0.4
    assert ending.wait() == "timeout"


def test_a_tls_hello_that_drips_is_timed_out_as_a_whole(
    smtp_server: MakeServer, clock: VirtualClock, certificate: Certificate
) -> None:
    server = smtp_server(
        start=False,
        tls_timeout=0.3,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=True,
    )
    ending = Ending(server)
    with dial(server) as peer:
        dripping = spawn(drip, peer, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 400, clock)
        assert ending.wait() == "timeout"
        dripping.kill()


# Others


def test_a_hundred_slow_peers_do_not_slow_another(smtp_server: MakeServer) -> None:
    server = smtp_server()
    server.on("message", lambda session, stream, ack: ack.accept())
    slow = [dial(server) for _ in range(100)]
    for number, peer in enumerate(slow):
        peer.hello()
        if number % 2:
            peer.envelope()
            peer.line("DATA")
            peer.expect("354")
        peer.send("half a line")
    began = time.monotonic()
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("250")
    assert time.monotonic() - began < 1
    for peer in slow:
        peer.close()


#: A blocking client that sends a body of 8 MB as fast as it can, in a separate process.
CLIENT = """
import smtplib, ssl, sys
client = smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=30)
client.ehlo("client.example")
if sys.argv[2] == "True":
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client.starttls(context=context)
    client.ehlo("client.example")
client.mail("a@example.org")
client.rcpt("b@example.com")
assert client.docmd("DATA")[0] == 354
client.sock.sendall((b"x" * 78 + b"\\r\\n") * (8 * 1024 * 1024 // 80) + b".\\r\\n")
assert client.getreply()[0] == 250
client.close()
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_body_that_comes_as_fast_as_it_is_read_stalls_no_other_connection(
    smtp_server: MakeServer, certificate: Certificate, tls: bool
) -> None:
    """The client is always ahead of the receiver, so reading the body never waits."""
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, max_idle_commands=10**6)
    begun, received = Event(), Event()

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        for chunk in stream:
            begun.set()
            until = time.perf_counter() + len(chunk) / (16 * MEGABYTE)  # half a second for the whole of it
            while time.perf_counter() < until:
                pass
        received.set()

    assert isinstance(server.address, tuple)
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(server.address[1]), str(tls)])
    try:
        with dial(server) as peer:
            peer.hello()
            assert begun.wait(20)
            turns = 0
            while not received.is_set():
                peer.line("NOOP")
                peer.expect("250")
                turns += 1
        assert client.wait(20) == 0
    finally:
        client.kill()
        client.wait()
    assert turns > 10
