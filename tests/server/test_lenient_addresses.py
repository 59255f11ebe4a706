"""``lenient_addresses``: MAIL and RCPT as devices write them; a strict server says what it refuses."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from greensmtp import Ack, Address, Session
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


class Device(NamedTuple):
    """What a device sends, the sender that it means, and what is wrong."""

    mail: str
    rcpt: str
    sender: str
    fault: str


RIGHT = "RCPT TO:<b@example.com>"
DEVICES = [
    Device("MAIL FROM: a@example.org", "RCPT TO:b@example.com", "a@example.org", "no angle brackets"),
    Device("MAIL FROM : <a@example.org>", "rcpt to :<b@example.com>", "a@example.org", "blanks around the colon"),
    Device("MAIL FROM:<a@example.org SIZE=9>", "RCPT TO:< b@example.com >", "a@example.org", "inside the angle"),
    Device("MAIL FROM:<a.@docomo.example>", "RCPT TO:<b..c@docomo.example>", '"a."@docomo.example', "a dot"),
    Device("MAIL FROM:<>SIZE=9", RIGHT, "", "parameters without a blank"),
    Device("MAIL FROM:<a@example.org> SIZE = 9", RIGHT, "a@example.org", "around the ="),
]


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.fault)
def test_a_lenient_server_takes_what_devices_send(smtp_server: MakeServer, lmtp: bool, device: Device) -> None:
    server = smtp_server(start=False, lenient_addresses=True, lmtp=lmtp)
    seen: list[Any] = []

    @server.on("from")
    def note_sender(session: Session, address: Address, ack: Ack) -> None:
        seen.append((address, address.mail_options.size))
        ack.accept()

    with dial(server) as peer:
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        peer.line(device.mail, device.rcpt)
        peer.expect("250", "250")
        peer.line("RSET", "MAIL FROM:<a@example.org>", RIGHT)  # what is right stays right
        peer.expect("250", "250", "250")
    assert seen[0] == (device.sender, 9 if "SIZE" in device.mail else None)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.fault)
def test_a_strict_server_says_what_it_refuses(smtp_server: MakeServer, device: Device) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line(device.mail)
        assert device.fault in peer.expect("5")
        peer.line("MAIL FROM:<a@example.org>", device.rcpt)
        peer.expect("250")
        reply = peer.reply()
        assert reply.startswith("250") if device.rcpt == RIGHT else "(" in reply


def test_the_reply_to_bytes_that_are_not_text_names_no_leniency(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.send(b"MAIL FROM: <a@example.org> X=\xff\r\n")
        assert "colon" not in peer.expect("501 5.5.2")


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    "line",
    ["MAIL a@example.org", "MAIL FROM:", "MAIL FROM:<a@example.org", 'MAIL FROM:"a b"@c', "MAIL FROM:<a@b> X=1=2"],
)
def test_what_no_leniency_helps_gets_the_same_reply(smtp_server: MakeServer, line: str, lenient: bool) -> None:
    replies = []
    for switch in (False, lenient):
        with dial(smtp_server(start=False, lenient_addresses=switch)) as peer:
            peer.hello()
            peer.line(line)
            replies.append(peer.reply())
    assert replies[0] == replies[1]
    assert replies[0].startswith("5")
    assert "angle brackets" not in replies[0]


def test_a_lenient_server_checks_parameters_like_a_strict_one(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, lenient_addresses=True, max_message_size=100)) as peer:
        peer.hello()
        peer.line("MAIL FROM:a@example.org RET=FULL", "MAIL FROM:a@example.org SIZE=101")
        peer.expect("555 5.5.4", "552 5.3.4")
