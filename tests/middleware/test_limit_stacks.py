"""The limiting middleware together, in every order: good mail passes, and refusals are the same as alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from pydantic import TypeAdapter

from greensmtp import SMTPServer
from greensmtp.middleware import AccessList, Chaos, ConnectionLimit, EarlyTalker, Logging, RateLimit, Tarpit
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import pairwise_orders

GOOD, NEXT = ("198.51.100.1", 1), ("198.51.100.2", 1)

#: Makers, since what counts must begin anew with each stack.
KINDS: dict[str, Callable[[], Any]] = {
    "access": lambda: AccessList(deny=["192.0.2.0/24"]),
    "connections": lambda: ConnectionLimit(per_address=2),
    "early": lambda: EarlyTalker(pause=0.001),
    "messages": lambda: RateLimit("2/hour"),
    "recipients": lambda: RateLimit("5/hour", on="recipients"),
    "tarpit": lambda: Tarpit(0.001, maximum=0.001),
    "chaos": lambda: Chaos("VRFY", code=450),
}


def stack_of(smtp_server: MakeServer, kinds: tuple[str, ...], **options: Any) -> SMTPServer:
    server = smtp_server(start=False, middleware=[Logging(), *(KINDS[kind]() for kind in kinds)], **options)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("to", lambda session, address, ack: ack.reject() if address.local_part == "no" else ack.accept())
    return server


def check(server: SMTPServer, *, lmtp: bool = False) -> None:
    """Check what each middleware of the stack does."""
    with dial(server, source=("192.0.2.1", 1)) as denied:
        denied.expect("554 5.7.1 Access denied")
        denied.expect_end()
    verb = "LHLO" if lmtp else "EHLO"
    with dial(server, source=GOOD) as peer, dial(server, source=GOOD) as second:
        peer.hello(verb=verb)
        second.expect("220")
        with dial(server, source=GOOD) as third:
            third.expect("421 4.7.0")
            third.expect_end()
        with dial(server, source=NEXT) as early:
            early.line(f"{verb} client.example")
            early.expect("554 5.5.1")
            early.expect_end()
        peer.line("VRFY somebody", "XYZZY")
        peer.expect("450", "500")
        for _ in range(2):
            assert peer.deliver().startswith("250")
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("450 4.7.1 Too many messages")
    with dial(server, source=NEXT) as peer:
        peer.hello(verb=verb)
        peer.line("MAIL FROM:<a@example.com>", *["RCPT TO:<no@example.com>"] * 3, *["RCPT TO:<b@example.com>"] * 3)
        peer.expect("250", "550", "550", "550", "250", "250", "450 4.7.1 Too many recipients")
        peer.line("DATA", "Hello.", ".", "QUIT")
        peer.expect("354", "250", *["250"] * lmtp, "221")
        peer.expect_end()


@pytest.mark.parametrize(
    "order", pairwise_orders(("access", "connections", "early", "messages", "tarpit")), ids="-".join
)
def test_in_every_order_mail_passes_and_refusals_are_as_ever(smtp_server: MakeServer, order: tuple[str, ...]) -> None:
    inside = order[0] < order[1]
    others = ("recipients", "chaos")
    check(stack_of(smtp_server, (*order, *others) if inside else (*others, *order)))


def test_in_lmtp_too(smtp_server: MakeServer) -> None:
    for order in (tuple(KINDS), tuple(reversed(KINDS))):
        check(stack_of(smtp_server, order, lmtp=True), lmtp=True)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (RateLimit, {"limit": "1/minute", "fail_open": "no"}),
        (AccessList, {"otherwise": "allow", "allow_unix": "no"}),
        (Tarpit, {"transient": "no"}),
    ],
)
def test_a_word_is_neither_yes_nor_no(kind: type, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="takes True or False, not 'no'"):
        kind(**arguments)


@pytest.mark.parametrize("kind", [AccessList, Chaos, ConnectionLimit, EarlyTalker, RateLimit, Tarpit])
def test_a_configuration_can_read_what_each_takes(kind: type) -> None:
    """Every argument has an annotation that can be resolved at run time."""
    hints = get_type_hints(kind.__init__)  # type: ignore[misc]
    assert set(inspect.signature(kind).parameters) <= set(hints)
    for name, hint in hints.items():
        if name != "return":
            TypeAdapter(hint)


def test_a_peer_without_an_ip_address_counts_by_its_name(smtp_server: MakeServer) -> None:
    """A server may be handed a connection that was accepted elsewhere."""
    stack = [ConnectionLimit(per_address=1), RateLimit("1/hour"), Tarpit(0.001, by="address")]
    server = smtp_server(start=False, middleware=stack)
    with dial(server, source=("somewhere", 1)) as peer, dial(server, source=("elsewhere", 1)) as other:
        for each in (peer, other):
            each.hello()
            each.line("XYZZY", "MAIL FROM:<>", "RSET", "MAIL FROM:<>")
            each.expect("500", "250", "250", "450 4.7.1 Too many messages")
        with dial(server, source=("somewhere", 2)) as second:
            second.expect("421 4.7.0")
