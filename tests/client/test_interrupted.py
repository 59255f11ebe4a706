"""Kills and timeouts in the middle of a message, and what is known then about the message."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent import Timeout, socket, spawn
from gevent.event import Event

from greensmtp import CannotConnect, DataRefused, Disconnected, Pool, RecipientsRefused, Timeouts, connect
from greensmtp.client.message import CHUNKING_PAYS
from greensmtp.client.message_content import MAX_MEMORY

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


class Stuck:
    """A server that stops answering on its first connection after a given verb, and serves all others well."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.there = Event()
        self.over = Event()
        self.bodies: list[bytes] = []

    def first(self, script: Script) -> None:
        try:
            self._serve(script, at=self.at)
        finally:
            self.over.set()

    def others(self, script: Script) -> None:
        self._serve(script)

    def _serve(self, script: Script, at: str = "nothing") -> None:
        if at == "banner":
            self._hang(script)
            return
        script.say("220 mx")
        while line := script.hear():
            if line.startswith(at):
                self._hang(script)
                return
            if line.startswith("EHLO"):
                script.say("250-mx", "250 PIPELINING")
            elif line == "DATA":
                script.say("354 go")
                try:
                    body = script.body()
                except AssertionError:  # the end of the connection
                    return
                if at == "end":
                    self._hang(script)
                    return
                self.bodies.append(body)
                script.say("250 Ok")
            else:
                script.say("250 Ok")

    def _hang(self, script: Script) -> None:
        self.there.set()
        script.rest()


POINTS = ["banner", "EHLO", "MAIL", "RCPT", "DATA", "end"]


@pytest.mark.parametrize("at", POINTS)
def test_a_killed_greenlet_closes_its_connection(scripted: Start, at: str) -> None:
    stuck = Stuck(at)
    server = scripted(stuck.first, stuck.others)
    with Pool("127.0.0.1", server.port, 1, timeout=20) as pool:
        sending = spawn(pool.send, b"one", FROM, TO)
        assert stuck.there.wait(20)
        sending.kill()
        assert (pool.busy, pool.idle) == (0, 0)
        assert stuck.over.wait(20)  # the connection is closed
        assert pool.send(b"two", FROM, TO).reply.code == 250
    assert stuck.bodies == [b"two\r\n"]


class CallersTimeout(BaseException):
    pass


@pytest.mark.parametrize(
    "late", [None, TimeoutError("mine"), OSError("mine"), CallersTimeout("mine"), ValueError("mine")]
)
@pytest.mark.parametrize("at", ["banner", "EHLO", "DATA", "end"])
def test_a_callers_timeout_is_raised_unchanged(scripted: Start, at: str, late: Any) -> None:
    """It is not taken for an error of the server, and nothing is sent again."""
    stuck = Stuck(at)
    server = scripted(stuck.first, stuck.others)
    with Pool("127.0.0.1", server.port, 1, timeout=20) as pool:
        timeout = Timeout(None, late)

        def ring() -> None:
            stuck.there.wait(20)
            gevent.get_hub().loop.run_callback(main.throw, timeout if late is None else late)

        main = gevent.getcurrent()
        ringing = spawn(ring)
        expected = Timeout if late is None else type(late)
        with pytest.raises(expected) as caught:
            pool.send(b"one", FROM, TO)
        ringing.join()
        assert caught.value is (timeout if late is None else late)
        assert (pool.busy, pool.idle) == (0, 0)
        assert stuck.over.wait(20)
        assert stuck.bodies == []
        assert pool.send(b"two", FROM, TO).reply.code == 250
    assert stuck.bodies == [b"two\r\n"]


def test_a_kill_while_the_source_is_read_closes_the_connection(scripted: Start) -> None:
    """Half a message was sent, so the connection must not be used for another."""
    half = Event()

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        for verb, reply in (("MAIL", "250 1"), ("RCPT", "250 2"), ("DATA", "354 go")):
            script.expect(verb)
            script.say(reply)
        assert b"QUIT" not in script.rest()

    class Slow:
        """Return some bytes, and then block forever."""

        def read(self, size: int = -1, /) -> bytes:
            if not half.is_set():
                half.set()
                return b"x" * 100_000
            Event().wait()
            raise AssertionError

    mail = scripted(script).connect()
    mail.ehlo()
    mail.from_(FROM)
    mail.to(TO)
    mail.data()
    writing = spawn(mail.message, Slow())
    assert half.wait(20)
    writing.kill()
    assert mail.closed


class Broken(io.BytesIO):
    """A file that can be read once; reading it again raises an error."""

    passes = 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.passes += 1
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        if self.passes > 1 and self.tell() > 1_000_000:
            raise OSError(5, "the disk's own")
        return super().read(size)


@pytest.mark.parametrize("offers", [("PIPELINING",), ("PIPELINING", "CHUNKING")])
def test_an_error_of_the_source_does_not_end_the_message(scripted: Start, offers: tuple[str, ...]) -> None:
    def script(script: Script) -> None:
        script.greet(*offers)
        script.expect("MAIL", "RCPT")
        script.say("250 1", "250 2")
        if "CHUNKING" not in offers:
            script.expect("DATA")
            script.say("354 go")
        rest = script.rest()
        assert not rest.endswith(b"\r\n.\r\n")
        assert b"LAST" not in rest
        assert b"QUIT" not in rest

    with scripted(script).connect(timeout=20) as mail:
        with pytest.raises(OSError, match="disk's own"):
            mail.send(Broken(b"\r\n" + b"y" * (MAX_MEMORY + 1_000_000)), FROM, TO)
        assert mail.closed


