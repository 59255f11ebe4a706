"""Next hops that are hostile, broken or slow: no 250 that was not said, and the client's session goes on."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from gevent import socket
from gevent.event import Event

from greensmtp import SMTPServer
from greensmtp.protocol.reply import MAX_TEXT
from greensmtp.testing import Peer, dial
from tests.delivery.forwarding import BODY, MODES, Script
from tests.helpers import until


def to(hop: Script, scheme: str = "smtp") -> str:
    return f"{scheme}://127.0.0.1:{hop.server.server_port}"


def offer(peer: Peer, *recipients: str, body: bytes = BODY, lmtp: bool = False) -> list[str]:
    """Offer a message, as far as it is accepted; return the replies, but 354."""
    said = []
    accepted = 0
    for line in ("MAIL FROM:<ann@x.example>", *(f"RCPT TO:<{each}>" for each in recipients or ("bob@y.example",))):
        peer.line(line)
        said.append(peer.reply().strip())
        if not said[0].startswith("2"):
            return said
        accepted += line.startswith("RCPT") and said[-1].startswith("2")
    if not accepted:
        return said
    peer.line("DATA")
    reply = peer.reply()
    if not reply.startswith("354"):
        return [*said, reply.strip()]
    peer.send(body.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return [*said, *(peer.reply().strip() for _ in range(accepted if lmtp else 1))]


def greet(peer: Peer, verb: str = "EHLO") -> None:
    peer.expect("220")
    peer.line(f"{verb} client.example")
    peer.expect("250")


def goes_on(peer: Peer) -> bool:
    """Return whether the client's session has survived."""
    peer.line("RSET", "NOOP")
    return [peer.reply()[:3], peer.reply()[:3]] == ["250", "250"]


# Wrong codes


@MODES
@pytest.mark.parametrize(
    ("step", "says", "wanted"),
    [
        ("MAIL", "354 go", "451"),
        ("MAIL", "334 ", "451"),
        ("MAIL", "221 2.0.0 bye", "250"),
        ("RCPT", "354 go", "451"),
        ("RCPT", "221 bye", "250"),
        ("RCPT", "251 2.1.5 elsewhere", "250"),
        ("DATA", "250 ok", "451"),
        ("DATA", "221 bye", "451"),
        ("DATA", "334 ", "451"),
        ("end", "354 go", "451"),
        ("end", "235 2.7.0 welcome", "250"),
        ("end", "150 wait", "451"),
        ("end", "600 what", "451"),
        ("end", "25", "451"),
    ],
)
def test_a_wrong_code_ends_no_session_and_accepts_nothing_that_was_not_accepted(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, *, step: str, says: str, wanted: str
) -> None:
    hop = script(**{step: says})
    with dial(relay(to(hop), mode=mode)) as peer:
        greet(peer)
        said = offer(peer)
        assert said[-1].startswith(wanted), said
        assert not any(line.startswith(("221", "235", "334", "354")) for line in said)
        assert goes_on(peer)


def test_251_is_passed_on_at_rcpt_alone(relay: Callable[..., SMTPServer], script: Callable[..., Script]) -> None:
    hop = script(MAIL="251 hm", RCPT="251 2.1.5 elsewhere", end="251 hm")
    with dial(relay(to(hop))) as peer:
        greet(peer)
        assert offer(peer) == ["250 2.0.0 hm", "251 2.1.5 elsewhere", "250 2.0.0 hm"]


# Long replies


@MODES
@pytest.mark.parametrize("step", ["banner", "EHLO", "MAIL", "RCPT", "DATA", "end"])
@pytest.mark.parametrize("shape", ["a line", "lines"])
def test_a_reply_of_a_megabyte_is_451(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, step: str, shape: str
) -> None:
    line = "250-2.0.0 " + "x" * 89 + "\r\n"
    hop = script(**{step: "250 " + "x" * 1_000_000 if shape == "a line" else line * 10_000 + "250 ok"})
    with dial(relay(to(hop), mode=mode)) as peer:
        greet(peer)
        assert offer(peer)[-1].startswith("451")
        assert goes_on(peer)


@MODES
@pytest.mark.parametrize("step", ["RCPT", "end"])
@pytest.mark.parametrize("code", [250, 550])
@pytest.mark.parametrize("says", ["x" * 12_000, "\r\n".join(["y" * 100] * 500), "\r\n".join([""] * 500)])
def test_of_a_long_reply_the_client_gets_the_beginning(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, *, step: str, code: int, says: str
) -> None:
    *first, last = says.split("\r\n")
    hop = script(**{step: "".join(f"{code}-{line}\r\n" for line in first) + f"{code} {last}"})
    with dial(relay(to(hop), mode=mode)) as peer:
        greet(peer)
        for reply in offer(peer):
            assert len(reply) <= 5 * MAX_TEXT
            assert reply.count("\n") < 8
        assert goes_on(peer)


