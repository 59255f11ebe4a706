"""ESMTP on the server: keywords of EHLO, parameters of extensions, enhanced status codes, LMTP."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Ack, Address, MessageStream, Session
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import collect_bodies

if TYPE_CHECKING:
    from tests.conftest import Certificate

USUAL = ["PIPELINING", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=1000"]


def offers(reply: str) -> list[str]:
    """Return the keywords of the reply to EHLO, with their parameters."""
    return [line[4:] for line in reply.split("\n")[1:]]


# What is on offer


@pytest.mark.parametrize(("limit", "size"), [(1000, "SIZE 1000"), (None, "SIZE 0")])
def test_ehlo_offers_what_there_is(smtp_server: MakeServer, limit: int | None, size: str) -> None:
    with dial(smtp_server(start=False, max_message_size=limit)) as peer:
        assert sorted(offers(peer.hello())) == sorted([*USUAL, size])


def test_helo_offers_nothing(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    with dial(server) as peer:
        assert "\n" not in peer.hello(verb="HELO")


@pytest.mark.parametrize("lmtp", [False, True])
def test_starttls_is_offered_with_a_key_and_not_inside_tls(
    smtp_server: MakeServer, certificate: Certificate, lmtp: bool
) -> None:
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    verb = "LHLO" if lmtp else "EHLO"
    with dial(smtp_server(start=False, lmtp=lmtp)) as without_key:
        assert "STARTTLS" not in offers(without_key.hello(verb=verb))
        without_key.line("STARTTLS")
        without_key.expect("502")
    with dial(smtp_server(start=False, lmtp=lmtp, **files)) as peer:
        assert "STARTTLS" in offers(peer.hello(verb=verb))
        peer.line("STARTTLS now")
        peer.expect("501")
        peer.line("STARTTLS")
        peer.expect("220 2.")
        peer.start_tls()
        peer.line(f"{verb} client.example")
        assert "STARTTLS" not in offers(peer.expect("250"))
        peer.line("STARTTLS")
        peer.expect("503")
    with dial(smtp_server(start=False, lmtp=lmtp, implicit_tls=True, **files)) as inside:
        inside.start_tls()
        assert "STARTTLS" not in offers(inside.hello(verb=verb))
        inside.line("STARTTLS")
        inside.expect("50")


def test_starttls_wants_a_greeting_first(smtp_server: MakeServer, certificate: Certificate) -> None:
    with dial(smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)) as peer:
        peer.expect("220")
        peer.line("STARTTLS")
        peer.expect("503")


# Parameters of MAIL and RCPT


@pytest.mark.parametrize(
    ("parameters", "reply"),
    [
        ("SIZE=1000", "250"),
        ("size=0", "250"),
        ("SIZE=1001", "552 5.3.4"),
        ("SIZE=99999999999999999999", "552 5.3.4"),
        ("SIZE=999999999999999999999", "501"),
        ("SIZE", "501"),
        ("SIZE=", "501"),
        ("SIZE=-1", "501"),
        ("SIZE=1k", "501"),
        ("SIZE=\u0661", "501"),
        ("BODY=7BIT", "250"),
        ("BODY=8BITMIME", "250"),
        ("BODY=BINARYMIME", "250"),
        ("body=8bitmime", "250"),
        ("BODY=9BIT", "501"),
        ("BODY", "501"),
        ("SMTPUTF8", "250"),
        ("smtputf8 SIZE=1 BODY=8BITMIME", "250"),
        ("SMTPUTF8=yes", "501"),
        ("SIZE=1 SIZE=1", "501"),
        ("COLOUR=red", "555 5.5.4"),
        ("RET=FULL", "555 5.5.4"),
        ("=x", "501"),
    ],
)
def test_mails_parameters(smtp_server: MakeServer, parameters: str, reply: str) -> None:
    with dial(smtp_server(start=False, max_message_size=1000)) as peer:
        peer.hello()
        peer.line(f"MAIL FROM:<a@example.org> {parameters}", "RSET")
        peer.expect(reply, "250")


@pytest.mark.parametrize("parameters", ["SIZE=1", "BODY=7BIT", "SMTPUTF8", "NOTIFY=NEVER"])
def test_rcpt_has_no_parameters_of_its_own(smtp_server: MakeServer, parameters: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", f"RCPT TO:<b@example.com> {parameters}")
        peer.expect("250", "555")


@pytest.mark.parametrize("parameters", ["SIZE=1", "BODY=8BITMIME", "SMTPUTF8", "COLOUR=red"])
def test_after_helo_there_are_no_parameters(smtp_server: MakeServer, parameters: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello(verb="HELO")
        peer.line(f"MAIL FROM:<a@example.org> {parameters}", "MAIL FROM:<a@example.org>")
        peer.expect("555", "250")


# SMTPUTF8


def test_addresses_beyond_ascii_need_smtputf8(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.converse("""
            C: MAIL FROM:<jos\u00e9@example.org>
            S: 553 5.6.7
            C: MAIL FROM:<a@example.org>
            S: 250
            C: RCPT TO:<b\u00fccher@example.com>
            S: 553 5.6.7
            C: RCPT TO:<b@b\u00fccher.example>
            S: 553 5.6.7
        """)


def test_with_smtputf8_addresses_arrive_as_they_are(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []

    @server.on("to")
    def look(session: Session, address: Address, ack: Ack) -> None:
        seen.append((session.from_, address, address.local_part, address.domain, session.smtputf8))
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<jos\u00e9@example.org> SMTPUTF8", "RCPT TO:<\u7528\u6237@b\u00fccher.example>")
        peer.expect("250", "250")
    whole = "\u7528\u6237@b\u00fccher.example"
    assert seen == [("jos\u00e9@example.org", whole, "\u7528\u6237", "b\u00fccher.example", True)]


def test_8bitmime_bodies_are_not_touched(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    body = "Subject: gr\u00fc\u00dfe\r\n\r\n".encode("latin-1") + bytes(range(128, 256)) + b"\r\n"
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(body, sender="a@example.org> BODY=8BITMIME").startswith("250")
    assert bodies == [body]


# PIPELINING


def test_a_batch_is_answered_in_order_and_in_one_piece(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "XYZZY", "RSET", "NOOP")
        answer = peer.socket.recv(65536)
        assert [line[:3] for line in answer.split(b"\r\n")] == [b"250", b"250", b"500", b"250", b"250", b""]


# Enhanced status codes


def provoke_every_kind(peer: Peer) -> list[str]:
    """Send all sorts of commands; return the replies except those to the connection and to hello commands."""
    peer.expect("220")
    replies: list[str] = []
    before = ["MAIL FROM:<a@example.org>", "NOOP", "RSET", "HELP", "VRFY", "XYZZY", "TURN", "DATA"]
    after = ["VRFY jo", "EXPN staff", "HELP", "MAIL x", "MAIL FROM:<a@>", "MAIL FROM:<a@example.org> X=1"]
    within = ["MAIL FROM:<a@example.org>", "MAIL FROM:<again@example.org>", "RCPT TO:<no@example.com>", "DATA"]
    body = ["RCPT TO:<b@example.com>", "DATA", "text\r\n.", "BDAT", "BDAT 0", "NOOP " + "x" * 600, "QUIT"]
    for line in before:
        peer.line(line)
        replies.append(peer.reply())
    peer.line("HELO client.example", "EHLO client.example")
    peer.expect("250", "250")
    for line in (*after, *within, *body):
        peer.line(line)
        replies.append(peer.reply())
    return replies


def test_every_line_has_its_enhanced_code(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    collect_bodies(server)

    @server.on("to")
    def two_lines(session: Session, address: Address, ack: Ack) -> None:
        if address.local_part == "no":
            ack.reject(550, ["not", "here"])
        else:
            ack.accept(250, "fine\nindeed")

    with dial(server) as peer:
        replies = provoke_every_kind(peer)
    lines = [line for reply in replies for line in reply.split("\n") if not line.startswith("354")]
    assert len(lines) > len(replies)  # some had several
    for line in lines:
        assert re.match(r"([245])\d\d[ -]\1\.\d{1,3}\.\d{1,3}( |$)", line), line


def test_banner_and_greetings_have_none(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("greeting", lambda session, greeting, ack: ack.accept(250, "welcome"))
    with dial(server) as peer:
        replies = [peer.reply()]
        peer.line("HELO client.example", "EHLO client.example")
        replies += [peer.reply(), peer.reply()]
    for line in "\n".join(replies).split("\n"):
        assert not re.match(r"\d{3}[ -]\d\.\d", line), line


# LMTP (RFC 2033)


def test_lmtp_says_so_and_has_lhlo_alone(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, lmtp=True)) as peer:
        peer.expect("220 mx.example.com LMTP")
        peer.line("EHLO client.example", "HELO client.example", "MAIL FROM:<a@example.org>", "LHLO client.example")
        peer.expect("500", "500", "503")
        assert set(USUAL) <= set(offers(peer.expect("250")))


def test_smtp_has_no_lhlo(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220 mx.example.com ESMTP")
        peer.line("LHLO client.example", "MAIL FROM:<a@example.org>")
        peer.expect("500", "503")


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_lmtp_answers_once_for_each_accepted_recipient(smtp_server: MakeServer, how: str) -> None:
    server = smtp_server(start=False, lmtp=True)
    bodies = collect_bodies(server)

    @server.on("to")
    def some(session: Session, address: Address, ack: Ack) -> None:
        (ack.reject if address.local_part == "nobody" else ack.accept)()

    @server.on("received")
    def each(session: Session, recipient: Address, ack: Ack) -> None:
        if recipient.local_part == "full":
            ack.reject(452, "4.2.2 full")
        else:
            ack.accept(250, f"2.1.5 {recipient.local_part}")

    with dial(server) as peer:
        peer.hello(verb="LHLO")
        for _ in range(2):
            peer.line("MAIL FROM:<a@example.org>", *(f"RCPT TO:<{n}@example.com>" for n in ("one", "nobody", "full")))
            peer.expect("250", "250", "550", "250")
            if how == "DATA":
                peer.line("DATA", "x", ".")
                peer.expect("354")
            else:
                peer.send("BDAT 1\r\nxBDAT 2 LAST\r\n\r\n")
                peer.expect("250 2.0.0 1 octets")
            peer.expect("250 2.1.5 one", "452 4.2.2 full")
        peer.line("NOOP")
        peer.expect("250 2.0.0")
    assert bodies == [b"x\r\n"] * 2


@pytest.mark.parametrize(("end", "reply"), [("too large", "552"), ("aborted", "554"), ("raised", "451")])
def test_lmtp_answers_for_each_when_the_message_failed_too(smtp_server: MakeServer, end: str, reply: str) -> None:
    server = smtp_server(start=False, lmtp=True, max_message_size=100)

    @server.on("message")
    def fail(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        if end == "aborted":
            stream.abort()
        if end == "raised":
            raise LookupError

    with dial(server) as peer:
        peer.hello(verb="LHLO")
        body = b"x" * (200 if end == "too large" else 10)
        assert peer.deliver(body, to=["a@example.com", "b@example.com"]).startswith(reply)
        peer.expect(reply)
        peer.line("NOOP")
        peer.expect("250 2.0.0")


def test_lmtp_answers_once_when_data_is_refused(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, lmtp=True)) as peer:
        peer.hello(verb="LHLO")
        peer.line("MAIL FROM:<a@example.org>", "DATA")
        peer.expect("250", "503")  # RFC 2033 section 4.2: without an accepted recipient
        peer.line("RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "DATA", "NOOP")
        peer.expect("250", "250", "554", "250")


# How a Received field names it (RFC 3848, RFC 6531)


@pytest.mark.parametrize(
    ("protocol", "verb", "mail"),
    [
        ("SMTP", "HELO", ""),
        ("ESMTP", "EHLO", ""),
        ("ESMTPS", "EHLO", ""),
        ("UTF8SMTP", "EHLO", " SMTPUTF8"),
        ("UTF8SMTPS", "EHLO", " SMTPUTF8"),
        ("LMTP", "LHLO", ""),
        ("UTF8LMTPS", "LHLO", " SMTPUTF8"),
    ],
)
def test_the_protocol_has_a_name(
    smtp_server: MakeServer, certificate: Certificate, protocol: str, verb: str, mail: str
) -> None:
    tls = protocol.endswith("PS")
    files = {"certfile": certificate.certfile, "keyfile": certificate.keyfile} if tls else {}
    server = smtp_server(start=False, lmtp=verb == "LHLO", **files)
    names: list[str] = []
    collect_bodies(server)

    def note(session: Session, ack: Ack, recipient: Any = None) -> None:
        names.append(session.protocol)
        ack.accept()

    server.on("received", note)
    with dial(server) as peer:
        peer.hello(verb=verb)
        if tls:
            peer.line("STARTTLS")
            peer.expect("220")
            peer.start_tls()
            peer.line(f"{verb} client.example")
            peer.expect("250")
        assert peer.deliver(sender=f"a@example.org>{mail}").startswith("250")
    assert names == [protocol]
