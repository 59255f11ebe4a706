"""``smtp_sink``: for tests of code that sends mail and blocks its thread while it does."""

from __future__ import annotations

import gc
import os
import smtplib
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import gevent
import pytest

from greensmtp import Command, Proceed, Reply, Session
from greensmtp.testing import MessageNotReceived, SinkMessage, SMTPSink
from tests import forked

MakeSink = Callable[..., SMTPSink]


def client(sink: SMTPSink) -> smtplib.SMTP:
    return smtplib.SMTP(sink.host, sink.port, local_hostname="client.example", timeout=10)


def letter(subject: str = "Hello", text: str = "Hello.\n", to: str = "jo@example.com") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.org", to, subject
    message.set_content(text)
    return message


def send(sink: SMTPSink, message: EmailMessage | None = None) -> None:
    with client(sink) as smtp:
        smtp.send_message(message or letter())


# What has come


def test_smtplib_sends_and_the_message_is_there_when_it_returns(smtp_sink: SMTPSink) -> None:
    message = letter("Grüße", "Hallo, ünd zwar 8-bit.\n.\n..\n")
    message["Bcc"] = "secret@example.com"
    message.add_alternative("<p>Hallo</p>\n", subtype="html")
    message.add_attachment(b"\0\1", maintype="application", subtype="pdf", filename="Rechnung ä.pdf")
    send(smtp_sink, message)
    (received,) = smtp_sink.messages
    assert received.sender == "shop@example.org"
    assert received.recipients == ["jo@example.com", "secret@example.com"]
    assert (received.subject, received.text, received.html) == (
        "Grüße",
        "Hallo, ünd zwar 8-bit.\n.\n..\n",
        "<p>Hallo</p>\n",
    )
    (attachment,) = received.attachments
    assert (attachment.filename, attachment.content_type, attachment.content) == (
        *("Rechnung ä.pdf", "application/pdf"),
        b"\0\1",
    )
    assert isinstance(received.parsed, EmailMessage)
    assert received.headers["subject"] == "Grüße"
    assert "Bcc" not in received.headers
    assert b"\r\n\r\n" in received.raw
    assert (received.tls, received.username, received.client_hostname) == (False, None, "client.example")


def test_lmtp_makes_one_message_for_all_recipients(make_smtp_sink: MakeSink) -> None:
    sink = make_smtp_sink(lmtp=True)
    sink.refuse("END-OF-DATA", 452, matching="full@*")
    with smtplib.LMTP(sink.host, sink.port) as smtp:
        smtp.ehlo("client.example")
        smtp.mail("a@example.org")
        for name in ("jo", "full", "ann"):
            smtp.rcpt(f"{name}@example.com")
        smtp.data(b"Subject: x\r\n\r\n")
        assert smtp.getreply()[0] == 452
        assert smtp.getreply()[0] == 250
    (message,) = sink.messages
    assert message.recipients == ["jo@example.com", "ann@example.com"]


def test_clear_removes_all_messages(smtp_sink: SMTPSink) -> None:
    send(smtp_sink)
    smtp_sink.clear()
    assert smtp_sink.messages == []
    send(smtp_sink)
    assert len(smtp_sink.messages) == 1


def test_memory_is_bounded(make_smtp_sink: MakeSink) -> None:
    sink = make_smtp_sink(max_messages=1)
    send(sink)
    with pytest.raises(smtplib.SMTPDataError, match="452"):
        send(sink)
    sink.clear()
    send(sink)
    sink = make_smtp_sink(max_total_size=3000)
    with pytest.raises(smtplib.SMTPDataError, match="452"):
        send(sink, letter(text="x" * 70 + "\n" + "y\n" * 2000))
    send(sink)  # what was refused is not counted
    assert len(sink.messages) == 1


# Waiting


def test_wait_for_returns_a_message_that_has_already_arrived(smtp_sink: SMTPSink) -> None:
    for number in range(3):
        send(smtp_sink, letter(f"Number {number}", to=f"Jo{number}@example.com"))
    assert smtp_sink.wait_for().subject == "Number 0"
    assert smtp_sink.wait_for(to="jo1@EXAMPLE.com").subject == "Number 1"
    assert smtp_sink.wait_for(to="*2@example.com").subject == "Number 2"
    assert smtp_sink.wait_for(subject="number 2").subject == "Number 2"
    assert smtp_sink.wait_for(to="*@example.com", subject="N*1").subject == "Number 1"


