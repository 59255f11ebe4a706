"""The client against real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import ssl as gevent_ssl
from gevent.queue import Queue

from greensmtp import Pool, RecipientsRefused, SMTPServer, connect
from greensmtp.protocol.option_values import OriginalRecipient
from greensmtp.protocol.options import RcptOptions
from greensmtp.protocol.xclient import Missing
from tests.client import peers

if TYPE_CHECKING:
    from tests.conftest import Certificate

#: One postfix, one dovecot and one npm for all.
pytestmark = [pytest.mark.peer, pytest.mark.xdist_group("client peers")]

FROM, TO = "a@example.com", "b@example.com"
BODY = b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\nend"


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    """Servers that the module started, stopped at its end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def context(certificate: Certificate) -> Any:
    return gevent_ssl.create_default_context(cafile=str(certificate.authority))


# postfix


@pytest.fixture(scope="module")
def arrived(stack: ExitStack) -> Any:
    """A greensmtp server that Postfix relays to: its port, and the queue of what arrives."""
    queue: Any = Queue()
    server = SMTPServer(("127.0.0.1", 0), hostname="next.example.com")

    @server.on("message")
    def take(session: Any, stream: Any, ack: Any) -> None:
        ack.accept()
        queue.put((session.from_, list(session.to), stream.read()))

    server.start()
    stack.callback(server.stop, 1)
    return server.address[1], queue


@pytest.fixture(scope="module")
def postfix(stack: ExitStack, certificate: Certificate, arrived: Any, dovecot: Path) -> int:
    port: int = stack.enter_context(peers.postfix(certificate, arrived[0], dovecot / "auth.sock"))
    return port


def test_postfix_plain(postfix: int, arrived: Any) -> None:
    with connect("127.0.0.1", postfix, starttls="never", timeout=20) as mail:
        sent = mail.send(BODY, FROM, [TO, "no@example.com"])
        assert mail.extensions["PIPELINING"] == ""
    assert sent.accepted == (TO,)
    assert sent.refused["no@example.com"].code == 554
    assert sent.queue_id
    sender, recipients, body = arrived[1].get(timeout=20)
    assert (sender, recipients) == (FROM, [TO])
    assert body.endswith(b"\r\n\r\n.\r\n..\r\n.x\r\nend\r\n")


def test_postfix_command_by_command(postfix: int, arrived: Any) -> None:
    with connect("127.0.0.1", postfix, timeout=20) as mail:
        mail.ehlo("client.example")
        with mail.pipeline() as batch:
            batch.from_(FROM)
            batch.to("no@example.com")
            batch.to(TO)
            batch.data()
        assert [reply.code for reply in batch] == [250, 554, 250, 354]
        assert mail.message(BODY).code == 250
        assert mail.vrfy("jo@example.com").code in (252, 550, 554)
        assert mail.quit().code == 221
    assert arrived[1].get(timeout=20)[1] == [TO]


def test_postfix_notifies_as_dsn_asks(postfix: int, arrived: Any) -> None:
    original = RcptOptions(orcpt=OriginalRecipient("rfc822", "list+1@example.com"))
    with connect("127.0.0.1", postfix, starttls="never", timeout=20) as mail:
        mail.send(BODY, FROM, TO, to_ext=original, notify="SUCCESS", ret="HDRS", envid="order 7")
    # Its next hop here offers no DSN, so it notifies the sender that the message was relayed.
    messages = {to[0]: body for _, to, body in (arrived[1].get(timeout=20), arrived[1].get(timeout=20))}
    assert messages[TO].endswith(b"end\r\n")
    assert b"Original-Envelope-Id: order 7" in messages[FROM].replace(b"+20", b" ")
    assert b"list+1@example.com" in messages[FROM].replace(b"+2B", b"+")
    assert b"text/rfc822-headers" in messages[FROM]


