"""Identities of Forward: by the domain of a sender or recipient, or by a function; connections are not mixed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from greensmtp import Ack, Address, Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.delivery import Forward
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.delivery.forwarding import MODES, url

IDENTITIES = {
    "a.example": {"source_address": "127.0.0.2", "local_hostname": "mail.a.example"},
    "B.example": {"local_hostname": "mail.b.example"},
    "bücher.example": {"source_address": "127.0.0.4"},
}
#: The rest of them.
DEFAULT = {"source_address": "127.0.0.3", "local_hostname": "relay.example"}

A, B, REST = ("127.0.0.2", "mail.a.example"), ("127.0.0.3", "mail.b.example"), ("127.0.0.3", "relay.example")


class Seen:
    """What a next hop has seen: the address and the name of its client, for each message and each connection."""

    def __init__(self, mx: SMTPServer) -> None:
        self.messages: list[tuple[str, str]] = []
        self.sessions: dict[str, set[tuple[str, str]]] = {}
        mx.on("message", lambda session, stream, ack: ack.accept())
        mx.on("received", self.look)

    def look(self, session: Session, ack: Ack) -> None:
        who = session.peer_host or "", session.hostname or ""
        self.messages.append(who)
        self.sessions.setdefault(session.id, set()).add(who)
        ack.accept()


def pass_on(peer: Peer, sender: str, *recipients: str) -> None:
    """Send a message from a sender."""
    peer.line(f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA")
    peer.expect("250", *["250"] * len(recipients), "354")
    peer.line("Subject: Tea", "", ".")
    peer.expect("250")


@MODES
def test_by_the_senders_domain_over_kept_connections_of_each(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    seen = Seen(mx)
    with dial(relay(url(mx), mode=mode, identities=IDENTITIES, **DEFAULT)) as peer:
        peer.hello()
        for _ in range(2):
            for sender in ("x@A.example", "x@b.example", "", "x@c.example", "x@xn--bcher-kva.example"):
                pass_on(peer, sender, "bob@y.example")
    assert seen.messages == [A, B, REST, REST, ("127.0.0.4", "relay.example")] * 2
    assert len(seen.sessions) == 4
    assert all(len(each) == 1 for each in seen.sessions.values())


@MODES
def test_by_the_recipients_domain_with_a_transaction_for_each(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], mode: str
) -> None:
    mx = smtp_server()
    seen = Seen(mx)
    connections: list[str] = []

    @mx.on("greeting")
    def greet(session: Session, greeting: Any, ack: Ack) -> None:
        connections.append(greeting.hostname)
        ack.accept()

    with dial(relay(url(mx), mode=mode, identities=IDENTITIES, identity_by="recipient", **DEFAULT)) as peer:
        peer.hello()
        for first, second in ("ab", "bc", "ca"):
            peer.line("MAIL FROM:<x@x.example>", *(f"RCPT TO:<x@{each}.example>" for each in (first, second, first)))
            peer.expect("250", "250", "452 4.5.3", "250")
            peer.line("DATA", "", ".")
            peer.expect("354", "250")
    assert seen.messages == [A, B, REST]
    assert connections == [name for _, name in seen.messages]  # none as another one before the recipient was known


@pytest.mark.parametrize("by", ["sender", "recipient"])
def test_in_lmtp_too(smtp_server: MakeServer, relay: Callable[..., SMTPServer], by: str) -> None:
    mx = smtp_server()
    seen = Seen(mx)
    with dial(relay(url(mx), identities=IDENTITIES, identity_by=by, server={"lmtp": True}, **DEFAULT)) as peer:
        peer.line("LHLO client.example")
        peer.expect("220", "250")
        peer.line("MAIL FROM:<x@b.example>", "RCPT TO:<one@a.example>", "RCPT TO:<two@b.example>")
        peer.expect("250", "250", "250" if by == "sender" else "452 4.5.3")
        peer.line("DATA", "", ".")
        peer.expect("354", "250", *["250"] * (by == "sender"))
    assert seen.messages == [B if by == "sender" else A]


def test_by_a_function_of_the_sender(smtp_server: MakeServer, relay: Callable[..., SMTPServer]) -> None:
    mx = smtp_server()
    seen = Seen(mx)

    def tariff(session: Session, sender: Address) -> str | None:
        return {"ann": "bulk", "bob": "unknown"}.get(sender.local_part)

    bulk = {"bulk": {"local_hostname": "bulk.example"}}
    with dial(relay(url(mx), identities=bulk, identity_by=tariff, **DEFAULT)) as peer:
        peer.hello()
        for name in ("ann", "bob", "cyd"):
            pass_on(peer, f"{name}@x.example", "bob@y.example")
    assert seen.messages == [("127.0.0.3", "bulk.example"), REST, REST]


class RefuseOne:
    verbs = ("RCPT",)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(550, "5.7.1 not one") if str(getattr(command, "address", "")).startswith("one@") else reply


@pytest.mark.parametrize("refused_by", ["hop", "middleware"])
def test_a_refused_recipient_fixes_no_identity(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer], refused_by: str
) -> None:
    mx = smtp_server(middleware=[RefuseOne()] if refused_by == "hop" else [])
    seen = Seen(mx)
    middleware = [RefuseOne()] if refused_by == "middleware" else []
    server = relay(url(mx), identities=IDENTITIES, identity_by="recipient", server={"middleware": middleware})
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<x@x.example>", "RCPT TO:<one@a.example>", "RCPT TO:<two@b.example>", "DATA", "", ".")
        peer.expect("250", "550 5.7.1", "250", "354", "250")
    assert [name for _, name in seen.messages] == ["mail.b.example"]


def test_a_refused_sender_is_the_reply_to_the_recipient(
    smtp_server: MakeServer, relay: Callable[..., SMTPServer]
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)

    @mx.on("from")
    def not_ann(session: Session, address: Address, ack: Ack) -> None:
        ack.reject(550, "5.1.8 no ann") if address.local_part == "ann" else ack.accept()

    with dial(relay(url(mx), identities=IDENTITIES, identity_by="recipient")) as peer:
        peer.hello()
        peer.line("MAIL FROM:<bob@x.example>")
        peer.expect("250")
        assert not mx.connections  # the identity is not known yet
        peer.line("RSET")
        peer.expect("250")
        peer.line("MAIL FROM:<ann@x.example>", "RCPT TO:<one@a.example>", "RCPT TO:<two@b.example>", "RSET")
        peer.expect("250", "550 5.1.8", "550 5.1.8", "250")
        pass_on(peer, "bob@x.example", "one@a.example")
    assert len(got.mail) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"source_address": "here"}, "source_address: expected an IP address; got 'here'"),
        (
            {"identities": {"a.example": {}}},
            "identities: expected source_address or local_hostname, or both, for 'a.example'",
        ),
        ({"identities": {"a.example": {"source": "127.0.0.2"}}}, "identities: expected source_address or local_"),
        ({"identities": {"a.example": {"source_address": "x"}}}, "identities: expected an IP address; got 'x'"),
        (
            {"identities": {"a.example": {"local_hostname": "x y"}}},
            "identities: expected a host name or an address literal",
        ),
        ({"identity_by": "client"}, "identity_by: expected 'sender', 'recipient' or 'module:function'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        Forward("smtp://127.0.0.1:9", **options)