def test_killing_some_of_many_greenlets_does_not_disturb_the_others(scripted: Start) -> None:
    """Killed while waiting for the pool, while sending, or just after getting a connection: no slot is lost."""

    server = scripted(Stuck("nothing").others)
    with Pool("127.0.0.1", server.port, 3, timeout=20) as pool:
        greenlets = [spawn(pool.send, b"x", FROM, TO) for _ in range(60)]
        for number, greenlet in enumerate(greenlets):
            if number % 3 == 0:
                gevent.sleep(0)
                greenlet.kill(block=False)
        gevent.joinall(greenlets)
        assert pool.busy == 0
        assert all(greenlet.successful() for greenlet in greenlets)  # killed, or done: nothing else
        gevent.joinall([spawn(pool.send, b"y", FROM, TO) for _ in range(9)], raise_error=True)
        assert pool.busy == 0
        assert pool.idle <= 3


# What is known about the message


def resets(*, after: int, offers: tuple[str, ...] = ("PIPELINING",), said: bytes = b"") -> Callable[[Script], None]:
    """Read ``after`` bytes of a message, send a reply, and reset the connection."""

    def script(script: Script) -> None:
        script.greet(*offers)
        script.expect("MAIL", "RCPT")
        if "CHUNKING" in offers:
            script.say("250 1", "250 2")
        else:
            script.expect("DATA")
            script.say("250 1", "250 2", "354 go")
        script.exactly(after)
        script.send(said)
        script.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    return script


@pytest.mark.parametrize("offers", [("PIPELINING",), ("PIPELINING", "CHUNKING")])
@pytest.mark.parametrize("size", [CHUNKING_PAYS, 30_000_000])
def test_a_reset_in_the_middle_of_the_content(scripted: Start, offers: tuple[str, ...], size: int) -> None:
    server = scripted(resets(after=1000, offers=offers))
    mail = server.connect(timeout=20)
    with pytest.raises(Disconnected) as caught:
        mail.send(b"x" * size, FROM, TO)
    # The kernel may have taken all of the smaller one when the reset arrives; then the outcome is unknown.
    assert caught.value.safe_to_retry is not caught.value.after_content
    if size > CHUNKING_PAYS:
        assert caught.value.safe_to_retry


def test_a_message_whose_end_was_not_sent_is_safe_to_retry(scripted: Start) -> None:
    """The last piece of the body and its final dot wait for a server that does not read."""
    done = Event()

    def script(script: Script) -> None:
        script.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        done.wait(20)

    ours = socket.socket()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = scripted(script)
    ours.connect(("127.0.0.1", server.port))
    mail = connect(ours, timeout=Timeouts(data=0.1))
    with pytest.raises(Disconnected, match="timeout") as caught:
        # One piece, that is larger than what the two kernels hold for a connection of loopback's segments.
        mail.send(b"x" * 250_000, FROM, TO)
    done.set()
    assert not caught.value.after_content
    assert caught.value.safe_to_retry


def test_a_disconnect_after_all_recipients_were_refused_is_refused(scripted: Start) -> None:
    """All recipients are refused, DATA is accepted, and the server vanishes: the error is the refusal."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "550 no", "354 go")
        assert script.body() == b""

    mail = scripted(script).connect()
    with pytest.raises(RecipientsRefused) as caught:
        mail.send(b"the secret body", FROM, TO)
    assert caught.value.safe_to_retry
    assert mail.closed


def test_421_to_the_empty_message_keeps_the_refusal(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("550 no", "503 no", "354 go")
        assert script.body() == b""
        script.say("421 bye")
        assert script.rest() == b""

    mail = scripted(script).connect()
    with pytest.raises(Exception, match="550 no"):
        mail.send(b"the secret body", FROM, TO)
    assert mail.closed


@pytest.mark.parametrize("at", [0, 1, 2])
def test_421_in_a_window_of_chunks(scripted: Start, at: int) -> None:
    """Chunks are sent ahead of their replies; 421 is the reply to all that follow."""
    size = 512 * 1024

    def script(script: Script) -> None:
        script.greet("PIPELINING", "CHUNKING")
        script.expect("MAIL", "RCPT")
        script.say("250 1", "250 2")
        for number in range(3):
            line = script.hear()
            assert line.startswith("BDAT ")
            script.exactly(int(line.split()[1]))
            if number == at:
                script.say("421 4.3.2 going down")
                script.rest()
                return
            script.say("250 Ok")

    mail = scripted(script).connect(timeout=20)
    with pytest.raises(DataRefused, match="421") as caught:
        mail.send(b"y" * (size * 2 + 100) + b"\r\n", FROM, TO)
    assert caught.value.safe_to_retry
    assert caught.value.transient
    assert mail.closed


def test_killed_while_connecting() -> None:
    """During the TCP handshake: a port whose backlog is full does not answer."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        filling = [spawn(filler.connect, address) for filler in fillers]
        gevent.joinall(filling, timeout=0.05)
        connecting = spawn(connect, *address, timeout=20)
        connecting.join(0.05)
        connecting.kill()
        assert connecting.ready()
        with pytest.raises(CannotConnect, match="no answer within"):
            connect(*address, timeout=Timeouts(connect=0.05))
        gevent.killall(filling)
        for filler in fillers:
            filler.close()