@MODES
def test_controls_in_a_reply_reach_neither_the_client_nor_the_log(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    hop = script(end="250-2.0.0 one\r\n250 2.0.0 \x1b[2J\x07 two\u2028three")
    with caplog.at_level("INFO"), dial(relay(to(hop), mode=mode)) as peer:
        greet(peer)
        assert offer(peer)[-1] == "250-2.0.0 one\n250 2.0.0 ?[2J? two?three"
        hop.does["MAIL"] = "421-4.3.2 one\r\n421 4.3.2 forged line"
        offer(peer)
        hop.does = {"banner": "554-one\r\n554 \x1b[2J forged line", "RSET": "close"}
        assert offer(peer)[-1].startswith("451")
    assert "next hop: 250 2.0.0 one | " in caplog.text
    assert "forged line" in caplog.text
    assert not [each for each in caplog.messages if "\n" in each or "\x1b" in each]


@MODES
def test_a_refusal_without_an_enhanced_code_gets_the_usual_one(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str
) -> None:
    hop = script(RCPT="550 no such user")
    with dial(relay(to(hop), mode=mode)) as peer:
        greet(peer)
        assert offer(peer)[-1] == "550 5.0.0 no such user"


# Recipients


def test_after_body_in_lmtp_each_refused_recipient_has_its_own_reply(
    relay: Callable[..., SMTPServer], script: Callable[..., Script]
) -> None:
    hop = script()
    hop.by_line = {b"a@": "450 4.2.1 later", b"b@": "550 5.1.1 none"}
    with dial(relay(to(hop), mode="after-body", server={"lmtp": True})) as peer:
        greet(peer, "LHLO")
        ann, bob, cyd = "a@y.example", "b@y.example", "c@y.example"
        # A recipient for whom it was temporary must not bounce because of another one.
        assert [line[:3] for line in offer(peer, ann, bob, lmtp=True)[3:]] == ["450", "550"]
        assert [line[:3] for line in offer(peer, bob, ann, lmtp=True)[3:]] == ["550", "450"]
        assert [line[:3] for line in offer(peer, ann, ann, lmtp=True)[3:]] == ["450", "450"]
        assert hop.ended == 0
        assert offer(peer, ann, cyd, bob, lmtp=True)[4:] == ["450 4.2.1 later", "250 2.0.0 ok", "550 5.1.1 none"]
        assert hop.ended == 1


@MODES
@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("does", ["421 4.3.2 bye", "close"])
def test_a_connection_that_ends_between_recipients(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, does: str, *, lmtp: bool
) -> None:
    hop = script()
    hop.by_line = {b"b@": does}
    with dial(relay(to(hop), mode=mode, server={"lmtp": lmtp})) as peer:
        greet(peer, "LHLO" if lmtp else "EHLO")
        said = [line[:3] for line in offer(peer, "a@y.example", "b@y.example", "c@y.example", lmtp=lmtp)]
        if mode == "lock-step":  # it begins again with the one that was accepted
            assert said == ["250", "250", "451", "451", "250"]
        else:
            assert said == ["250", "250", "250", "250", *["451"] * (3 if lmtp else 1)]
        assert hop.ended == (mode == "lock-step")
        hop.by_line = {}
        assert offer(peer, lmtp=lmtp)[-1].startswith("250")


# The body

LARGE = b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 6000


@MODES
@pytest.mark.parametrize(
    ("says", "wanted"),
    [
        (b"", "451 4.4.2"),
        (b"552 5.3.4 Too big\r\n", "552 5.3.4 Too big"),
        (b"452 4.3.1 Full\r\n", "452 4.3.1 Full"),
        (b"421 4.3.2 Bye\r\n", "451 4.3.2 Bye"),
        (b"250 2.0.0 Fine\r\n", "451 4.4.2"),
        (b"what?\r\n", "451 4.4.2"),
    ],
)
def test_a_next_hop_that_closes_in_the_body(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str, says: bytes, wanted: str
) -> None:
    hop = script()

    def in_body(connection: Any) -> None:
        connection.recv(1000)
        connection.sendall(says)

    hop.in_body = in_body
    with dial(relay(to(hop), mode=mode, server={"max_message_size": None})) as peer:
        greet(peer)
        assert offer(peer, body=LARGE)[-1].startswith(wanted)
        assert hop.ended == 0
        assert goes_on(peer)
        hop.in_body = None
        assert offer(peer)[-1].startswith("250")


@MODES
def test_a_next_hop_that_stops_reading_is_451_after_its_timeout(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str
) -> None:
    hop, over = script(), Event()
    hop.in_body = lambda connection: over.wait(20)
    server = relay(to(hop), mode=mode, server={"max_message_size": None, "handler_timeout": 0.5})
    with dial(server) as peer:
        greet(peer)
        begun = time.monotonic()
        assert offer(peer, body=LARGE)[-1].startswith("451")
        assert time.monotonic() - begun < 10
        assert goes_on(peer)
        over.set()
        hop.in_body = None
        assert offer(peer)[-1].startswith("250")


@MODES
def test_a_reply_that_comes_a_byte_at_a_time_is_ended_by_handler_timeout(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str
) -> None:
    hop = script(end="drip")
    server = relay(to(hop), mode=mode, server={"handler_timeout": 0.5})
    with dial(server) as peer:
        greet(peer)
        assert offer(peer)[-1].startswith("451")
        assert goes_on(peer)
    until(lambda: not server.connections, "the client to be gone")


@MODES
def test_every_failure_gives_the_only_connection_back(
    relay: Callable[..., SMTPServer], script: Callable[..., Script], mode: str
) -> None:
    hop = script()
    server = relay(to(hop), mode=mode, connections=1, wait=0.2, server={"handler_timeout": 0.3})
    with dial(server) as peer:
        greet(peer)
        for step in ("banner", "EHLO", "RSET", "MAIL", "RCPT", "DATA", "end"):
            for does in ("hang", "close", "garbage", "421 4.3.2 bye"):
                hop.does = {step: does}
                offer(peer)
                hop.does = {}
                peer.line("RSET")
                peer.expect("250")
                assert offer(peer)[-1].startswith("250"), (step, does)


def test_a_reset_instead_of_a_close(relay: Callable[..., SMTPServer], script: Callable[..., Script]) -> None:
    hop = script()

    def in_body(connection: Any) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    hop.in_body = in_body
    with dial(relay(to(hop), server={"max_message_size": None})) as peer:
        greet(peer)
        assert offer(peer, body=LARGE)[-1].startswith("451 4.4.2")
        assert goes_on(peer)
