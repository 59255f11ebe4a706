"""The examples, run from the command line, with clients that talk to them."""

from __future__ import annotations

import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import pytest
from gevent import socket
from gevent import ssl as gevent_ssl

from greensmtp import Ack, Address, Session, connect
from greensmtp.testing import Peer
from greensmtp.testing.fixtures import MakeServer
from tests import forked, helpers

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = pytest.mark.subprocess

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: Run by tests/client/test_examples.py; all others are servers.
CLIENTS = {"client.py", "send_many.py"}
#: It pauses for a second before its banner; its own test below is enough.
PAUSES = {"middleware_stack.py"}


class Example:
    """A running example: its port, and its output after it has ended."""

    def __init__(self, process: forked.Process, log: IO[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self._log = log
        self._stdout = TextIOWrapper(process.stdout, encoding="utf-8")
        ready = self._stdout.readline()
        assert ready.startswith("listening on 127.0.0.1:"), ready
        self.port = int(ready.rpartition(":")[2])

    def line(self) -> str:
        """Return the next line of its output."""
        return self._stdout.readline().rstrip("\n")

    def dial(self) -> Peer:
        return Peer(socket.create_connection(("127.0.0.1", self.port), timeout=10))

    def stop(self) -> str:
        """Send SIGINT, check that it ends without an error, and return its output since it was ready."""
        self._process.send_signal(signal.SIGINT)
        printed = self._stdout.read()
        status = self._process.wait(20)
        self._log.seek(0)
        assert (status, self._log.read()) == (0, "")
        return printed


@contextmanager
def running(name: str, *arguments: str) -> Iterator[Example]:
    with TemporaryFile("w+", encoding="utf-8") as log:
        program = forked.script(EXAMPLES / name, *arguments)
        process = forked.start(program, how=forked.UNPATCHED, stdout=forked.PIPE, stderr=log)
        assert process.stdout is not None
        with process.stdout:
            try:
                yield Example(process, log)
            finally:
                process.kill()


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - CLIENTS - PAUSES))
def test_every_server_takes_a_port_prints_it_and_ends_cleanly(name: str) -> None:
    with running(name, "0") as example:
        with example.dial() as peer:
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")
        example.stop()


def test_relay_passes_mail_on_and_its_replies_back(smtp_server: MakeServer) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)

    @mx.on("to")
    def known(session: Session, address: Address, ack: Ack) -> None:
        ack.accept() if address.local_part == "bob" else ack.reject(550, "5.1.1 unknown")

    with running("relay.py", "0", f"smtp://127.0.0.1:{mx.address[1]}") as example:
        with example.dial() as peer:
            peer.hello()
            assert peer.deliver("Subject: Tea\r\n\r\nAt five.\r\n", to=["bob@example.org"]).startswith("250")
            peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<cyd@example.org>")
            peer.expect("250", "550 5.1.1 unknown")
        example.stop()
    ((_, recipients, body),) = got.mail
    assert recipients == ["bob@example.org"]
    assert b"by relay.example.com with ESMTP id" in body


def test_archive_keeps_each_message_under_its_id(tmp_path: Path) -> None:
    with running("archive.py", "0", str(tmp_path / "archive")) as example:
        with example.dial() as peer:
            peer.hello()
            reply = peer.deliver("Subject: Tea\r\n\r\nAt five.\r\n")
            assert reply.startswith("250 2.0.0 Ok: queued as ")
            (path,) = (tmp_path / "archive").iterdir()
            assert path.name == f"{reply.split()[-1]}.eml"
            assert path.read_bytes() == b"Subject: Tea\r\n\r\nAt five.\r\n"
        example.stop()


def test_local_only_accepts_mail_for_localhost_and_prints_it() -> None:
    with running("local_only.py", "0") as example:
        with example.dial() as peer:
            peer.converse("""
                S: 220 localhost
                C: helo client.example
                S: 250
                C: mail from:<beep@localhost>
                S: 250
                C: rcpt to:<boop@elsewhere.example>
                S: 550 5.7.1 relaying denied
                C: rcpt to:<boop@localhost>
                S: 250
                C: rcpt to:<root@LOCALHOST>
                S: 250
                C: data
                S: 354
                C: Beep boop.
                C: I am a computer.
                C: .
                S: 250
                C: quit
                S: 221
                S: END
            """)
        printed = example.stop()
    assert printed.splitlines() == [
        "from: beep@localhost",
        "to: boop@localhost, root@localhost",
        "Beep boop.",
        "I am a computer.",
    ]


