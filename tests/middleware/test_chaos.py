"""Chaos: each stage, each action, and the same again with the same seed."""

from __future__ import annotations

import os
from typing import Any

import pytest
from gevent.event import Event
from gevent.socket import wait_read

from greensmtp import Ack, ConnectionLost, MessageStream, Session, SMTPServer
from greensmtp.middleware import Chaos, chaos
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

HERE = ("192.0.2.1", 1)
BODY = b"Subject: a test\r\n\r\n" + b"0123456789\r\n" * 5000


def taking(server: SMTPServer) -> SMTPServer:
    """Make a server accept all mail."""
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


#: stage -> what is said up to there, with replies that are as usual
BEFORE = {
    "CONNECT": [],
    "EHLO": ["220"],
    "MAIL": ["220", "EHLO client.example", "250"],
    "RCPT": ["220", "EHLO client.example", "250", "MAIL FROM:<a@example.com>", "250"],
}
BEFORE["DATA"] = [*BEFORE["RCPT"], "RCPT TO:<b@example.com>", "250"]
BEFORE["BDAT"] = BEFORE["DATA"]
BEFORE["END-OF-DATA"] = [*BEFORE["DATA"], "DATA", "354"]
BEFORE["BODY"] = BEFORE["END-OF-DATA"]
BEFORE["RSET"] = BEFORE["QUIT"] = BEFORE["STARTTLS"] = BEFORE["NOOP"] = BEFORE["MAIL"]
#: ... and what is said there.
AT = {
    "CONNECT": "",
    "EHLO": "EHLO client.example",
    "MAIL": "MAIL FROM:<a@example.com>",
    "RCPT": "RCPT TO:<b@example.com>",
    "DATA": "DATA",
    "BDAT": "BDAT 4 LAST\r\nabcd",
    "END-OF-DATA": "Hello.\r\n.",
    "BODY": "Hello.\r\n.",
}
STAGES = sorted(BEFORE)


def reach(peer: Peer, stage: str) -> None:
    """Send the commands that lead to a stage, and the stage's own."""
    for line in BEFORE[stage]:
        if line[0].isdigit():
            peer.expect(line)
        else:
            peer.line(line)
    at = AT.get(stage, stage)
    if at:
        peer.send(f"{at}" if stage == "BDAT" else f"{at}\r\n")


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "BODY"])
def test_it_refuses_at_every_stage(smtp_server: MakeServer, stage: str) -> None:
    server = taking(smtp_server(start=False, middleware=[Chaos(stage, code=452, message="not today")]))
    with dial(server, source=HERE) as peer:
        reach(peer, stage)
        reply = peer.reply()
        if stage == "CONNECT":
            assert reply == "421 not today"
            peer.expect_end()
            return
        assert reply == ("452 not today" if stage == "EHLO" else "452 4.3.0 not today")
        peer.line("XYZZY")  # and all is in step
        peer.expect("500")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("over_tcp", [True, False])
def test_it_cuts_at_every_stage_without_a_word(smtp_server: MakeServer, stage: str, over_tcp: bool) -> None:
    over = Event()
    server = taking(smtp_server(start=over_tcp, middleware=[Chaos(stage, "cut")]))
    server.on("disconnect", lambda session, reason: over.set())
    received: list[Session] = []

    @server.on("received")
    def note(session: Session, ack: Ack) -> None:
        received.append(session)
        ack.accept()

    with dial(server, source=None if over_tcp else HERE) as peer:
        reach(peer, stage)
        if over_tcp:
            expect_reset(peer)
        else:
            peer.expect_end()
    assert over.wait(5)
    assert not received
    assert not server.connections


def expect_reset(peer: Peer) -> None:
    """Expect a connection reset. (Read below TLS, which would report an end.)"""
    wait_read(peer.socket.fileno(), 5)
    with pytest.raises(ConnectionResetError):
        os.read(peer.socket.fileno(), 1)