def test_wait_for_in_a_native_thread_and_in_a_greenlet(smtp_sink: SMTPSink) -> None:
    found: list[str] = []
    asking = threading.Barrier(3)

    def wait() -> None:
        asking.wait()
        found.append(smtp_sink.wait_for(to="jo@example.com", timeout=20).subject)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    asking.wait()
    greenlet = gevent.spawn(smtp_sink.wait_for, to="jo@example.com", timeout=20)
    ticks = gevent.spawn(gevent.sleep)  # the hub goes on while that greenlet waits
    ticks.join()
    assert not greenlet.dead
    send(smtp_sink, letter(to="another@example.com"))
    send(smtp_sink, letter("At last"))
    for thread in threads:
        thread.join(20)
    assert greenlet.get(timeout=20).subject == "At last"
    assert found == ["At last", "At last"]


def test_a_missing_message_is_an_error_that_lists_the_others(smtp_sink: SMTPSink) -> None:
    with pytest.raises(MessageNotReceived, match=r"No message arrived at all.\nConnections so far: 0"):
        smtp_sink.wait_for(timeout=0)
    with pytest.raises(MessageNotReceived):
        smtp_sink.wait_for(timeout=float("nan"))
    smtp_sink.refuse("RCPT", 550, matching="no@*")
    send(smtp_sink, letter("Hello"))
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(smtp_sink, letter(to="no@example.com"))
    for expected in (AssertionError, TimeoutError):
        with pytest.raises(expected) as raised:
            smtp_sink.wait_for(to="ann@example.com", subject="Bye", timeout=0.05)
    text = str(raised.value)
    assert text.startswith("no message to 'ann@example.com' and with subject 'Bye' arrived within 0.05 s\n")
    assert "  to jo@example.com: 'Hello'" in text
    assert "RCPT TO:<no@example.com>: 550" in text


# Refusing


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("CONNECT", smtplib.SMTPConnectError),
        ("EHLO", smtplib.SMTPHeloError),
        ("MAIL", smtplib.SMTPSenderRefused),
        ("RCPT", smtplib.SMTPRecipientsRefused),
        ("DATA", smtplib.SMTPDataError),
        ("END-OF-DATA", smtplib.SMTPDataError),
        ("end_of_data", smtplib.SMTPDataError),
    ],
)
def test_every_stage_can_be_refused_once(smtp_sink: SMTPSink, stage: str, error: type[Exception]) -> None:
    rule = smtp_sink.refuse(stage, 451, "4.2.0 not now", times=2 if stage == "EHLO" else 1)
    with pytest.raises(error, match="not now"):
        send(smtp_sink)
    assert smtp_sink.messages == []
    send(smtp_sink)
    assert len(smtp_sink.messages) == 1
    assert rule.hits == (2 if stage == "EHLO" else 1)


def test_a_refusal_matches_an_address(smtp_sink: SMTPSink) -> None:
    rule = smtp_sink.refuse("RCPT", 451, matching="*@later.test")
    with client(smtp_sink) as smtp:
        refused = smtp.sendmail("a@example.org", ["jo@LATER.test", "jo@example.com"], b"Subject: x\r\n\r\n")
        assert {address: code for address, (code, _) in refused.items()} == {"jo@LATER.test": 451}
        rule.cancel()
        assert smtp.sendmail("a@example.org", ["jo@later.test"], b"Subject: y\r\n\r\n") == {}
    assert [message.recipients for message in smtp_sink.messages] == [["jo@example.com"], ["jo@later.test"]]


def test_a_421_closes_the_connection(smtp_sink: SMTPSink) -> None:
    smtp_sink.refuse("MAIL", 421, times=1)
    with pytest.raises((smtplib.SMTPSenderRefused, smtplib.SMTPServerDisconnected)):
        send(smtp_sink)
    send(smtp_sink)


def test_a_reply_can_be_the_refusal(smtp_sink: SMTPSink) -> None:
    smtp_sink.refuse("MAIL", Reply(451, "4.7.1 later"), times=1)
    with pytest.raises(smtplib.SMTPSenderRefused) as refused:
        send(smtp_sink)
    assert (refused.value.smtp_code, refused.value.smtp_error) == (451, b"4.7.1 later")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("RPCT",), "stage: expected one of CONNECT, EHLO, .*, DATA, END-OF-DATA; got 'RPCT'"),
        (("RCPT", 250), "4xx or 5xx"),
        (("RCPT", 550, "no", {"times": 0}), "at least 1"),
        (("RCPT", "abc"), "code: expected a reply code, like 451, or a Reply; got 'abc'"),
        (("RCPT", 550, 3), "message: expected a str; got 3"),
        (("RCPT", Reply(250)), "4xx or 5xx"),
        (("RCPT", Reply(550), "no"), "expected a Reply or a message; got both"),
    ],
)
def test_refuse_checks_its_arguments(smtp_sink: SMTPSink, arguments: tuple[object, ...], match: str) -> None:
    *positional, last = arguments
    named = last if isinstance(last, dict) else {}
    if not named:
        positional.append(last)
    with pytest.raises((ValueError, TypeError), match=match):
        smtp_sink.refuse(*positional, **named)  # type: ignore[arg-type]