def test_per_connection_prints_mail_and_end_of_each_connection() -> None:
    with running("per_connection.py", "0") as example:
        with example.dial() as peer:
            peer.hello()
            assert peer.deliver("Hello.\r\n", sender="a@example.org", to=["b@example.com", "c@example.com"]).startswith(
                "250"
            )
            peer.line("QUIT")
            peer.expect("221")
            peer.expect_end()
        with example.dial() as peer:
            peer.hello()
        with example.dial() as peer:  # the end of the last connection is printed before this one is answered
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")
            peer.expect_end()
        printed = example.stop()
    lines = printed.splitlines()
    assert lines[:4] == [
        "[127.0.0.1] from: a@example.org",
        "[127.0.0.1] to: b@example.com, c@example.com",
        "Hello.",
        "[127.0.0.1] sent QUIT",
    ]
    assert sorted(lines[4:]) == ["[127.0.0.1] closed the connection", "[127.0.0.1] sent QUIT"]


def test_per_connection_prints_a_timeout() -> None:
    with running("per_connection.py", "0", "1") as example:
        with example.dial() as peer:
            peer.hello()
            peer.expect("421 4.4.2")
            peer.expect_end()
        printed = example.stop()
    assert printed == "[127.0.0.1] timed out\n"


def test_handlers_refuse_and_accept() -> None:
    with running("handlers.py", "0", "0") as example:
        with example.dial() as peer:
            peer.converse("""
                S: 220
                C: EHLO MX.example.com
                S: 550 5.7.1 that is the name of this server
                C: EHLO client.example
                S: 250
                C: MAIL FROM:<a@elsewhere.example> SIZE=1000001
                S: 552 5.3.4 too large for your domain
                C: MAIL FROM:<a@example.org> SIZE=1000001
                S: 250
                C: RCPT TO:<b@elsewhere.example>
                S: 550 5.7.1 relaying denied
                C: RCPT TO:<b@Example.com>
                S: 250
                C: DATA
                S: 354
                C: From: a@example.org
                C: Subject: tea
                C:
                C: At four.
                C: .
                S: 250 2.0.0 Ok: queued as *
            """)
            peer.envelope("a@example.org", "b@localhost")
            peer.line("DATA", "Subject: no sender", "", ".")
            peer.expect("354", "554 5.6.0 the message has no From field")
            peer.envelope("a@example.org", "b@localhost")
            peer.line("DATA", "From: a", 'Content-Disposition: attachment; filename="Bill.EXE"', "", ".")
            peer.expect("354", "554 5.7.1 programs are not accepted by mail")
            large = b"From: a\r\n\r\n" + b"x" * 1_000_000
            assert peer.deliver(large, sender="a@example.net", to="b@localhost").startswith("552 5.3.4")
            reply = peer.deliver("From: a\r\n\r\n", sender="c@example.net", to=["d@localhost", "e@example.com"])
        printed = example.stop()
    first, second = printed.splitlines()
    assert first.endswith(": from=<a@example.org> to=b@example.com")
    assert second == f"{reply.rpartition(' ')[2]}: from=<c@example.net> to=d@localhost,e@example.com"


def test_the_greylist_refuses_a_retry_that_comes_too_early() -> None:
    with running("handlers.py", "0") as example:
        with example.dial() as peer:
            peer.hello()
            peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@localhost>", "RCPT TO:<b@localhost>")
            peer.expect("250", "450 4.7.1 greylisted", "450 4.7.1 greylisted")
        example.stop()


