"""EarlyTalker: clients that wait for the banner, and clients that do not."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from gevent import socket, spawn
from gevent.event import Event

from greensmtp import Command, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import EarlyTalker
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

#: Longer than any test, and so never waited for.
LONG = 60.0


def test_a_client_that_waits_gets_the_banner(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[EarlyTalker(pause=0.05)])
    server.on("message", lambda session, stream, ack: ack.accept())
    began = monotonic()
    with dial(server) as peer:
        peer.hello()
        assert monotonic() - began >= 0.05
        assert peer.deliver().startswith("250")


@pytest.mark.parametrize("words", ["EHLO client.example\r\n", "E", "\r\n", "\x00", "GET / HTTP/1.1\r\n\r\n"])
def test_a_client_that_sends_first_is_refused_at_once(smtp_server: MakeServer, words: str) -> None:
    with dial(smtp_server(middleware=[EarlyTalker(pause=LONG)])) as peer:
        peer.send(words)
        peer.expect("554 5.5.1 Wait for the banner")
        peer.expect_end()


def test_a_client_that_sends_during_the_pause_is_refused(smtp_server: MakeServer) -> None:
    with dial(smtp_server(middleware=[EarlyTalker(pause=LONG)])) as peer:
        peer.expect_nothing(0.05)
        peer.line("EHLO client.example")
        peer.expect("554 5.5.1")


def test_with_starttls_on_offer_it_is_the_same(smtp_server: MakeServer, certificate: Any) -> None:
    tls = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    with dial(smtp_server(middleware=[EarlyTalker(pause=LONG)], **tls)) as peer:
        peer.line("EHLO client.example", "STARTTLS")
        peer.expect("554 5.5.1")
    with dial(smtp_server(middleware=[EarlyTalker(pause=0.05)], **tls)) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example")  # no further pause, and no complaint
        peer.expect("250")


def test_under_implicit_tls_the_pause_begins_when_tls_is_up(smtp_server: MakeServer, certificate: Any) -> None:
    tls = {"certfile": certificate.certfile, "keyfile": certificate.keyfile, "implicit_tls": True}
    with dial(smtp_server(middleware=[EarlyTalker(pause=LONG)], **tls)) as peer:
        peer.start_tls()
        peer.line("EHLO client.example")
        peer.expect("554 5.5.1")
        peer.expect_end()
    with dial(smtp_server(middleware=[EarlyTalker(pause=0.05)], **tls)) as peer:
        peer.start_tls()
        peer.hello()


def test_a_client_that_hangs_up_is_not_an_early_talker(smtp_server: MakeServer) -> None:
    reasons: list[str] = []
    over = Event()
    server = smtp_server(middleware=[EarlyTalker(pause=LONG)])

    @server.on("disconnect")
    def gone(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    dial(server).close()
    assert over.wait(5)
    assert reasons == ["closed"]


def test_the_pause_stalls_no_other_connection(smtp_server: MakeServer) -> None:
    """One server pauses for one client, and serves the other at once."""
    early = EarlyTalker(pause=LONG)

    def only_strangers(session: Session, command: Command, proceed: Proceed) -> Reply:
        trusted = command.verb == "CONNECT" and session.peer_host == "192.0.2.1"
        return proceed(session, command) if trusted else early(session, command, proceed)

    setattr(only_strangers, "verbs", early.verbs)  # noqa: B010 - a function has no such attribute, to mypy
    server = smtp_server(start=False, middleware=[only_strangers])
    server.on("message", lambda session, stream, ack: ack.accept())
    waiting = [dial(server, source=("198.51.100.1", number)) for number in range(50)]
    with dial(server, source=("192.0.2.1", 1)) as peer:
        peer.hello()
        assert peer.deliver().startswith("250")
    for each in waiting:
        each.line("QUIT")
        each.expect("554 5.5.1")
        each.close()


def test_a_server_that_stops_does_not_wait_for_the_pause(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[EarlyTalker(pause=LONG)])
    with dial(server) as peer:
        peer.let_it_read()
        began = monotonic()
        stopping = spawn(server.stop, 30)
        peer.expect("220", "421 4.3.2")
        peer.close()
        stopping.join(10)
        assert monotonic() - began < 10


def test_unix_sockets_are_not_made_to_wait(smtp_server: MakeServer, tmp_path: Path) -> None:
    smtp_server(listener=str(tmp_path / "lmtp"), lmtp=True, middleware=[EarlyTalker(pause=LONG)])
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(str(tmp_path / "lmtp"))
    ours.sendall(b"LHLO client.example\r\n")
    with Peer(ours) as peer:
        peer.expect("220", "250")


def test_code_and_text_are_ones_own(smtp_server: MakeServer) -> None:
    with dial(smtp_server(middleware=[EarlyTalker(pause=LONG, code=450, message="4.7.0 patience")])) as peer:
        peer.line("EHLO client.example")
        peer.expect("421 4.7.0 patience")


@pytest.mark.parametrize("pause", [0, -1, 61, float("nan"), "2", True])
def test_bad_arguments_are_refused(pause: Any) -> None:
    with pytest.raises(ValueError, match=r"pause takes a number of at least 0\.001 and at most 60, not"):
        EarlyTalker(pause)


def test_its_repr_is_short() -> None:
    assert repr(EarlyTalker()) == "EarlyTalker(pause=2)"