# TLS and AUTH


def test_starttls_with_a_certificate_of_its_own(make_smtp_sink: MakeSink) -> None:
    sink = make_smtp_sink(tls="starttls")
    sink.refuse("STARTTLS", 454, times=1)
    with client(sink) as smtp, pytest.raises(smtplib.SMTPResponseException, match="454"):
        smtp.starttls(context=sink.client_context())
    with smtplib.SMTP("localhost", sink.port, timeout=10) as smtp, pytest.raises(ssl.SSLCertVerificationError):
        smtp.starttls(context=ssl.create_default_context())
    with smtplib.SMTP("localhost", sink.port, timeout=10) as smtp:
        smtp.starttls(context=sink.client_context())
        smtp.send_message(letter())
    (message,) = sink.messages
    assert message.tls
    sink.stop()
    sink.start()  # as after an outage, with the same certificate
    with smtplib.SMTP("localhost", sink.port, timeout=10) as smtp:
        smtp.starttls(context=sink.client_context())


def test_the_certificate_is_removed_with_its_sink() -> None:
    sink = SMTPSink(tls="starttls")
    certificate = sink.ca_file
    assert certificate is not None
    assert certificate.exists()
    del sink
    gc.collect()
    assert not certificate.exists()


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_message_that_a_middleware_refuses_is_not_kept(make_smtp_sink: MakeSink, lmtp: bool) -> None:
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(451, "4.7.1 on second thoughts") if command.verb == "END-OF-DATA" else reply

    sink = make_smtp_sink(middleware=[refuse], lmtp=lmtp)
    with (smtplib.LMTP if lmtp else smtplib.SMTP)(sink.host, sink.port) as smtp:
        smtp.ehlo_or_helo_if_needed()
        smtp.mail("me@example.com")
        smtp.rcpt("jo@example.com")
        assert smtp.data("Subject: x\n\nhi\n")[0] == 451
    assert sink.messages == []
    assert sink._size == 0


def test_implicit_tls_and_users(make_smtp_sink: MakeSink) -> None:
    sink = make_smtp_sink(tls="implicit", users={"jo": "secret"})
    with smtplib.SMTP_SSL(sink.host, sink.port, timeout=10, context=sink.client_context()) as smtp:
        with pytest.raises(smtplib.SMTPSenderRefused, match="530"):
            smtp.send_message(letter())
        with pytest.raises(smtplib.SMTPAuthenticationError):
            smtp.login("jo", "wrong")
        smtp.login("jo", "secret")
        smtp.send_message(letter())
    assert sink.messages[0].username == "jo"
    with pytest.raises(RuntimeError, match="has no TLS"):
        make_smtp_sink().client_context()


@pytest.mark.parametrize("matching", [None, "j*"])
def test_auth_can_be_refused(make_smtp_sink: MakeSink, matching: str | None) -> None:
    sink = make_smtp_sink(users={"jo": "secret", "ann": "secret"})
    rule = sink.refuse("AUTH", 454, matching=matching)
    with client(sink) as smtp, pytest.raises(smtplib.SMTPAuthenticationError, match="454"):
        smtp.login("jo", "secret")
    if matching is None:
        rule.cancel()
    with client(sink) as smtp:
        smtp.login("ann", "secret")


# Its life


@pytest.mark.subprocess
@pytest.mark.parametrize("how", [forked.UNPATCHED, forked.PATCHED], ids=["unpatched", "patched"])
def test_without_pytest_it_is_a_context_manager(how: tuple[str, ...]) -> None:
    program = """
import smtplib, threading
from greensmtp.testing import SMTPSink

def send(recipient, subject):
    with smtplib.SMTP(sink.host, sink.port, timeout=10) as client:
        client.sendmail("a@example.org", [recipient], f"Subject: {subject}\\n\\nho\\n")

with SMTPSink() as sink:
    send("jo@example.com", "hi")
    sender = threading.Timer(0.05, send, ["ann@example.com", "later"])
    sender.start()
    print(sink.wait_for(to="ann@*").subject, len(sink.messages))
    sender.join()
print(len(sink.messages), repr(sink))
"""
    ran = forked.run(forked.python(program), how=how)
    assert (ran.stdout, ran.stderr) == ("later 2\n2 <SMTPSink stopped, 2 messages>\n", "")


