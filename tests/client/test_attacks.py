"""Hostile and broken servers: the outcome is an error within bounds, never a desync."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket, spawn
from gevent.event import Event

from greensmtp import (
    CannotConnect,
    ClientError,
    DataRefused,
    Disconnected,
    PeerProtocolError,
    Timeouts,
    TLSFailed,
    connect,
)

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]


def banner_then(*lines: str) -> Callable[[Script], Any]:
    """Return a script: the banner, these lines in reply to the first command, and a wait for the end."""

    def script(script: Script) -> None:
        script.say("220 hi")
        script.hear()
        script.say(*lines)
        script.rest()

    return script


# Replies that are none

JUNK = [
    b"250-one\r\n251 two\r\n",
    b"250-one\r\n550 two\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"250 x\n",
    b"250x\r\n",
    b"\r\n",
    b"250 \0\r\n",
    b"999 x\r\n",
]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_instead_of_a_reply_is_an_error_at_every_cut(scripted: Start, junk: bytes) -> None:
    for cut in range(len(junk)):

        def script(script: Script, cut: int = cut) -> None:
            script.say("220 hi")
            script.hear()
            script.send(junk[:cut])
            script.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script.send(junk[cut:])
            assert script.rest() == b""

        mail = scripted(script).connect()
        with pytest.raises(PeerProtocolError):
            mail.noop()
        assert mail.closed
        with pytest.raises(Disconnected):
            mail.noop()


@pytest.mark.parametrize("junk", JUNK)
def test_a_malformed_banner_is_an_error(scripted: Start, junk: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        scripted(lambda script: (script.send(junk), script.rest())).connect()


@pytest.mark.parametrize("filler", [b"250-x\r\n", b"x" * 1000, b"250-" + b"x" * 1000, b"250-\r\n"])
def test_replies_without_end_are_bounded(scripted: Start, filler: bytes) -> None:
    sent = 0
    over = Event()

    def script(script: Script) -> None:
        nonlocal sent
        script.say("220 hi")
        script.hear()
        try:
            while True:
                script.send(filler * 100)
                sent += len(filler) * 100
        except OSError:
            over.set()

    mail = scripted(script).connect()
    with pytest.raises(PeerProtocolError):
        mail.noop()
    assert mail.closed
    assert over.wait(5)
    # What the client has read, and what the buffers of two sockets hold.
    assert 0 < sent < 16 * 1024 * 1024


def test_an_unfinished_multiline_reply_times_out(scripted: Start) -> None:
    mail = scripted(banner_then("250-")).connect(timeout=Timeouts(command=0.05))
    with pytest.raises(Disconnected, match="timeout"):
        mail.noop()


def test_a_connection_closed_within_a_multiline_reply_is_disconnected(scripted: Start) -> None:
    mail = scripted(lambda script: (script.say("220 hi"), script.hear(), script.say("250-x"))).connect()
    with pytest.raises(Disconnected, match="closed"):
        mail.noop()


# Unsolicited replies


@pytest.mark.parametrize("extra", ["250 and another", "354 go", "250-half of"])
def test_unsolicited_replies_are_not_taken_for_the_next_one(scripted: Start, extra: str) -> None:
    said = Event()

    def script(script: Script) -> None:
        script.say("220 hi")
        script.hear()
        script.say("250 Ok", extra)
        said.set()
        assert script.rest() == b""

    mail = scripted(script).connect()
    assert mail.noop().code == 250
    said.wait()
    if not mail._transport._reader.pending:
        socket.wait_read(mail.socket.fileno())
    with pytest.raises(PeerProtocolError, match="unsolicited reply"):
        mail.noop()
    assert mail.closed


def test_a_late_unsolicited_reply_is_an_error(scripted: Start) -> None:
    go = Event()

    def script(script: Script) -> None:
        script.say("220 hi")
        script.hear()
        script.say("250 Ok")
        go.wait()
        script.say("250 nobody asked")
        assert script.rest() == b""

    mail = scripted(script).connect()
    assert mail.noop().code == 250
    go.set()
    socket.wait_read(mail.socket.fileno())
    with pytest.raises(PeerProtocolError):
        mail.from_("a@example.com")


def test_text_after_the_banner_is_an_error(scripted: Start) -> None:
    mail = scripted(lambda script: (script.say("220 hi", "250 Ok"), script.rest())).connect()
    with pytest.raises(PeerProtocolError):
        mail.ehlo()


def test_an_unsolicited_421_is_disconnected(scripted: Start) -> None:
    said = Event()

    def script(script: Script) -> None:
        script.say("220 hi")
        script.hear()
        script.say("250 Ok", "421 4.3.2 going down")
        said.set()

    mail = scripted(script).connect()
    mail.noop()
    said.wait()
    if not mail._transport._reader.pending:
        socket.wait_read(mail.socket.fileno())
    with pytest.raises(Disconnected) as caught:
        mail.noop()
    assert caught.value.reply is not None
    assert caught.value.reply.code == 421
    assert caught.value.safe_to_retry


def test_more_replies_than_pipelined_commands_is_an_error(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT")
        script.say("250 1", "250 2", "250 3")
        script.rest()

    mail = scripted(script).connect()
    mail.ehlo()
    with mail.pipeline() as batch:
        batch.from_("a@example.com")
        batch.to("b@example.com")
    assert [reply.text for reply in batch] == ["1", "2"]
    with pytest.raises(PeerProtocolError):
        mail.data()


def test_a_positive_reply_to_data_does_not_start_the_message(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "250 3")
        assert script.rest() == b""

    with pytest.raises(PeerProtocolError, match="unexpected reply to DATA"):
        scripted(script).connect().send(b"x", "a@example.com", "b@example.com")


# Time


@pytest.mark.parametrize("lines", [(), ("220-hi",), ("220-hi", "220-")])
def test_a_missing_banner_times_out(scripted: Start, lines: tuple[str, ...]) -> None:
    server = scripted(lambda script: (script.say(*lines), script.rest()))
    began = monotonic()
    with pytest.raises(CannotConnect, match=r"no banner.*timeout"):
        server.connect(timeout=Timeouts(banner=0.05))
    assert monotonic() - began < 5


def test_single_bytes_do_not_extend_the_deadline(scripted: Start) -> None:
    """The deadline applies to the reply, not to each byte."""

    def script(script: Script) -> None:
        script.say("220 hi")
        script.hear()
        try:
            while True:
                script.send(b"250-x\r\n")
                tick.wait(0.02)
        except OSError:
            pass

    tick = Event()
    mail = scripted(script).connect(timeout=Timeouts(command=0.1))
    began = monotonic()
    with pytest.raises(Disconnected, match="timeout"):
        mail.noop()
    assert monotonic() - began < 5


def test_a_server_that_never_reads_times_out(scripted: Start) -> None:
    done = Event()

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        done.wait(20)

    mail = scripted(script).connect(timeout=Timeouts(data=0.1))
    with pytest.raises(Disconnected, match="timeout") as caught:
        mail.send(b"x" * 50_000_000, "a@example.com", "b@example.com")
    done.set()
    assert caught.value.safe_to_retry  # the dot was not sent
    assert not caught.value.after_content


def test_each_wait_has_its_own_timeout(scripted: Start) -> None:
    """A short timeout after a long one, and the reverse."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        script.body()
        script.rest()

    mail = scripted(script).connect(timeout=Timeouts(final=0.05))
    with pytest.raises(Disconnected, match="timeout") as caught:
        mail.send(b"x", "a@example.com", "b@example.com")
    assert caught.value.after_content
    assert not caught.value.safe_to_retry