def test_postfix_sends_no_notification_that_never_forbids(postfix: int, arrived: Any) -> None:
    with connect("127.0.0.1", postfix, starttls="never", timeout=20) as mail:
        mail.send(BODY, FROM, TO, notify="NEVER")
        mail.send(BODY, FROM, TO, notify="SUCCESS")
    assert sorted(arrived[1].get(timeout=20)[1] for _ in range(3)) == [[FROM], [TO], [TO]]


def test_postfix_xclient_and_xforward(postfix: int, arrived: Any) -> None:
    with connect("127.0.0.1", postfix, starttls="never", timeout=20) as mail:
        mail.ehlo()
        assert mail.xforward(name="client.example", addr="192.0.2.1", source="REMOTE").code == 250
        mail.send(BODY, FROM, TO)
        assert (
            mail.xclient(name=Missing.UNAVAILABLE, addr="198.51.100.7", proto="ESMTP", helo="client.example").code
            == 220
        )
        # That client is not in mynetworks, so nothing is relayed for it.
        with pytest.raises(RecipientsRefused):
            mail.send(BODY, FROM, TO)
    assert arrived[1].get(timeout=20)[1] == [TO]


@pytest.mark.parametrize("mechanism", [None, "PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
def test_postfix_starttls_and_sasl(postfix: int, arrived: Any, context: Any, mechanism: str | None) -> None:
    with connect("127.0.0.1", postfix, ssl_context=context, starttls="require", timeout=20) as mail:
        mail.begin()
        assert mail.tls
        assert mail.login("jo", "wrong", mechanism).code == 535
        assert mail.login("jo", "secret", mechanism).code == 235
        mail.send(BODY, FROM, TO)
    assert arrived[1].get(timeout=20)


def test_postfix_smtputf8(postfix: int, arrived: Any) -> None:
    message = EmailMessage()
    message["From"] = "j\u00f6@example.com"
    message["To"] = "gr\u00e4fin@example.com"
    message["Subject"] = "gr\u00fc\u00dfe"
    message.set_content("x\n")
    with connect("127.0.0.1", postfix, starttls="never", timeout=20) as mail:
        mail.send(message)
    sender, recipients, body = arrived[1].get(timeout=20)
    assert (sender, recipients) == ("j\u00f6@example.com", ["gr\u00e4fin@example.com"])
    assert "Subject: gr\u00fc\u00dfe".encode() in body


def test_postfix_dsn(postfix: int, arrived: Any) -> None:
    with connect("127.0.0.1", postfix, starttls="never", timeout=20) as mail:
        mail.send(BODY, FROM, TO, from_ext={"RET": "HDRS", "ENVID": "x1"}, to_ext="NOTIFY=NEVER")
    assert arrived[1].get(timeout=20)


@pytest.mark.parametrize("size", [200_000, 3_000_000])
def test_postfix_chunking(postfix: int, arrived: Any, size: int) -> None:
    octets = b"Subject: large\r\n\r\n" + (b"." * 75 + b"\r\n") * (size // 77)
    with connect("127.0.0.1", postfix, starttls="never", timeout=20) as mail:
        mail.begin()
        assert "CHUNKING" in mail.extensions
        assert "bytes" not in mail.extensions
        mail.send(octets, FROM, TO)
    body = arrived[1].get(timeout=20)[2]
    assert body.endswith(octets[18:])


def test_postfix_through_a_pool(postfix: int, arrived: Any) -> None:
    with Pool("127.0.0.1", postfix, size=2, starttls="never", timeout=20) as pool:
        for _ in range(5):
            pool.send(BODY, FROM, TO)
            with pytest.raises(RecipientsRefused):
                pool.send(BODY, FROM, "no@example.com")
    for _ in range(5):
        arrived[1].get(timeout=20)


@pytest.mark.parametrize("tls", [False, True])
def test_postfix_takes_the_next_envelope_with_a_message(postfix: int, arrived: Any, context: Any, *, tls: bool) -> None:
    policy: Any = "require" if tls else "never"
    recipients = [TO, "no@example.com", TO, TO]
    with connect("127.0.0.1", postfix, ssl_context=context, starttls=policy, timeout=20) as mail:
        outcomes = list(mail.send_many((BODY, FROM, each) for each in recipients))
        assert mail.noop().code == 250
    assert [isinstance(outcome, RecipientsRefused) for outcome in outcomes] == [False, True, False, False]
    for _ in range(3):
        assert arrived[1].get(timeout=20)[2].endswith(b"\r\n\r\n.\r\n..\r\n.x\r\nend\r\n")


# aiosmtpd


@pytest.fixture(scope="module")
def aiosmtpd(stack: ExitStack) -> int:
    port: int = stack.enter_context(peers.aiosmtpd())
    return port


def test_aiosmtpd(aiosmtpd: int) -> None:
    with connect("127.0.0.1", aiosmtpd, timeout=20) as mail:
        mail.begin()
        assert "PIPELINING" not in mail.extensions
        assert mail.login("jo", "wrong", allow_plaintext=True).code == 535
        assert mail.login("jo", "secret", allow_plaintext=True).code == 235
        sent = mail.send(BODY, FROM, [TO, "no@example.com"])
        assert sent.reply.text == f"{len(BODY) + 2} octets"
        assert list(sent.refused) == ["no@example.com"]
        mail.send("Subject: gr\u00fc\u00dfe\n\nx\n".encode(), "j\u00f6@example.com", TO)


# node's smtp-server


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """node_modules with smtp-server in it."""
    return peers.smtp_server_modules(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def node(stack: ExitStack, modules: Path, certificate: Certificate) -> int:
    port: int = stack.enter_context(peers.node_smtp_server(modules, certificate))
    return port


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", None])
def test_node_smtp_server(node: int, context: Any, mechanism: str | None) -> None:
    with connect("127.0.0.1", node, ssl_context=context, starttls="require", timeout=20) as mail:
        mail.begin()
        assert mail.login("jo", "secret", mechanism).code == 235
        sent = mail.send(BODY, FROM, [TO, "no@example.com"])
        assert str(len(BODY) + 2) in sent.reply.text
        assert list(sent.refused) == ["no@example.com"]
        many = list(mail.send_many((BODY, FROM, each) for each in (TO, "no@example.com", TO, TO)))
        assert [isinstance(outcome, RecipientsRefused) for outcome in many] == [False, True, False, False]


def test_node_smtp_server_xoauth2(node: int, context: Any) -> None:
    with connect("127.0.0.1", node, ssl_context=context, timeout=20) as mail:
        mail.begin()
        assert mail.login("jo", token="wrong").is_permanent_failure
        assert mail.login("jo", token="token").code == 235


def test_node_lmtp(modules: Path, certificate: Certificate, context: Any) -> None:
    with (
        peers.node_smtp_server(modules, certificate, "lmtp") as port,
        connect("127.0.0.1", port, lmtp=True, ssl_context=context, timeout=20) as mail,
    ):
        sent = mail.send(BODY, FROM, [TO, "c@example.com"])
        assert sent.accepted == (TO, "c@example.com")
        assert mail.noop().code == 250


# Dovecot


@pytest.fixture(scope="module")
def dovecot(stack: ExitStack) -> Path:
    base: Path = stack.enter_context(peers.dovecot())
    return base


def test_dovecot_lmtp(dovecot: Path) -> None:
    with connect(str(dovecot / "lmtp.sock"), lmtp=True, timeout=20) as mail:
        sent = mail.send(BODY, FROM, ["jo@example.com", "nobody@example.com"])
        assert sent.accepted == ("jo@example.com",)
        assert sent.refused["nobody@example.com"].code == 550
        large = b"Subject: large\r\n\r\n" + (b"x" * 75 + b"\r\n") * 4000
        assert mail.send(large, FROM, ["jo@example.com"]).reply.code == 250
        outcomes = list(mail.send_many([(BODY, FROM, "jo@example.com")] * 3))
        assert [str(outcome.reply)[:3] for outcome in outcomes] == ["250"] * 3
    assert len(list((dovecot / "mail/jo/new").iterdir())) == 5
