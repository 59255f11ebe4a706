"""The signals connect and disconnect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import spawn
from gevent.event import Event

from greensmtp import Ack, Session
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate


# connect


@pytest.mark.parametrize(
    ("arguments", "reply"),
    [
        ((), "554"),
        ((554, "go away"), "554 *go away"),
        ((554, "5.7.1 go away"), "554 *go away"),
        ((421, "later"), "421 *later"),
        ((550,), "554"),
        ((450, "4.7.1 later"), "421 *later"),
    ],
)
def test_a_rejected_connection_gets_its_reply_and_is_closed(
    smtp_server: MakeServer, arguments: tuple[Any, ...], reply: str
) -> None:
    server = smtp_server(start=False)
    server.on("connect", lambda session, ack: ack.reject(*arguments))
    with dial(server) as peer:
        assert "None" not in peer.expect(reply)
        peer.expect_end()


def test_an_accepted_connection_may_have_a_banner_of_its_own(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("connect", lambda session, ack: ack.accept(220, ["ESMTP at your service", "no spam"]))
    with dial(server) as peer:
        assert peer.reply() == "220-mx.example.com ESMTP at your service\n220 no spam"


# disconnect


def say_quit(peer: Peer) -> None:
    peer.line("QUIT")
    peer.expect("221")


def hang_up(peer: Peer) -> None:
    peer.close()


def hang_up_within_a_body(peer: Peer) -> None:
    peer.envelope()
    peer.line("DATA")
    peer.expect("354")
    peer.send("half a mess")
    peer.close()


def break_off(peer: Peer) -> None:
    peer.reset()


def fall_asleep(peer: Peer) -> None:
    peer.expect("421 4.4.2")


def err(peer: Peer) -> None:
    peer.line("ONE", "TWO", "THREE")
    peer.expect("500", "500", "500", "421")


def idle(peer: Peer) -> None:
    peer.line(*["NOOP"] * 6)
    peer.rest()


def speak_http(peer: Peer) -> None:
    peer.line("GET / HTTP/1.1")


def botch_tls(peer: Peer) -> None:
    peer.line("STARTTLS")
    peer.expect("220")
    peer.send("this is not a handshake, it is a sentence\r\n")


ENDINGS = [
    (say_quit, "quit"),
    (hang_up, "closed"),
    (hang_up_within_a_body, "closed"),
    (break_off, "reset"),
    (fall_asleep, "timeout"),
    (err, "errors"),
    (idle, "commands"),
    (speak_http, "foreign"),
    (botch_tls, "tls"),
]


@pytest.mark.parametrize(("end", "expected"), ENDINGS)
@pytest.mark.usefixtures("clock")
def test_disconnect_tells_how_it_ended(
    smtp_server: MakeServer, certificate: Certificate, end: Callable[[Peer], None], expected: str
) -> None:
    options: dict[str, Any] = {"command_timeout": 0.3} if end is fall_asleep else {}
    server = smtp_server(
        certfile=certificate.certfile, keyfile=certificate.keyfile, max_errors=3, max_idle_commands=5, **options
    )
    over = Event()
    reasons: list[str] = []
    server.on("message", lambda session, stream, ack: ack.accept())

    @server.on("disconnect")
    def disconnected(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    with dial(server) as peer:
        peer.hello()
        end(peer)
        peer.close()
        assert over.wait(5)
    assert reasons == [expected]


def test_disconnect_tells_of_a_server_that_stops(smtp_server: MakeServer) -> None:
    server = smtp_server()
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    with dial(server) as peer:
        peer.hello()
        stopping = spawn(server.stop, 5)
        peer.expect("421 4.3.2")
        peer.expect_end()
        peer.close()
        stopping.get(timeout=5)
    assert reasons == ["shutdown"]


def test_disconnect_comes_once_for_a_rejected_connection_too(smtp_server: MakeServer) -> None:
    server = smtp_server()
    reasons: list[str] = []
    over = Event()
    server.on("connect", lambda session, ack: ack.reject())

    @server.on("disconnect")
    def disconnected(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    with dial(server) as peer:
        peer.expect("554")
        peer.close()
        assert over.wait(5)
    assert reasons == ["refused"]


def test_a_sessions_handler_of_the_wrong_shape_is_refused_at_the_call(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    errors: list[str] = []

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        on: Any = session.on
        with pytest.raises(TypeError) as error:
            on("to", lambda session, ack: None)
        errors.append(str(error.value))
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
    assert "(session, address, ack)" in errors[0]
