"""Faults that SMTP servers commonly have, shown to be absent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from gevent import spawn
from gevent.event import Event

from greensmtp import Ack, Address, MessageStream, Session
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import Deliveries

if TYPE_CHECKING:
    from tests.conftest import Certificate


def deliver_raw(peer: Peer, wire: bytes) -> None:
    """Send an envelope and DATA, then these bytes unchanged."""
    peer.envelope()
    peer.line("DATA")
    peer.expect("354")
    peer.send(wire)


# State that outlives its transaction


def test_the_envelope_is_cleared_after_data(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    mails = Deliveries(server).mail
    with dial(server) as peer:
        peer.hello()
        peer.deliver(b"first\r\n", sender="a@example.org", to="first@example.com")
        peer.line("DATA")
        peer.expect("503")
        peer.deliver(b"second\r\n", sender="b@example.org", to="second@example.com")
    assert mails == [
        ("a@example.org", ["first@example.com"], b"first\r\n"),
        ("b@example.org", ["second@example.com"], b"second\r\n"),
    ]


def test_rset_leaves_nothing_behind(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []
    server.on("reset", lambda session: seen.append((session.from_, dict(session.from_ext), session.to, session.to_ext)))
    with dial(server) as peer:
        peer.hello()
        peer.envelope("a@example.org> SIZE=10 BODY=8BITMIME")
        peer.converse("""
            C: RSET
            S: 250
            C: RCPT TO:<b@example.com>
            S: 503
        """)
    assert seen == [(None, {}, [], [])]


def test_starttls_forgets_greeting_and_envelope(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    seen: list[Any] = []
    server.on("tls", lambda session: seen.append((session.from_, session.to, session.greeting, session.hostname)))
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("RCPT TO:<b@example.com>", "MAIL FROM:<a@example.org>")
        peer.expect("503", "503")
    assert seen == [(None, [], None, None)]


def test_starttls_is_refused_when_tls_is_up(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    with dial(server) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example", "STARTTLS", "NOOP")
        peer.expect("250", "503", "250")


# Lines that arrive while an ack is pending


def test_lines_that_arrive_while_an_ack_is_pending_are_not_lost(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    mails = Deliveries(server).mail
    pending: list[Ack] = []
    asked = Event()

    @server.on("from")
    def later(session: Session, address: Address, ack: Ack) -> None:
        pending.append(ack)
        asked.set()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        assert asked.wait(5)
        peer.line("RCPT TO:<b@example.com>")
        peer.let_it_read()
        peer.line("NOOP", "DATA")
        peer.expect_nothing()
        pending.pop().accept(250, "2.1.0 at last")
        peer.expect("250 2.1.0 at last", "250 2.1.5", "250 2.0.0", "354")
        peer.line("RSET", "QUIT", ".")
        peer.expect("250")
    assert mails == [("a@example.org", ["b@example.com"], b"RSET\r\nQUIT\r\n")]


def test_with_pipelining_no_command_vanishes_and_no_body_runs(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    mails = Deliveries(server).mail
    with dial(server) as peer:
        peer.hello()
        peer.line(
            *("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "DATA"),
            *("RSET", "QUIT", "MAIL FROM:<evil@example.org>", ".", "NOOP", "QUIT"),
        )
        peer.expect("250 2.1.0", "250 2.1.5", "250 2.1.5", "354", "250", "250", "221")
        peer.expect_end()
    body = b"RSET\r\nQUIT\r\nMAIL FROM:<evil@example.org>\r\n"
    assert mails == [("a@example.org", ["b@example.com", "c@example.com"], body)]


# Commands that are refused or taken wrongly


def test_the_null_sender_is_a_sender(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    mails = Deliveries(server).mail
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"bounce\r\n", sender="").startswith("250")
    assert mails == [("", ["recipient@example.com"], b"bounce\r\n")]


def test_rcpt_before_mail_is_out_of_sequence(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line("RCPT TO:<b@example.com>")
        peer.expect("503")


@pytest.mark.parametrize(
    ("line", "code"),
    [("EHLO other.example", "250"), ("NOOP", "250"), ("VRFY jo", "252"), ("EXPN staff", "252"), ("HELP", "214")],
)
def test_what_every_server_knows_is_known(smtp_server: MakeServer, line: str, code: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line(line)
        peer.expect(code)


def test_a_second_ehlo_ends_the_transaction(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.envelope()
        peer.line("EHLO client.example", "RCPT TO:<b@example.com>", "MAIL FROM:<a@example.org>")
        peer.expect("250", "503", "250")


@pytest.mark.parametrize(
    ("path", "local_part", "domain"),
    [
        (r'"john doe"@example.com', "john doe", "example.com"),
        (r'"a@b> c"@example.com', "a@b> c", "example.com"),
        (r'"say \"hi\""@example.com', 'say "hi"', "example.com"),
    ],
)
def test_a_quoted_local_part_is_one_part(smtp_server: MakeServer, path: str, local_part: str, domain: str) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []

    @server.on("to")
    def look(session: Session, address: Address, ack: Ack) -> None:
        seen.append((str(address), address.local_part, address.domain, dict(address.parameters)))
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", f"RCPT TO:<{path}>")
        peer.expect("250", "250")
    assert seen == [(path, local_part, domain, {})]


# Bodies


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r.\n"]
)
def test_a_dot_that_is_not_on_a_line_of_its_own_ends_nothing(smtp_server: MakeServer, end: bytes) -> None:
    server = smtp_server(start=False, bare_newlines="keep")
    mails = Deliveries(server).mail
    smuggled = b"one" + end + b"MAIL FROM:<evil@example.org>\r\ntwo\r\n"
    with dial(server) as peer:
        peer.hello()
        deliver_raw(peer, smuggled + b".\r\nNOOP\r\n")
        peer.expect("250 2.0.0 Ok: ", "250 2.0.0")
    (mail,) = mails
    assert b"MAIL FROM:<evil@example.org>\r\ntwo\r\n" in mail[2]


def test_octets_are_not_decoded(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    mails = Deliveries(server).mail
    every = bytes(octet for octet in range(256) if octet not in b"\r\n")
    with dial(server) as peer:
        peer.hello()
        peer.deliver(every * 3 + b"\r\n")
    assert mails[0][2] == every * 3 + b"\r\n"


@pytest.mark.parametrize(
    ("wire", "body"), [(b"..\r\n", b".\r\n"), (b".x\r\n", b"x\r\n"), (b"...\r\n", b"..\r\n"), (b"a.\r\n", b"a.\r\n")]
)
@pytest.mark.parametrize("before", [b"", b"line\r\n"])
def test_whatever_follows_a_stuffed_dot_is_unstuffed(
    smtp_server: MakeServer, before: bytes, wire: bytes, body: bytes
) -> None:
    server = smtp_server(start=False)
    mails = Deliveries(server).mail
    with dial(server) as peer:
        peer.hello()
        deliver_raw(peer, before + wire + b".\r\n")
        peer.expect("250")
    assert mails[0][2] == before + body


# Acks


def test_abort_does_not_answer_250(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def abort(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read(3)
        stream.abort()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("554 ")


@pytest.mark.parametrize("arguments", [("accept", "text"), ("accept", 550), ("reject", "text"), ("reject", 250)])
def test_an_ack_does_not_guess(smtp_server: MakeServer, arguments: tuple[str, Any]) -> None:
    server = smtp_server(start=False)
    raised: list[Exception] = []

    @server.on("to")
    def decide(session: Session, address: Address, ack: Ack) -> None:
        call, code = arguments
        try:
            getattr(ack, call)(code)
        except ValueError as error:
            raised.append(error)
            ack.reject(450, "4.2.1 later")

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("250", "450 4.2.1 later")
    assert repr(arguments[1]) in str(raised[0])


def test_a_double_ack_is_one_reply(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    for _ in range(2):
        server.on("to", lambda session, address, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "QUIT")
        peer.expect("250", "451", "221")
        peer.expect_end()


def test_a_forgotten_ack_does_not_hang(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, ack_timeout=3600)
    server.on("to", lambda session, address, ack: None)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect("250", "451", "250")


# STARTTLS on offer


def test_starttls_is_not_offered_without_a_key(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        assert "STARTTLS" not in peer.hello()
        peer.line("STARTTLS")
        peer.expect("502")


def test_starttls_is_offered_once(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    with dial(server) as peer:
        assert "STARTTLS" in peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example")
        assert "STARTTLS" not in peer.expect("250")


@pytest.mark.parametrize("arguments", [(), (250, "welcome")])
def test_a_greeting_listener_takes_nothing_off_the_offer(
    smtp_server: MakeServer, certificate: Certificate, arguments: tuple[Any, ...]
) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    server.on("greeting", lambda session, greeting, ack: ack.accept(*arguments))
    with dial(server) as peer:
        offer = peer.hello()
    assert "250-PIPELINING" in offer
    assert "STARTTLS" in offer


# Limits


def test_64_kib_of_newlines_are_as_many_errors(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, max_errors=40_000, max_idle_commands=40_000)) as peer:
        peer.hello()
        peer.send(b"\r\n" * 32 * 1024 + b"NOOP\r\n")
        for _ in range(32 * 1024):
            assert peer.reply().startswith("500")
        peer.expect("250")


def test_lines_have_a_limit(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line("NOOP " + "x" * 100_000, "NOOP")
        peer.expect("500", "250")


def test_recipients_and_messages_have_a_limit(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_recipients=1, max_message_size=100)
    Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("RCPT TO:<one.too.many@example.com>", "RSET")
        peer.expect("452", "250")
        assert peer.deliver(b"x" * 101).startswith("552 5.3.4")


@pytest.mark.usefixtures("clock")
def test_waiting_has_a_limit(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, command_timeout=0.3)) as peer:
        peer.hello()
        peer.expect("421 4.4.2")
        peer.expect_end()


@pytest.mark.usefixtures("clock")
def test_a_peer_that_does_not_read_is_not_written_to_for_ever(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, command_timeout=0.3, max_idle_commands=10**9)
    gone = Event()
    reasons: list[str] = []

    @server.on("disconnect")
    def over(session: Session, reason: str) -> None:
        reasons.append(reason)
        gone.set()

    with dial(server) as peer:
        peer.hello()
        # The client does not take the replies, so the server takes no more commands.
        flooding = spawn(peer.socket.sendall, b"HELP\r\n" * 1_000_000)
        assert gone.wait(5)
        assert not flooding.successful()
        flooding.kill()
    assert reasons == ["timeout"]
