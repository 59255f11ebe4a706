"""Postfix as a real relay to ``greensmtp serve``: SMTP in the clear and with STARTTLS, LMTP with a reply for each."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import replace_text
from tests.peers.postfix import Postfix

pytestmark = pytest.mark.peer

Serve = Callable[..., Any]

#: With all headers that postfix would add else.
BODY = """\
From: Ann <ann@example.com>
Date: Mon, 23 Nov 2026 23:00:00 +0000
Message-ID: <1@example.com>
Subject: Grüße

.
..
From here on
✓
""".replace("\n", "\r\n").encode()


def body_of(message: bytes) -> bytes:
    """Return a message without the trace fields."""
    return message[message.index(b"From: Ann") :]


# ``verify`` does what ``may`` and ``encrypt`` do, and then looks at the certificate.
@pytest.mark.parametrize("level", ["verify", pytest.param("may", marks=pytest.mark.exhaustive)])
def test_postfix_relays_with_starttls(
    serve: Serve, postfix: Callable[..., Postfix], certificate: Any, level: str
) -> None:
    server = serve("--tls-cert", certificate.certfile, "--tls-key", certificate.keyfile)
    relay = postfix(
        relayhost=f"[127.0.0.1]:{server.port}",
        smtp_tls_security_level=level,
        smtp_tls_CAfile=str(certificate.authority),
        smtp_tls_verify_cert_match="mx.example.com",
    )
    relay.relay(BODY, "ann@example.com", "bob@example.org", "cyd@example.org")
    assert "from=<ann@example.com> to=<bob@example.org>,<cyd@example.org> " in server.line()
    relay.sendmail(BODY, "ann@example.com", "bob@example.org")
    assert "from=<ann@example.com> to=<bob@example.org> " in server.line()
    mail = server.mail
    assert [body_of(message) for message in mail] == [BODY, BODY]
    # (Where it is not told otherwise, as its command cannot tell, it asks for SMTPUTF8 by the look of the headers.)
    for message, protocol in zip(mail, ("ESMTPS", "UTF8SMTPS"), strict=True):
        trace = f"\r\nReceived: from relay.example ([127.0.0.1])\r\n\tby mx.example.com with {protocol} id "
        assert trace.encode() in message
    assert server.stop() == 0
    assert server.log == ""


def test_postfix_keeps_what_is_refused_for_now_and_bounces_what_is_refused_for_good(
    serve: Serve, postfix: Callable[..., Postfix], tmp_path: Path
) -> None:
    (tmp_path / "policy.py").write_text(
        "from greensmtp import Reject, signals\n"
        "@signals.to.connect\n"
        "def decide(session, address, ack):\n"
        "    if address.local_part == 'later':\n"
        "        ack.reject(450, '4.2.1 Come back later')\n"
        "    elif address.local_part == 'never':\n"
        "        ack.reject(550, '5.1.1 Gone for good')\n"
        "    else:\n"
        "        ack.accept()\n"
    )
    server = serve("--plugin", "policy")
    relay = postfix(relayhost=f"[127.0.0.1]:{server.port}")
    relay.relay(BODY, "ann@example.com", "later@example.org", "never@example.org", "bob@example.org")
    assert " to=<bob@example.org> " in server.line()
    assert "message from=<> to=<ann@example.com> " in server.line()
    message, bounce = server.mail
    assert body_of(message) == BODY
    assert b" with ESMTP id " in message
    assert b"550 5.1.1 Gone for good" in bounce.replace(b"\r\n    ", b" ")
    relay.wait_for(b"status=deferred")
    assert b"450 4.2.1 Come back later" in relay.log


def test_postfix_delivers_over_lmtp_and_hears_of_each_recipient(
    serve: Serve, postfix: Callable[..., Postfix], tmp_path: Path
) -> None:
    (tmp_path / "policy.py").write_text(
        "from greensmtp import Reject, signals\n"
        "@signals.received.connect\n"
        "def decide(session, ack, recipient=None):\n"
        "    if recipient is not None and recipient.local_part == 'full':\n"
        "        raise Reject(552, '5.2.2 The mailbox is full')\n"
    )
    server = serve("--plugin", "policy", "--listen", "lmtp://127.0.0.1:0", "--listen", "smtp://127.0.0.1:0")
    relay = postfix(
        relayhost=f"[127.0.0.1]:{server.urls[1].rpartition(':')[2]}",
        transport_maps=f"inline:{{ {{ lmtp.example = lmtp:inet:127.0.0.1:{server.port} }} }}",
    )
    relay.relay(BODY, "ann@example.com", "bob@lmtp.example", "full@lmtp.example", "cyd@lmtp.example")
    assert " to=<bob@lmtp.example>,<cyd@lmtp.example> " in server.line()
    assert "message from=<> to=<ann@example.com> " in server.line()
    message, bounce = server.mail
    assert body_of(message) == BODY
    assert b" with LMTP id " in message
    assert b"552 5.2.2 The mailbox is full" in bounce.replace(b"\r\n    ", b" ")
    assert b"<bob@lmtp.example>" not in bounce.partition(b"Content-Type: message/rfc822")[0]


def test_postfix_relays_during_reloads(serve: Serve, postfix: Callable[..., Postfix], tmp_path: Path) -> None:
    config = tmp_path / "greensmtp.toml"
    text = 'hostname = "{}"\nmiddleware = []\n[[listeners]]\nurl = "smtp://127.0.0.1:0"\n[logging]\nlevel = "info"\n'
    config.write_text(text.format("mx.example.com"))
    server = serve("--config", config, listeners=1)
    relay = postfix(relayhost=f"[127.0.0.1]:{server.port}", default_destination_concurrency_limit="5")
    for number in range(20):
        relay.relay(BODY, "ann@example.com", "bob@example.org")
        replace_text(config, text.format(f"mx{number}.example.com"))
        server.process.send_signal(signal.SIGHUP)
    for _ in range(20):
        assert "from=<ann@example.com> to=<bob@example.org> " in server.line()
    assert [body_of(message) for message in server.mail] == [BODY] * 20
    assert server.stop() == 0
    assert server.log.count("configuration reloaded") > 1
    # Postfix would have tried again later.
    assert b"status=deferred" not in relay.log
    assert b"lost connection" not in relay.log