def test_the_flask_app_shows_received_mail_newest_first() -> None:
    with running("flask_app.py", "0", "0") as example:
        page = example.line().removeprefix("the page is at ")

        def read() -> str:
            with urllib.request.urlopen(page, timeout=10) as answer:
                assert answer.headers.get_content_type() == "text/html"
                return str(answer.read().decode())

        assert "No mail yet." in read()
        with example.dial() as peer:
            peer.hello()
            peer.deliver("Subject: Tea\r\n\r\nAt four.\r\n", sender="ann@example.org", to=["bob@example.com", "c@d"])
            peer.deliver(
                "Subject: <script>alert(1)</script>\r\n"
                "Content-Type: multipart/alternative; boundary=x\r\n\r\n"
                "--x\r\nContent-Type: text/html\r\n\r\n<b>bold</b>\r\n"
                "--x\r\nContent-Type: text/plain; charset=klingon\r\n\r\n<i>plain</i> & simple\r\n--x--\r\n",
                sender="",
                to='"<img src=x>"@example.com>',
            )
            shown = read()
            assert peer.deliver("Content-Type: text/html\r\n\r\n<b>bold</b>\r\n").startswith("250")
            assert peer.deliver(b"Subject: \xff\r\nContent-Type: text/plain; charset=idna\r\n\r\n\xff\r\n").startswith(
                "250"
            )
        assert "(no plain text)" in read()
        example.stop()
    assert "<title>2 messages</title>" in shown
    assert shown.index("&lt;i&gt;plain&lt;/i&gt; &amp; simple") < shown.index("At four.")
    assert "from ann@example.org to bob@example.com, c@d" in shown
    assert "from the null sender to &#34;&lt;img src=x&gt;&#34;@example.com" in shown
    assert "<h2>&lt;script&gt;alert(1)&lt;/script&gt;</h2>" in shown
    for danger in ("<script>", "<b>", "<i>", "<img"):
        assert danger not in shown


def test_the_flask_app_drops_old_mail() -> None:
    with running("flask_app.py", "0", "0") as example:
        page = example.line().removeprefix("the page is at ")
        with example.dial() as peer:
            peer.hello()
            for number in range(101):
                peer.deliver(f"Subject: number {number}\r\n\r\n.\r\n")
        with urllib.request.urlopen(page, timeout=10) as answer:
            shown = answer.read().decode()
        example.stop()
    assert shown.count("<article>") == 100
    assert "number 100<" in shown
    assert "number 0<" not in shown


def test_middleware_stack_accepts_mail_and_refuses_early_talkers() -> None:
    with running("middleware_stack.py", "0") as example:
        with example.dial() as peer:
            peer.hello()
            assert peer.deliver(to="root@localhost").startswith("250")
            peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>", "QUIT")
            peer.expect("250", "550 5.7.1 relaying denied", "221")
        with example.dial() as peer:
            peer.line("EHLO client.example")
            peer.expect("554 5.5.1")
        example.stop()


def test_submission_accepts_logins_and_mail_under_the_users_own_address(certificate: Certificate) -> None:
    context = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    with running("submission.py", "0", str(certificate.certfile), str(certificate.keyfile)) as example:
        with connect("127.0.0.1", example.port, starttls="never") as mail:
            mail.ehlo()
            assert mail.extensions["AUTH"] == "SCRAM-SHA-256 CRAM-MD5"
            assert mail.from_("beep@example.com").code == 530
            assert mail.login("beep", "boop").code == 235
            mail.send(b"x\r\n", "beep@example.com", "you@example.org")
        with connect("127.0.0.1", example.port, starttls="require", ssl_context=context) as mail:
            mail.begin()
            assert "PLAIN" in mail.extensions["AUTH"].split()
            assert mail.login("beep", "wrong").code == 535
            assert mail.login("beep", "boop", "PLAIN").code == 235
            assert mail.from_("root@example.com").text == "beep may only send as beep@example.com"
            mail.send(b"x\r\n", "beep@example.com", ["you@example.org", "me@example.org"])
        printed = example.stop()
    assert printed.splitlines() == [
        "beep (SCRAM-SHA-256) -> you@example.org: 3 bytes",
        "beep (PLAIN) -> you@example.org, me@example.org: 3 bytes",
    ]
