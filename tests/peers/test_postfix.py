"""Postfix as a real relay to ``greensmtp serve``: SMTP in the clear and with STARTTLS, LMTP with a reply for each."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import smtplib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.programs import missing, need_root

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

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = /dev/stdout
myhostname = relay.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_dns_support_level = disabled
alias_maps =
alias_database =
local_recipient_maps =
"""

MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
"""


class Postfix:
    """A postfix with its own configuration, queue and port."""

    def __init__(self, program: Callable[[str], str], folder: Path, **settings: str) -> None:
        self._postfix, self._sendmail = program("postfix"), program("sendmail")
        need_root("postfix")
        self._configuration = folder / "configuration"
        for name in ("configuration", "queue", "data"):
            (folder / name).mkdir()
        os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        main = MAIN.format(folder=folder) + "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self._configuration / "main.cf").write_text(main)
        (self._configuration / "master.cf").write_text(MASTER.format(port=self.port))
        self._process = subprocess.Popen(
            [self._postfix, "-c", self._configuration, "start-fg"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.log = b""
        try:
            self.wait_for(b": daemon started -- ")
        except AssertionError as error:
            self.stop()
            missing(f"postfix does not start: {error}")

    def wait_for(self, words: bytes, timeout: float = 20.0) -> None:
        """Wait until the log contains this."""
        assert self._process.stdout is not None
        deadline = monotonic() + timeout
        while words not in self.log:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - monotonic()))
            piece = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            assert piece, self.log.decode(errors="replace")
            self.log += piece

    def stop(self) -> None:
        """Stop all processes."""
        subprocess.run([self._postfix, "-c", self._configuration, "stop"], check=False, capture_output=True)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(10)

    def relay(self, sender: str, *recipients: str, body: bytes = BODY) -> None:
        """Submit a message over SMTP."""
        with smtplib.SMTP("127.0.0.1", self.port, "client.example", timeout=20) as client:
            assert client.sendmail(sender, recipients, body, ["BODY=8BITMIME"]) == {}

    def sendmail(self, sender: str, *recipients: str, body: bytes = BODY) -> None:
        """Submit a message with the sendmail command."""
        command: list[str | Path] = [self._sendmail, "-C", self._configuration, "-i", "-f", sender, *recipients]
        subprocess.run(command, check=True, input=body.replace(b"\r\n", b"\n"), timeout=20)


@pytest.fixture
def postfix(program: Callable[[str], str]) -> Iterator[Callable[..., Postfix]]:
    """Return a function that starts postfix with settings in ``main.cf``; stop it at the end."""
    # Its processes run as another user, which may not enter pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    folder.chmod(0o755)
    running: list[Postfix] = []

    def start(**settings: str) -> Postfix:
        running.append(Postfix(program, folder, **settings))
        return running[-1]

    yield start
    for each in running:
        each.stop()
    shutil.rmtree(folder)


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
    relay.relay("ann@example.com", "bob@example.org", "cyd@example.org")
    assert "from=<ann@example.com> to=<bob@example.org>,<cyd@example.org> " in server.line()
    relay.sendmail("ann@example.com", "bob@example.org")
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
    relay.relay("ann@example.com", "later@example.org", "never@example.org", "bob@example.org")
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
    relay.relay("ann@example.com", "bob@lmtp.example", "full@lmtp.example", "cyd@lmtp.example")
    assert " to=<bob@lmtp.example>,<cyd@lmtp.example> " in server.line()
    assert "message from=<> to=<ann@example.com> " in server.line()
    message, bounce = server.mail
    assert body_of(message) == BODY
    assert b" with LMTP id " in message
    assert b"552 5.2.2 The mailbox is full" in bounce.replace(b"\r\n    ", b" ")
    assert b"<bob@lmtp.example>" not in bounce.partition(b"Content-Type: message/rfc822")[0]