@pytest.mark.subprocess
def test_pytest_finds_the_fixture_by_itself_and_imports_nothing_without_need(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import smtplib, sys

def test_nothing_is_imported():
    assert "pytest_greensmtp" in sys.modules
    assert not {"gevent", "greensmtp"} & sys.modules.keys()

def test_it(smtp_sink):
    with smtplib.SMTP(smtp_sink.host, smtp_sink.port, timeout=10) as client:
        client.sendmail("a@example.org", ["jo@example.com"], "Subject: hi\\n\\nho\\n")
    assert smtp_sink.wait_for(to="jo@example.com").text == "ho\\n"
    import gevent.monkey
    assert not gevent.monkey.saved

def test_options(make_smtp_sink):
    assert make_smtp_sink(hostname="other.example").server.hostname == "other.example"
"""
    )
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_it.py"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=tmp_path, env=clean, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


# What a test asks of a message


def message(raw: str | bytes) -> SinkMessage:
    data = raw.encode() if isinstance(raw, str) else raw
    return SinkMessage("a@example.org", ["jo@example.com"], data.replace(b"\n", b"\r\n"))


def test_links_come_from_text_and_html_without_duplicates() -> None:
    received = message(
        "Content-Type: multipart/alternative; boundary=x\n\n"
        "--x\nContent-Type: text/plain\n\n"
        "Go to https://example.com/confirm?token=a.b&x=1. (Or https://example.com/a_(b)!) <http://example.org>\n"
        "--x\nContent-Type: text/html\n\n"
        "<a href=\"https://example.com/confirm?token=a.b&amp;x=1\">this</a> <A HREF='https://example.com/html'>x</A>"
        '<a href="mailto:jo@example.com">m</a><a name=y>z</a>\n--x--\n'
    )
    assert received.links() == [
        "https://example.com/confirm?token=a.b&x=1",
        "https://example.com/a_(b)",
        "http://example.org",
        "https://example.com/html",
    ]


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("Your code is 123456.", ["123456"]),
        ("Your code: 123 456\nor 4711", ["123456", "4711"]),
        ("Code:123456, code 654321, (4711) <b>0815</b>", ["123456", "654321", "4711", "0815"]),
        ("123-456 and 123456", ["123456"]),
        ("G-654321 is your code", ["654321"]),
        ("Enter 7F3K9Q within 10 minutes", ["7F3K9Q"]),
        ("(c) 2026 Acme Inc.", []),
        ("Your PIN is 2026.", ["2026"]),
        ("On 2026-11-26 at 10:45:00 you paid $1234, 1,234.56 or 5000 %", ["5000"]),
        ("https://example.com/123456?t=654321 jo1234@example.com", []),
        ("call +49 1234 567890 or 123456789", []),
        ("version 1.2345.6, order #12345", []),
    ],
)
def test_codes_are_digits_that_stand_alone(text: str, codes: list[str]) -> None:
    assert message(f"Subject: x\n\n{text}\n").codes() == codes


def test_a_code_in_the_subject_or_in_html_alone() -> None:
    assert message("Subject: 4711 is your code\n\n\n").codes() == ["4711"]
    html = "<style>p{color:123456}</style><p>Your code</p><h1>987654</h1>"
    assert message(f"Content-Type: text/html\n\n{html}\n").codes() == ["987654"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"no header at all",
        b"Subject: \xff\xfe\nContent-Type: text/plain; charset=klingon\n\n\xff\n",
        b'Subject: =?utf-8?b?!!!?=\nContent-Type: text/html; charset="\xff"\n\n<a href=\'x\n',
        b"Content-Type: multipart/mixed\n\nno boundary\n",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Transfer-Encoding: base64\n\n@@@\n--x",
        b"Content-Type: message/rfc822\n\nSubject: inner\n\nbody\n",
        b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\nAAAA\n",
        b"Content-Disposition: attachment; filename*=klingon''%ff\nContent-Type: ;;;\n\n\x00\n",
        b'To: <\nFrom: @@"\nDate: never\nMessage-ID: <[\nSubject: x\n y\n\n',
    ],
)
def test_a_malformed_message_never_raises(raw: bytes) -> None:
    received = message(raw)
    for value in (received.subject, received.text, received.html, *received.headers.values()):
        value.encode()
    assert isinstance(received.links() + received.codes(), list)
    assert all(isinstance(each.content, bytes) for each in received.attachments)
    assert repr(received)


def test_a_utf8_header_is_read() -> None:
    assert message("Subject: Grüße\nX-A: 1\nx-a: 2\n\n").subject == "Grüße"
    assert message("X-A: 1\nx-a: 2\n\n").headers.get_all("X-a") == ["1", "2"]


def test_a_forwarded_message_is_an_attachment() -> None:
    outer = letter()
    outer.add_attachment(letter("Inner"))
    (attachment,) = message(outer.as_bytes()).attachments
    assert attachment.content_type == "message/rfc822"
    assert b"Subject: Inner" in attachment.content
