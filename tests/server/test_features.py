"""The features of the server, one by one: signals, acks, replies, TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import socket
from gevent.server import StreamServer

from greensmtp import Ack, Address, Command, MessageStream, Session, SMTPServer
from greensmtp.protocol.command import HelloCommand
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate

# Listening


def listening_socket() -> Any:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@pytest.mark.parametrize("listener", [("127.0.0.1", 0), "127.0.0.1:0", listening_socket])
def test_the_server_listens_as_gevents_do(smtp_server: MakeServer, listener: Any) -> None:
    server = smtp_server(listener=listener() if callable(listener) else listener)
    assert isinstance(server, StreamServer)
    with dial(server) as peer:
        peer.converse("""
            S: 220
            C: QUIT
            S: 221
            S: END
        """)


def test_the_server_listens_on_a_unix_path_too(smtp_server: MakeServer, tmp_path: Path) -> None:
    server = smtp_server(listener=str(tmp_path / "mail"))
    with dial(server) as peer:
        peer.hello()


def test_a_with_block_starts_and_stops_it(smtp_server: MakeServer) -> None:
    with smtp_server(start=False) as server:
        assert server.started
        with dial(server) as peer:
            peer.hello()
    assert not server.started
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=5)


def test_the_hostname_is_in_the_banner(smtp_server: MakeServer) -> None:
    with dial(smtp_server(hostname="beep.example", start=False)) as peer:
        peer.expect("220 beep.example ")


def test_a_server_without_a_hostname_has_one_all_the_same() -> None:
    server = SMTPServer(("127.0.0.1", 0))
    assert server.hostname
    with dial(server) as peer:
        peer.expect(f"220 {server.hostname} ")


# Connections


def test_connect_is_told_of_every_connection(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    sessions: list[Session] = []

    @server.on("connect")
    def remember(session: Session, ack: Ack) -> None:
        sessions.append(session)
        ack.accept()

    with dial(server) as first, dial(server) as second:
        first.expect("220")
        second.expect("220")
    assert len(set(sessions)) == 2


def test_session_on_connects_for_that_connection_alone(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    said: list[str] = []

    @server.on("connect")
    def first_only(session: Session, ack: Ack) -> None:
        if not said:
            said.append("connected")
            session.on("quit", lambda session: said.append("quit"))
        ack.accept()

    for _ in range(2):
        with dial(server) as peer:
            peer.converse("""
                S: 220
                C: QUIT
                S: 221
                S: END
            """)
    assert said == ["connected", "quit"]


# The command event


def test_command_fires_for_every_verb_and_the_default_action_follows(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    verbs: list[str] = []
    server.on("command", lambda session, command, ack: verbs.append(f"{command.verb}|{command.argument}"))
    with dial(server) as peer:
        peer.converse("""
            S: 220
            C: ehlo client.example
            S: 250
            C: mail from:<a@example.org>
            S: 250
            C: Xyzzy now
            S: 500
            C: quit
            S: 221
            S: END
        """)
    assert verbs == ["EHLO|client.example", "MAIL|from:<a@example.org>", "XYZZY|now", "QUIT|"]


@pytest.mark.parametrize("code", [252, "252"])
def test_deciding_commands_ack_prevents_the_default_action(smtp_server: MakeServer, code: Any) -> None:
    server = smtp_server(start=False)

    @server.on("command")
    def override(session: Session, command: Command, ack: Ack) -> None:
        if command.verb in ("MAIL", "XYZZY", "QUIT"):
            ack.replace(code, ["no", "default"])

    with dial(server) as peer:
        peer.hello()
        for line in ("MAIL FROM:<a@example.org>", "XYZZY", "QUIT"):
            peer.line(line)
            assert peer.reply() == "252-2.5.2 no\n252 2.5.2 default"
        peer.line("RCPT TO:<b@example.org>")
        peer.expect("503")  # MAIL had no effect, and QUIT did not hang up


# The greeting event


@pytest.mark.parametrize("verb", ["HELO", "EHLO", "LHLO"])
def test_greeting_names_the_verb_and_the_client(smtp_server: MakeServer, verb: str) -> None:
    server = smtp_server(start=False, lmtp=verb == "LHLO")
    seen: list[tuple[str, str, str | None]] = []
    sessions: list[Session] = []

    @server.on("greeting")
    def note(session: Session, greeting: HelloCommand, ack: Ack) -> None:
        seen.append((greeting.verb, greeting.hostname, session.greeting))
        sessions.append(session)
        ack.accept()

    with dial(server) as peer:
        peer.expect("220")
        peer.line(f"{verb.lower()} client.example")
        peer.expect("250")
        assert seen == [(verb, "client.example", None)]  # it takes effect when it is accepted
        assert (sessions[0].greeting, sessions[0].hostname) == (verb.lower(), "client.example")


def test_a_rejected_greeting_is_no_greeting(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("greeting", lambda session, greeting, ack: ack.reject(550, "go away"))
    with dial(server) as peer:
        peer.converse("""
            S: 220
            C: EHLO client.example
            S: 550 go away
            C: MAIL FROM:<a@example.org>
            S: 503
        """)


# from, to, message, received


def test_from_to_message_and_received_carry_a_mail(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        seen.append(("from", address, address.local_part, address.domain, dict(address.parameters)))
        ack.accept()

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        seen.append(("to", address))
        ack.accept()

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        seen.append(("message", session.from_, list(session.to), stream.read()))

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        seen.append(("received", session.from_, list(session.to)))
        ack.accept(250, "2.6.0 got it")

    with dial(server) as peer:
        peer.hello()
        peer.envelope("jo@example.org> SIZE=10", ["beep@example.com", "boop@example.com"])
        peer.converse("""
            C: DATA
            S: 354
            C: Beep boop.
            C: I am a computer.
            C: .
            S: 250 2.6.0 got it
        """)
    both = ["beep@example.com", "boop@example.com"]
    assert seen == [
        ("from", "jo@example.org", "jo", "example.org", {"SIZE": "10"}),
        ("to", both[0]),
        ("to", both[1]),
        ("message", "jo@example.org", both, b"Beep boop.\r\nI am a computer.\r\n"),
        ("received", "jo@example.org", both),
    ]


def test_abort_drains_and_answers_its_own_reply(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.abort(554, "5.7.1 not that")

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"a\r\n" * 1000) == "554 5.7.1 not that"
        peer.line("NOOP")
        peer.expect("250")
    assert not received


# reset, quit, tls


def test_reset_quit_and_tls_are_told(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    seen: list[Any] = []
    server.on("reset", lambda session: seen.append("reset"))
    server.on("quit", lambda session: seen.append("quit"))
    server.on("tls", lambda session: seen.append(("tls", session.tls)))
    with dial(server) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.converse("""
            C: RSET
            S: 250
            C: QUIT
            S: 221
            S: END
        """)
    assert seen == [("tls", True), "reset", "quit"]


# What a session knows


def test_the_session_knows_its_peer_and_its_transaction(smtp_server: MakeServer) -> None:
    server = smtp_server()
    facts: list[Any] = []

    @server.on("received")
    def look(session: Session, ack: Ack) -> None:
        facts.append((session.from_, dict(session.from_ext)))
        facts.append((list(session.to), list(map(dict, session.to_ext))))
        facts.append((session.greeting, session.hostname))
        facts.append((session.peer, session.socket.getpeername(), session.peer_host))
        ack.accept()

    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.deliver(sender="a@example.org> SIZE=20 BODY=8BITMIME", to=["b@example.com", "c@example.com"])
        address = peer.socket.getsockname()
    assert facts == [
        ("a@example.org", {"SIZE": "20", "BODY": "8BITMIME"}),
        (["b@example.com", "c@example.com"], [{}, {}]),
        ("ehlo", "client.example"),
        (address, address, "127.0.0.1"),
    ]


# Acks


def test_without_listeners_all_is_accepted_but_the_message(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA", "NOOP")
        peer.expect("554", "250")  # and what follows is commands


ENVELOPE = {
    "connect": [],
    "greeting": ["EHLO client.example"],
    "from": ["EHLO client.example", "MAIL FROM:<a@example.org>"],
    "to": ["EHLO client.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>"],
    "message": ["EHLO client.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA"],
}


@pytest.mark.parametrize(
    ("name", "accepted", "rejected"),
    [
        ("connect", "220", "554"),
        ("greeting", "250", "550"),
        ("from", "250", "550"),
        ("to", "250", "550"),
        ("message", "354", "550"),
    ],
)
def test_accept_and_reject_have_defaults(smtp_server: MakeServer, name: Any, accepted: str, rejected: str) -> None:
    for call, code in (("accept", accepted), ("reject", rejected)):
        server = smtp_server(start=False)
        server.on(name, lambda session, call=call, **fields: getattr(fields["ack"], call)())
        with dial(server) as peer:
            last = peer.reply()
            for line in ENVELOPE[name]:
                peer.line(line)
                last = peer.reply()
            assert last.startswith(code), last


@pytest.mark.parametrize("verdict", [("accept", "250"), ("reject", "550")])
def test_received_has_defaults_too(smtp_server: MakeServer, verdict: tuple[str, str]) -> None:
    call, code = verdict
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack: getattr(ack, call)())
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith(code)


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        (["one", "two"], ["250-2.1.0 one", "250 2.1.0 two"]),
        ("one\ntwo\nthree", ["250-2.1.0 one", "250-2.1.0 two", "250 2.1.0 three"]),
        ("one\r\ntwo", ["250-2.1.0 one", "250 2.1.0 two"]),
    ],
)
def test_lists_and_newlines_become_lines(smtp_server: MakeServer, message: Any, lines: list[str]) -> None:
    server = smtp_server(start=False)
    texts = message if isinstance(message, str) else list(message)
    if isinstance(texts, str):
        texts = f"2.1.0 {texts}"
    else:
        texts[0] = f"2.1.0 {texts[0]}"
    server.on("from", lambda session, address, ack: ack.accept(250, texts))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        assert peer.reply().split("\n") == lines


def test_an_empty_text_leaves_no_trailing_space(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("greeting", lambda session, greeting, ack: ack.accept(250, ""))
    server.on("from", lambda session, address, ack: ack.accept(250, ""))
    with dial(server) as peer:
        peer.expect("220")
        peer.line("HELO client.example", "MAIL FROM:<a@example.org>", "QUIT")
        for line in peer.rest().decode().splitlines():
            assert line == line.rstrip()


# State


def test_a_rejected_command_leaves_the_state_untouched(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    sessions: list[Session] = []

    @server.on("connect")
    def remember(session: Session, ack: Ack) -> None:
        sessions.append(session)
        ack.accept()

    @server.on("from")
    def no_spam(session: Session, address: Address, ack: Ack) -> None:
        (ack.reject if address.domain == "spam.example" else ack.accept)()

    @server.on("to")
    def no_root(session: Session, address: Address, ack: Ack) -> None:
        (ack.reject if address.local_part == "root" else ack.accept)()

    with dial(server) as peer:
        peer.hello()
        (session,) = sessions
        peer.line("MAIL FROM:<x@spam.example>")
        peer.expect("550")
        assert session.from_ is None
        peer.envelope("a@example.org", "b@example.com")
        assert session.to == ["b@example.com"]
        peer.line("RCPT TO:<root@example.com>")
        peer.expect("550")
        assert session.to == ["b@example.com"]
        peer.line("RCPT TO:<c@example.com>")
        peer.expect("250")
        assert session.to == ["b@example.com", "c@example.com"]


# Well-formed replies, and the order of commands


def test_the_banner_names_the_server_and_helos_reply_the_client(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220 mx.example.com ")
        peer.line("HELO client.example")
        assert "client.example" in peer.expect("250 mx.example.com")


@pytest.mark.parametrize(
    "name",
    [b"[192.0.2.1]", b"250-evil", b"%s%n{0}", b"x" * 500, b"caf\xc3\xa9.example", b"\xff\xfe", b"a\rb", b"a\x00b", b""],
)
@pytest.mark.parametrize("verb", [b"HELO", b"EHLO"])
def test_the_reply_is_well_formed_whatever_the_clients_name(smtp_server: MakeServer, verb: bytes, name: bytes) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.send(verb + b" " + name + b"\r\n")
        reply = peer.reply()  # it is ASCII, and one code throughout, or this raises
        assert reply[:3] in ("250", "500", "501")
        assert all(len(line) <= 510 for line in reply.splitlines())
        peer.line("NOOP")
        peer.expect("250")


def test_quit_and_rset_are_allowed_before_a_greeting(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.converse("""
            S: 220
            C: RSET
            S: 250
            C: QUIT
            S: 221
            S: END
        """)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("MAIL FROM:<a@example.org>", "503"),  # before a greeting
        ("RCPT TO:<a@example.org>", "503"),
        ("DATA", "503"),
        ("XYZZY", "500"),
        ("TURN", "502"),
        ("AUTH PLAIN", "502"),
        ("EHLO", "501"),
        ("MAIL a@example.org", "501"),
        ("RCPT FROM:<a@example.org>", "501"),
    ],
)
def test_each_mistake_has_its_code(smtp_server: MakeServer, line: str, code: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.line(line)
        peer.expect(f"{code} 5.5.")


# TLS


def test_starttls_with_a_key_and_a_certificate(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)
    context = ssl.create_default_context(cafile=str(certificate.authority))
    with dial(server) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls(context, "mx.example.com")
        peer.line("EHLO client.example")
        peer.expect("250")


@pytest.mark.parametrize("given", ["files", "context"])
def test_tls_from_the_start(smtp_server: MakeServer, certificate: Certificate, given: str) -> None:
    options: dict[str, Any] = {"certfile": certificate.certfile, "keyfile": certificate.keyfile}
    if given == "context":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certfile, certificate.keyfile)
        options = {"ssl_context": context}
    with dial(smtp_server(implicit_tls=True, **options)) as peer:
        peer.start_tls(ssl.create_default_context(cafile=str(certificate.authority)), "mx.example.com")
        assert "STARTTLS" not in peer.hello()
