"""Forward to Exim and OpenSMTPD, and to both of them in one server."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

import pytest

from greensmtp import RecipientsRefused, SMTPServer, connect
from greensmtp.delivery import Deliveries, Forward, Route
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.peers.next_hops import next_hop

pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.timeout(120)]

BODY = b"Subject: Tea\r\n\r\n.At four.\r\n"
#: What each of them says to a message that it has taken.
TAKEN = {
    "exim": r"(250-2.0.0 .* byte chunk.*\n)?250 2.0.0 OK id=\S+",
    "opensmtpd": r"250 2.0.0 [0-9a-f]+ Message accepted.*",
}


def send(peer: Peer) -> str:
    """Send DATA and the body; return the reply."""
    peer.line("DATA")
    peer.expect("354")
    peer.send(BODY.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return peer.reply()


@pytest.mark.parametrize("mode", ["lock-step", "after-body"])
@pytest.mark.parametrize("name", ["exim", "opensmtpd"])
def test_as_the_next_hop(smtp_server: MakeServer, name: str, mode: Any) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    with next_hop(name, int(mx.address[1])) as port:
        server = smtp_server(start=False, hostname="front.example.com")
        Deliveries([Forward(f"smtp://127.0.0.1:{port}", mode=mode)]).attach(server)
        server.start()
        with dial(server) as peer:
            peer.hello()
            for _ in range(3):  # over a kept connection
                peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "RCPT TO:<cyd@example.org>")
                peer.expect("250", "250", "250")
                reply = send(peer)
                assert re.fullmatch(TAKEN[name], reply.strip())
                assert "queued as" not in reply
            peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<never@example.org>", "RCPT TO:<bob@example.org>")
            if mode == "lock-step":
                peer.expect("250", "550", "250")
                assert re.fullmatch(TAKEN[name], send(peer).strip())
            else:
                peer.expect("250", "250", "250")
                assert send(peer).startswith("550 5.")
            peer.line("NOOP")
            peer.expect("250")
        server.stop(timeout=5)
        wanted = ["bob@example.org", "cyd@example.org"] * 3 + ["bob@example.org"] * (mode == "lock-step")
        helpers.until(lambda: sorted(recipients(got)) == sorted(wanted), f"{name} to relay them")
    for _, _, body in got.mail:
        assert b"by front.example.com with ESMTP" in body
        assert body.partition(b"\r\n\r\n")[2] == b".At four.\r\n"


@pytest.mark.parametrize("name", list(TAKEN))
def test_the_client_sends_the_next_envelope_with_a_message(smtp_server: MakeServer, name: str) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    to = ["one@example.org", "never@example.org", "two@example.org", "three@example.org"]
    with next_hop(name, int(mx.address[1])) as port:
        with connect("127.0.0.1", port, timeout=20) as mail:
            outcomes = list(mail.send_many((BODY, "ann@example.com", each) for each in to))
        assert [isinstance(outcome, RecipientsRefused) for outcome in outcomes] == [False, True, False, False]
        helpers.until(lambda: len(got.mail) == 3, f"{name} to relay them")
    assert sorted(recipients(got)) == sorted(set(to) - {"never@example.org"})


def recipients(got: helpers.Deliveries) -> list[str]:
    return [each for _, to, _ in got.mail for each in to]


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("mode", ["lock-step", "after-body"])
def test_both_in_one_server(smtp_server: MakeServer, mode: Any, *, lmtp: bool) -> None:
    with ExitStack() as stack:
        got = {}
        routes = []
        for name in TAKEN:
            mx = smtp_server()
            got[name] = helpers.Deliveries(mx)
            port = stack.enter_context(next_hop(name, int(mx.address[1])))
            routes.append(Route(Forward(f"smtp://127.0.0.1:{port}", mode=mode), f"*@{name}.example"))
        server = smtp_server(start=False, lmtp=lmtp)
        Deliveries(routes).attach(server)
        server.start()
        with dial(server) as peer:
            talk(peer, server, lmtp=lmtp)
        server.stop(timeout=5)
        for name, each in got.items():
            helpers.until(lambda: bool(each.mail), f"{name} to relay it")  # noqa: B023  (it is called at once)
            assert recipients(each) == [f"bob@{name}.example"]


def talk(peer: Peer, server: SMTPServer, *, lmtp: bool) -> None:
    """Send a message to a recipient of each."""
    peer.line("LHLO client.example" if lmtp else "EHLO client.example")
    peer.expect("220", "250")
    names = list(TAKEN)
    peer.line("MAIL FROM:<ann@example.com>", *(f"RCPT TO:<bob@{name}.example>" for name in names))
    peer.expect("250", "250", "250" if lmtp else "452 4.5.3")
    assert re.fullmatch(TAKEN[names[0]], send(peer).strip())
    if lmtp:
        assert re.fullmatch(TAKEN[names[1]], peer.reply().strip())
        return
    peer.line("MAIL FROM:<ann@example.com>", f"RCPT TO:<bob@{names[1]}.example>")
    peer.expect("250", "250")
    assert re.fullmatch(TAKEN[names[1]], send(peer).strip())
