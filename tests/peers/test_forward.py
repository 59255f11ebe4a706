"""Forward with real next hops, and Postfix around examples/filter.py as a filter before its queue."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp.delivery import Deliveries, Forward
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.client import peers
from tests.helpers import free_port
from tests.peers.postfix import Postfix
from tests.test_examples import running

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.timeout(120)]

BODY = b"Subject: Tea\r\n\r\n.At four.\r\n"


@pytest.mark.parametrize("mode", ["lock-step", "after-body"])
def test_postfix_as_the_next_hop(smtp_server: MakeServer, postfix: Callable[..., Postfix], mode: Any) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    relay = postfix(
        relayhost=f"[127.0.0.1]:{mx.address[1]}",
        smtpd_recipient_restrictions="check_recipient_access inline:{{never@example.org=550 5.1.1 never}}, permit",
        smtpd_delay_reject="no",
    )
    server = smtp_server(start=False, hostname="front.example.com")
    Deliveries([Forward(f"smtp://127.0.0.1:{relay.port}", mode=mode)]).attach(server)
    server.start()
    with dial(server) as peer:
        peer.hello()
        for _ in range(3):
            peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
            peer.expect("250", "250", "354")
            peer.send(BODY.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            peer.expect("250")
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<never@example.org>")
        peer.expect("250", "550 5.1.1" if mode == "lock-step" else "250")
    server.stop(timeout=5)
    helpers.until(lambda: len(got.mail) == 3, "Postfix to relay them")
    for _, recipients, body in got.mail:
        assert recipients == ["bob@example.org"]
        assert b"by front.example.com with ESMTP" in body
        assert body.partition(b"\r\n\r\n")[2] == b".At four.\r\n"


def test_the_filter_of_the_example_before_postfix_queues(
    smtp_server: MakeServer, postfix: Callable[..., Postfix]
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    back = free_port()
    page = (Path(__file__).resolve().parents[2] / "examples/filter.py").read_text()
    found = re.search(r"127.0.0.1:10026 (inet .*?)\n\n", page, re.DOTALL)
    assert found is not None
    with running("filter.py", "0", f"smtp://127.0.0.1:{back}") as example:
        front = free_port()
        relay = postfix(
            services=(
                f"127.0.0.1:{back} {found[1]}\n"
                f"127.0.0.1:{front} inet n - n - 20 smtpd -o smtpd_proxy_filter=127.0.0.1:{example.port}\n"
            ),
            relayhost=f"[127.0.0.1]:{mx.address[1]}",
        )
        assert relay.port
        with smtplib.SMTP("127.0.0.1", front, "client.example", timeout=20) as client:
            client.sendmail("ann@example.com", ["bob@example.org"], BODY)
            with pytest.raises(smtplib.SMTPDataError, match="No lottery"):
                client.sendmail("lottery@example.com", ["bob@example.org"], BODY)
            client.sendmail("ann@example.com", ["bob@example.org"], BODY)
        helpers.until(lambda: len(got.mail) == 2, "Postfix to relay them")
        example.stop()
    for sender, _, body in got.mail:
        assert sender == "ann@example.com"
        assert b"X-Filter-Client: 127.0.0.1\r\n" in body
        assert b"by filter.example.com" not in body


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("mode", ["lock-step", "after-body"])
def test_dovecot_by_lmtp(smtp_server: MakeServer, mode: Any, lmtp: bool) -> None:
    asks_first = mode == "lock-step"
    with peers.dovecot() as base:
        server = smtp_server(start=False, lmtp=lmtp)
        Deliveries([Forward(f"lmtp+unix:{base}/lmtp.sock", mode=mode)]).attach(server)
        server.start()
        with dial(server) as peer:
            peer.line("LHLO client.example" if lmtp else "EHLO client.example", "MAIL FROM:<ann@example.com>")
            peer.expect("220", "250", "250")
            peer.line("RCPT TO:<jo@example.com>", "RCPT TO:<nobody@example.com>")
            peer.expect("250", "550 5.1.1" if asks_first else "250")
            send(peer)
            if lmtp or asks_first:
                peer.expect("250")
            if not asks_first:
                peer.expect("550 5.1.1")
        server.stop(timeout=5)
        # In SMTP, no recipient gets a message that is refused.
        found = [path.read_bytes() for path in (base / "mail").glob("jo/new/*")]
        assert len(found) == (lmtp or asks_first)
        assert all(each.replace(b"\r\n", b"\n").endswith(b"\n\n.At four.\n") for each in found)


@pytest.mark.parametrize("mode", ["lock-step", "after-body"])
def test_node_smtp_server(smtp_server: MakeServer, tmp_path: Path, certificate: Certificate, mode: Any) -> None:
    modules = peers.smtp_server_modules(tmp_path)
    with peers.node_smtp_server(modules, certificate) as port:
        server = smtp_server(start=False)
        Deliveries([Forward(f"smtp://127.0.0.1:{port}", mode=mode, starttls="opportunistic")]).attach(server)
        server.start()
        with dial(server) as peer:
            peer.hello()
            for _ in range(2):
                peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<jo@example.com>")
                peer.expect("250", "250")
                send(peer)
                peer.expect("250")
            peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<no@example.com>")
            peer.expect("250", "550" if mode == "lock-step" else "250")
        server.stop(timeout=5)


def send(peer: Peer) -> None:
    """Send DATA and the body."""
    peer.line("DATA")
    peer.expect("354")
    peer.send(BODY.replace(b"\r\n.", b"\r\n..") + b".\r\n")
