"""The end of a connection: replies before the server closes it, and close_notify in TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, socket, spawn
from gevent import ssl as gevent_ssl
from gevent.event import Event
from gevent.server import StreamServer

from greensmtp import Disconnected, HelloRefused, PeerProtocolError, Pool, RecipientsRefused, SenderRefused, connect

if TYPE_CHECKING:
    from tests.client.conftest import Converse, Script, Scripted
    from tests.conftest import Certificate

    Start = Callable[..., Scripted]

MESSAGE = (b"x", "a@example.com", "b@example.com")

GOODBYES = ["421 4.4.2 idle for too long", "451 4.4.2 timeout", "554 5.4.0 too many errors"]


# An idle client


def says(goodbye: str, gone: Event, *, hang_up: bool = True) -> Callable[[Script], None]:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.say(goodbye)
        if hang_up:
            script.socket.shutdown(socket.SHUT_WR)
        gone.set()
        script.rest()

    return script


@pytest.mark.parametrize("goodbye", GOODBYES)
def test_an_unsolicited_refusal_before_a_close_is_disconnected(scripted: Start, goodbye: str) -> None:
    gone = Event()
    mail = scripted(says(goodbye, gone)).connect()
    mail.ehlo()
    assert gone.wait(5)
    socket.wait_read(mail.socket.fileno(), 5)
    with pytest.raises(Disconnected) as caught:
        mail.noop()
    assert str(caught.value.reply) == goodbye
    assert caught.value.safe_to_retry
    assert caught.value.transient


@pytest.mark.parametrize("goodbye", GOODBYES)
def test_an_unsolicited_refusal_before_a_close_at_every_cut(converse: Converse, goodbye: str) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.say(goodbye)
        script.socket.shutdown(socket.SHUT_WR)

    def client(mail: Any) -> None:
        mail.ehlo()
        mail.socket.recv(1, socket.MSG_PEEK)
        with pytest.raises((Disconnected, PeerProtocolError)):
            mail.noop()
        assert mail.closed

    converse.at_every_cut(script, client)


def test_an_unsolicited_refusal_without_a_close_is_a_protocol_error(scripted: Start) -> None:
    gone = Event()
    mail = scripted(says("451 4.4.2 nothing was asked", gone, hang_up=False)).connect()
    mail.ehlo()
    assert gone.wait(5)
    socket.wait_read(mail.socket.fileno(), 5)
    with Timeout(3), pytest.raises(PeerProtocolError, match="unsolicited reply"):
        mail.noop()


@pytest.mark.parametrize("goodbye", GOODBYES)
@pytest.mark.parametrize("offers", ["PIPELINING", "HELP"])
def test_a_pool_replaces_a_connection_after_an_unsolicited_refusal(scripted: Start, goodbye: str, offers: str) -> None:
    """The refusal arrives while the connection is idle, or at the moment when it is used again."""

    def transaction(script: Script, *, goodbye_at: str = "") -> None:
        while line := script.hear():
            if goodbye_at and line.startswith(goodbye_at):
                script.say(goodbye)
                return
            if line == "DATA":
                script.say("354 go")
                script.body()
            script.say("250 Ok")
            if line == "DATA":
                return

    gone = Event()

    def idle(script: Script) -> None:
        script.greet(offers)
        transaction(script)
        script.say(goodbye)
        script.socket.close()
        gone.set()

    def used_again(script: Script) -> None:
        script.greet(offers)
        transaction(script)
        transaction(script, goodbye_at="RSET")

    def live(script: Script) -> None:
        script.greet(offers)
        transaction(script)
        script.rest()

    server = scripted(idle, used_again, live)
    with Pool("127.0.0.1", server.port, 1, timeout=5) as pool:
        assert pool.send(*MESSAGE).reply.code == 250
        assert gone.wait(5)
        for _ in range(2):
            assert pool.send(*MESSAGE).reply.code == 250
    assert server.connections == 3


# close_notify (RFC 8446 section 6.1)


class Peer:
    """A server over TLS that records whether the client sent close_notify."""

    def __init__(self, certificate: Certificate) -> None:
        self._context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.certfile, certificate.keyfile)
        self.ends: list[str] = []
        self.over = Event()
        self.reading = True
        self.server = StreamServer(("127.0.0.1", 0), self._serve)
        self.server.start()

    def _serve(self, sock: Any, _address: Any) -> None:
        # (Not suppressing what a connection without close_notify ends with.)
        secure = gevent_ssl.SSLSocket(sock=sock, server_side=True, suppress_ragged_eofs=False, _context=self._context)
        secure.sendall(b"220 mx\r\n")
        try:
            while self.reading:
                data = secure.recv(1000)
                if not data:
                    self.ends.append("close_notify")
                    break
                secure.sendall(b"221 bye\r\n" if data.startswith(b"QUIT") else b"250 mx\r\n")
            else:
                self.over.wait(20)
        except OSError as error:
            self.ends.append(type(error).__name__)
        finally:
            self.over.set()
            secure.close()


@pytest.fixture
def peer(certificate: Certificate) -> Any:
    made = Peer(certificate)
    yield made
    made.over.set()
    made.server.stop(1)


@pytest.mark.parametrize("end", ["quit", "close", "with"])
@pytest.mark.parametrize("module", [ssl, gevent_ssl])
def test_closing_sends_close_notify(peer: Peer, certificate: Certificate, end: str, module: Any) -> None:
    context = module.create_default_context(cafile=str(certificate.authority))
    port: Any = peer.server.address[1]
    mail = connect("localhost", port, tls=True, ssl_context=context, timeout=5)
    mail.ehlo()
    if end == "with":
        with mail:
            pass
    else:
        getattr(mail, end)()
    assert peer.over.wait(5)
    assert peer.ends == ["close_notify"]
    assert mail.closed


def test_a_server_that_does_not_read_does_not_block_close(peer: Peer, certificate: Certificate) -> None:
    """Its receive window is full, so that nothing more can be sent."""
    peer.reading = False
    context = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    port: Any = peer.server.address[1]
    mail = connect("localhost", port, tls=True, ssl_context=context, timeout=20)
    sending = spawn(mail._transport.send, b"x" * 50_000_000, 20)
    with pytest.raises(Timeout), Timeout(0.1):
        sending.get()
    with Timeout(2):
        mail.close()
        assert mail.closed
        with pytest.raises(Disconnected):
            sending.get()


def test_a_kill_in_the_middle_of_a_message_does_not_wait(peer: Peer, certificate: Certificate) -> None:
    peer.reading = False
    context = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    port: Any = peer.server.address[1]
    mail = connect("localhost", port, tls=True, ssl_context=context, timeout=20)
    sending = spawn(mail._transport.send, b"x" * 50_000_000, 20)
    with pytest.raises(Timeout), Timeout(0.1):
        sending.get()
    with Timeout(2):
        sending.kill()
    assert mail.closed


# In the middle of the envelope


def refuses_and_hangs_up(at: str, reply: str) -> Callable[[Script], None]:
    def script(script: Script) -> None:
        script.say("220 mx.example.com")
        while verb := script.hear()[:4]:
            if verb == at:
                return script.say(reply)
            script.say("250-mx.example.com" if verb == "EHLO" else "250 ok", *["250 PIPELINING"] * (verb == "EHLO"))
        return None

    return script


@pytest.mark.parametrize(
    ("at", "error"), [("EHLO", HelloRefused), ("MAIL", SenderRefused), ("RCPT", RecipientsRefused)]
)
def test_a_permanent_refusal_before_a_close_is_raised(scripted: Start, at: str, error: type[Exception]) -> None:
    with scripted(refuses_and_hangs_up(at, "554 5.7.1 go away")).connect() as mail, pytest.raises(error) as caught:
        mail.send(*MESSAGE)
    refused: Any = caught.value
    assert str(refused.reply) == "554 5.7.1 go away"
    assert not refused.transient


def test_a_transient_refusal_before_a_close_is_safe_to_retry(scripted: Start) -> None:
    server = scripted(refuses_and_hangs_up("MAIL", "451 4.3.0 later"))
    with server.connect() as mail, pytest.raises(Disconnected) as caught:
        mail.send(*MESSAGE)
    assert caught.value.transient
    assert caught.value.safe_to_retry


def test_a_refusal_before_a_close_of_a_kept_connection_is_tried_again_on_a_new_one(scripted: Start) -> None:
    def first(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 ok", "250 ok", "354 go on")
        script.body()
        script.say("250 ok")
        script.expect("RSET", "MAIL")
        script.say("250 ok", "554 5.7.0 too many messages")

    def second(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 ok", "250 ok", "354 go on")
        script.body()
        script.say("250 taken")
        script.rest()

    server = scripted(first, second)
    with Pool("127.0.0.1", server.port, timeout=5) as pool:
        pool.send(*MESSAGE)
        assert str(pool.send(*MESSAGE).reply) == "250 taken"