def test_a_stalled_tls_handshake_times_out(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("STARTTLS")
        script.expect("STARTTLS")
        script.say("220 go")
        script.socket.recv(65536)
        script.send(b"\x16\x03\x03\x00\x7a\x02")
        script.rest()

    mail = scripted(script).connect(timeout=Timeouts(tls=0.1))
    mail.ehlo()
    with pytest.raises(TLSFailed, match=r"timed out after 0\.1 s"):
        mail.starttls()
    assert mail.closed


def test_safe_to_retry_when_the_server_vanishes_at_any_point(scripted: Start) -> None:
    """The error knows whether the message may be sent again."""
    parts = [b"220 hi\r\n", b"250-mx\r\n250 PIPELINING\r\n", b"250 1\r\n250 2\r\n354 go\r\n", b"250 done\r\n"]
    go_ahead = sum(map(len, parts[:3]))
    outcomes: dict[int, Any] = {}
    for cut in range(go_ahead + len(parts[3])):

        def script(script: Script, cut: int = cut) -> None:
            hear: Any = iter([script.hear, lambda: script.expect("MAIL", "RCPT", "DATA"), script.body])
            left = cut
            for part in parts:
                script.send(part[:left])
                left -= len(part)
                if left < 0:
                    return
                next(hear)()

        try:
            mail = scripted(script).connect()
            mail.send(b"x", "a@example.com", "b@example.com")
        except Disconnected as lost:
            outcomes[cut] = (lost.safe_to_retry, lost.after_content)
        except CannotConnect:
            outcomes[cut] = None
        else:
            pytest.fail(f"sent, though the peer vanished after {cut} bytes")
    banner = len(parts[0])
    assert outcomes == {
        cut: None if cut < banner else (cut < go_ahead, cut >= go_ahead) for cut in range(go_ahead + len(parts[3]))
    }


# Trust


@pytest.mark.parametrize("text", ["250 injected", "250-mx\r\n250 AUTH PLAIN", "2", "\r\n", "x" * 5])
def test_text_before_the_handshake(scripted: Start, text: str) -> None:
    """CVE-2011-0411 on the client's side: plaintext after 220 is never taken for text within TLS."""

    def script(script: Script) -> None:
        script.greet("STARTTLS")
        script.expect("STARTTLS")
        script.send(f"220 go\r\n{text}".encode())
        script.rest()

    mail = scripted(script).connect()
    mail.ehlo()
    with pytest.raises((PeerProtocolError, TLSFailed)):
        mail.starttls()
    assert mail.closed
    assert mail.hello is None


def test_a_refused_starttls_leaves_the_connection_as_it_is(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("STARTTLS")
        script.expect("STARTTLS")
        script.say("454 4.7.0 not now")
        script.expect("NOOP")
        script.say("250 Ok")
        script.rest()

    mail = scripted(script).connect()
    mail.ehlo()
    assert mail.starttls().code == 454
    assert not mail.tls
    assert "STARTTLS" in mail.extensions
    assert mail.noop().code == 250


def test_nothing_is_sent_before_the_banner(scripted: Start) -> None:
    heard: list[bytes] = []

    def script(script: Script) -> None:
        script.socket.settimeout(0.05)
        try:
            heard.append(script.socket.recv(100))
        except TimeoutError:
            pass
        script.socket.settimeout(None)
        script.say("220 hi")
        script.rest()

    with scripted(script).connect():
        assert heard == []


@pytest.mark.parametrize("banner", ["554 no", "421 busy", "250 what?"])
def test_a_banner_that_refuses_service_is_cannot_connect(scripted: Start, banner: str) -> None:
    with pytest.raises(CannotConnect) as caught:
        scripted(lambda script: (script.say(banner), script.rest())).connect()
    assert caught.value.reply is not None
    assert caught.value.transient == banner.startswith("4")


def test_a_refusal_in_the_middle_of_a_body_is_reported(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        script.exactly(1000)
        script.say("552 5.3.4 too large")
        script.socket.shutdown(socket.SHUT_WR)
        script.rest()

    mail = scripted(script).connect()
    with pytest.raises((DataRefused, Disconnected)) as caught:
        mail.send(b"x" * 3_000_000, "a@example.com", "b@example.com")
    assert caught.value.reply is not None
    assert caught.value.reply.code == 552


def test_a_slow_server_does_not_block_other_clients(scripted: Start) -> None:
    slow = scripted(lambda script: (script.say("220 hi"), script.rest()))
    quick = scripted(banner_then("250 Ok"))
    waiting = slow.connect(timeout=30)
    greenlet = spawn(waiting.noop)
    with quick.connect() as mail:
        assert mail.noop().code == 250
    assert not greenlet.ready()
    waiting.close()
    greenlet.join(5)
    assert isinstance(greenlet.exception, ClientError)


def test_a_refused_connection_is_not_a_timeout() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(CannotConnect):
            connect(*probe.getsockname(), timeout=5)