def test_it_cuts_under_tls_too(smtp_server: MakeServer, certificate: Any) -> None:
    tls = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    with dial(smtp_server(middleware=[Chaos("MAIL", "cut")], implicit_tls=True, **tls)) as peer:
        peer.start_tls()
        reach(peer, "MAIL")
        expect_reset(peer)
    with dial(taking(smtp_server(middleware=[Chaos("BODY", "cut")], **tls))) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example")
        peer.expect("250")
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
        peer.send(BODY[:1000])
        expect_reset(peer)


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
@pytest.mark.parametrize("octets", [0, 1, 1000, 20_000, len(BODY) + 10])
def test_a_body_is_cut_behind_so_many_octets(smtp_server: MakeServer, verb: str, octets: int) -> None:
    over = Event()
    got: list[int] = []
    server = smtp_server(middleware=[Chaos("BODY", "cut", octets=octets)])

    @server.on("disconnect")
    def gone(session: Session, reason: str) -> None:
        got.append(-1 if reason == "reset" else 0)
        over.set()

    @server.on("message")
    def read(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            got.extend(map(len, stream))
        except ConnectionLost:
            got.append(-2)
            raise

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        if verb == "DATA":
            peer.line("DATA")
            peer.expect("354")
            peer.send(BODY + b".\r\n", cut=10_000 if octets > 10_000 else None)
        else:
            peer.send(f"BDAT {len(BODY)} LAST\r\n".encode() + BODY, cut=10_000 if octets > 10_000 else None)
        peer.expect_end()
        assert over.wait(5)
    assert (got.pop(), got.pop()) == (-1, -2)
    assert sum(got) == (octets if octets < len(BODY) else sum(got))
    assert sum(got) < len(BODY)


def test_a_delayed_body_is_whole(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    bodies: list[bytes] = []
    monkeypatch.setattr(chaos, "pause", lambda session, seconds: delays.append(seconds))
    for octets in (0, 1, 1000, len(BODY), len(BODY) * 2):
        server = smtp_server(start=False, middleware=[Chaos("BODY", "delay", octets=octets, delay=7)])

        @server.on("message")
        def read(session: Session, stream: MessageStream, ack: Ack) -> None:
            ack.accept()
            bodies.append(stream.read())

        with dial(server, source=HERE) as peer:
            peer.hello()
            assert peer.deliver(BODY).startswith("250")
            assert peer.deliver(b"").startswith("250")
    assert bodies == [BODY, b""] * 5
    assert delays == [7] * 10


def test_it_delays_and_then_goes_on(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    monkeypatch.setattr(chaos, "pause", lambda session, seconds: delays.append(seconds))
    stack = [Chaos("CONNECT", "delay", delay=1), Chaos("rcpt", "delay", delay=2)]
    with dial(taking(smtp_server(start=False, middleware=stack)), source=HERE) as peer:
        peer.hello()
        assert peer.deliver(to=["a@example.com", "b@example.com"]).startswith("250")
    assert delays == [1, 2, 2]


def refused(server: SMTPServer) -> list[bool]:
    """Return which of a hundred recipients are refused."""
    with dial(server, source=HERE) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com>", *["RCPT TO:<b@example.com>"] * 100)
        peer.expect("250")
        return [peer.reply().startswith("451") for _ in range(100)]


def test_with_a_seed_it_decides_the_same_each_time(smtp_server: MakeServer) -> None:
    def run(probability: float, seed: int | None) -> list[bool]:
        stack = [Chaos("RCPT", probability=probability, seed=seed)]
        return refused(smtp_server(start=False, middleware=stack))

    assert run(0.3, 1) == run(0.3, 1) != run(0.3, 2)
    assert 10 < sum(run(0.3, 1)) < 50
    assert run(0, None) == [False] * 100
    assert run(1, None) == [True] * 100


def test_several_have_each_their_own_chance(smtp_server: MakeServer) -> None:
    one = Chaos("RCPT", probability=0.2, seed=1)
    alone = refused(smtp_server(start=False, middleware=[Chaos("RCPT", probability=0.2, seed=1)]))
    both = refused(smtp_server(start=False, middleware=[one, Chaos("RCPT", probability=0.2, seed=2)]))
    assert sum(both) > sum(alone)
    assert all(now for now, before in zip(both, alone, strict=True) if before)


def test_lmtp_refuses_some_recipients_of_a_message(smtp_server: MakeServer) -> None:
    server = taking(smtp_server(start=False, lmtp=True, middleware=[Chaos("END-OF-DATA", probability=0.5, seed=4)]))
    with dial(server, source=HERE) as peer:
        peer.hello(verb="LHLO")
        replies = [peer.deliver(to=[f"{number}@example.com" for number in range(20)])]
        replies += [peer.reply() for _ in range(19)]
        peer.line("NOOP")
        peer.expect("250")
    assert {reply[:3] for reply in replies} == {"250", "451"}


def test_a_refused_body_stage_is_left_alone_where_none_begins(smtp_server: MakeServer) -> None:
    with dial(taking(smtp_server(start=False, middleware=[Chaos("BODY", "cut")])), source=HERE) as peer:
        peer.hello()
        peer.line("DATA", "BDAT x", "MAIL FROM:<a@example.com>", "DATA", "NOOP")
        peer.expect("503", "501", "250", "503", "250")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("MIAL",), "stage takes a verb, .* not 'MIAL'; did you mean 'MAIL'?"),
        (("DISCONNECT",), "stage takes"),
        (("MAIL", "explode"), "action takes 'refuse', 'delay' or 'cut', not 'explode'"),
        (("BODY", "refuse"), 'refuse at stage "END-OF-DATA"'),
        (("MAIL", "refuse", {"probability": 1.5}), "probability takes a number of at least 0 and at most 1, not 1.5"),
        (("MAIL", "refuse", {"code": 250}), "code takes"),
        (("MAIL", "delay", {"delay": -1}), "delay takes"),
        (("BODY", "cut", {"octets": -1}), "octets takes a whole number of at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], says: str) -> None:
    *positional, keywords = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ValueError, match=says):
        Chaos(*positional, **keywords)


def test_its_repr_has_its_arguments() -> None:
    assert repr(Chaos("mail")) == "Chaos('MAIL', 'refuse', probability=1)"
    assert repr(Chaos("BODY", "cut", probability=0.1, seed=7)) == "Chaos('BODY', 'cut', probability=0.1, seed=7)"
