"""VRFY, EXPN and ETRN as signals, HELP for each verb, NOOP with an argument."""

from __future__ import annotations

from typing import Any

import pytest

from greensmtp import Ack, Command, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Auth
from greensmtp.protocol.command import LookupCommand, QueueCommand
from greensmtp.protocol.verb_arguments import QueueRequest
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

# VRFY and EXPN


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("verb", ["VRFY", "EXPN"])
def test_without_a_handler_a_lookup_is_252_at_any_time(smtp_server: MakeServer, verb: str, lmtp: bool) -> None:
    with dial(smtp_server(start=False, lmtp=lmtp)) as peer:
        peer.expect("220")
        peer.line(f"{verb} jo")
        peer.expect("252 2.5.2")
        peer.line("LHLO client.example" if lmtp else "EHLO client.example", f"{verb} jo")
        peer.expect("250", "252 2.5.2")
        peer.envelope()
        peer.line(f"{verb} <jo@example.com>", "DATA")
        peer.expect("252 2.5.2", "554")


@pytest.mark.parametrize("lmtp", [False, True])
def test_handlers_answer_vrfy_and_expn(smtp_server: MakeServer, lmtp: bool) -> None:
    server = smtp_server(start=False, lmtp=lmtp)
    seen: list[Any] = []

    @server.on("vrfy")
    def verify(session: Session, command: LookupCommand, ack: Ack) -> Reply | None:
        lookup = command.lookup
        seen.append((lookup.name, lookup.address, lookup.smtputf8))
        if lookup.name == "jo":
            ack.accept(250, "Jo <jo@example.com>")
        elif lookup.address == "moved@example.com":
            ack.accept(251, "2.1.5 <jo@example.org>")
        elif lookup.name == "ambiguous":
            return Reply(553, "5.1.4 Jo <jo@example.com>", "5.1.4 Joe <joe@example.com>")
        elif lookup.name == "nobody":
            ack.reject()
        else:
            ack.accept()
        return None

    @server.on("expn")
    def expand(session: Session, command: LookupCommand, ack: Ack) -> None:
        if command.lookup.name == "staff":
            ack.accept(250, ["Jo <jo@example.com>", "<beep@example.com>"])
        else:
            ack.reject()

    with dial(server) as peer:
        peer.expect("220")
        peer.line("VRFY jo", "vrfy <moved@EXAMPLE.com>", "VRFY ambiguous", "VRFY nobody", "VRFY \u00e9 SMTPUTF8")
        peer.expect("250 2.0.0 Jo <jo@example.com>", "251 2.1.5 <jo@example.org>")
        peer.expect("553-5.1.4 Jo*553 5.1.4 Joe", "550 5.1.1 No such user", "252 2.5.2")
        peer.line("EXPN staff", "EXPN others")
        peer.expect("250-2.0.0 Jo <jo@example.com>\n250 2.0.0 <beep@example.com>", "550 5.1.1 No such list")
    assert seen == [
        ("jo", None, False),
        ("moved@EXAMPLE.com", "moved@example.com", False),
        ("ambiguous", None, False),
        ("nobody", None, False),
        ("\u00e9", None, True),
    ]


@pytest.mark.parametrize("verb", ["VRFY", "EXPN"])
@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("", "501 5.5.4 This command needs an argument"),
        ("<>", "501 5.5.4 expected the name of a user or a list"),
        ("\u00e9", "553 5.6.7"),
        ("\u00e9@example.com", "553 5.6.7"),
        ("\x01", "501 5.5.2"),
    ],
)
def test_a_wrong_lookup_reaches_no_handler(smtp_server: MakeServer, verb: str, argument: str, reply: str) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []
    for name in ("vrfy", "expn"):
        server.signals.named(name).connect(lambda session, **fields: seen.append(fields), weak=False)
    with dial(server) as peer:
        peer.hello()
        peer.line(f"{verb} {argument}".rstrip(" "))
        peer.expect(reply)
    assert seen == []


@pytest.mark.parametrize("name", ["vrfy", "expn"])
def test_250_needs_a_text_since_it_names_a_mailbox(smtp_server: MakeServer, name: Any) -> None:
    server = smtp_server(start=False)
    errors: list[ValueError] = []

    @server.on(name)
    def look_up(session: Session, command: LookupCommand, ack: Ack) -> None:
        for code in (250, 251, 253, 354):
            with pytest.raises(ValueError, match="accept") as caught:
                ack.accept(code)
            errors.append(caught.value)
        ack.accept(252)

    with dial(server) as peer:
        peer.hello()
        peer.line(f"{name.upper()} jo")
        peer.expect("252 2.5.2")
    assert "accept(250) needs a text here" in str(errors[0])
    assert "takes a code from 250 to 252 here, not 253" in str(errors[2])


def test_a_lookup_that_fails_is_451(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = smtp_server(start=False)

    @server.on("vrfy")
    def fail(session: Session, command: LookupCommand, ack: Ack) -> None:
        raise LookupError("the directory is down")

    with dial(server) as peer:
        peer.hello()
        peer.line("VRFY jo")
        assert "directory" not in peer.expect("451 4.3.0")
    assert "vrfy: handler" in caplog.text


# ETRN


@pytest.mark.parametrize("lmtp", [False, True])
def test_etrn_is_a_signal_where_it_is_on(smtp_server: MakeServer, lmtp: bool) -> None:
    server = smtp_server(start=False, extensions={"ETRN": True}, lmtp=lmtp)
    seen: list[QueueRequest] = []

    @server.on("etrn")
    def start(session: Session, command: QueueCommand, ack: Ack) -> None:
        seen.append(command.queue)
        if command.queue.kind == "queue":
            ack.reject()
        elif command.queue.kind == "subdomains":
            ack.accept(253, "2.0.0 3 pending messages for the node started")
        else:
            ack.accept()

    with dial(server) as peer:
        peer.expect("220")
        peer.line("ETRN example.com", "LHLO client.example" if lmtp else "EHLO client.example")
        peer.expect("503 5.5.1 Send EHLO, HELO or LHLO first", "250-")
        peer.line("ETRN Example.COM", "etrn @example.com", "ETRN #slow", "ETRN", "ETRN not a domain", "ETRN #")
        peer.expect("250 2.0.0 Queuing started", "253 2.0.0 3 pending", "459 4.7.1 Node not allowed")
        peer.expect("501 5.5.4 This command needs an argument", "501 5.5.4", "501 5.5.4")
        peer.line("MAIL FROM:<a@example.org>", "ETRN example.com")
        peer.expect("250", "503 5.5.1 A transaction is in progress")
    assert seen == [
        QueueRequest("domain", "example.com"),
        QueueRequest("subdomains", "example.com"),
        QueueRequest("queue", "slow"),
    ]


def test_etrn_without_a_handler_is_458(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, extensions={"ETRN": True})) as peer:
        peer.hello()
        peer.line("ETRN example.com", "NOOP")
        peer.expect("458 4.3.5", "250")


def test_etrn_that_is_off_reaches_no_handler(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    seen: list[Any] = []
    server.on("etrn", lambda session, command, ack: seen.append(command))
    with dial(server) as peer:
        peer.hello()
        peer.line("ETRN example.com", "ETRN", "ETRN \x01")
        peer.expect("502 5.5.1", "502 5.5.1", "502 5.5.1")
    assert seen == []


def test_expn_is_offered_to_sessions_that_have_a_handler(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    def expand(session: Session, command: LookupCommand, ack: Ack) -> None:
        ack.accept(250, "Jo <jo@example.com>")

    with dial(server) as peer:
        assert "EXPN" not in peer.hello()
        next(iter(server.connections)).session.on("expn", expand)
        peer.line("EHLO x")
        assert "EXPN" in peer.expect("250").split()[-1:]
        with dial(server) as other:
            assert "EXPN" not in other.hello()
    server.on("expn", expand)
    with dial(server) as peer:
        assert "EXPN" in peer.hello()
        peer.line("HELO x")
        assert "EXPN" not in peer.expect("250")


def test_a_middleware_may_pass_on_a_plain_command(smtp_server: MakeServer) -> None:
    def rewrite(session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, Command(command.verb, command.argument.replace("old", "new").replace("gone", "")))

    rewrite.verbs = ("VRFY", "EXPN", "ETRN")  # type: ignore[attr-defined]
    server = smtp_server(start=False, middleware=[rewrite], extensions={"ETRN": True})
    seen: list[str] = []

    @server.on("vrfy")
    def verify(session: Session, command: LookupCommand, ack: Ack) -> None:
        seen.append(command.lookup.name)
        ack.accept()

    @server.on("etrn")
    def start_queue(session: Session, command: QueueCommand, ack: Ack) -> None:
        seen.append(command.queue.name)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("VRFY old", "EXPN old", "ETRN old.example", "VRFY gone", "ETRN gone")
        peer.expect("252", "252", "250", "501 5.5.4", "501 5.5.4")
    assert seen == ["new", "new.example"]


# HELP and NOOP


def test_help_lists_the_verbs_that_there_are(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, extensions={"CHUNKING": False})) as peer:
        peer.hello()
        peer.line("HELP")
        reply = peer.expect("214")
        assert reply.split("\n")[0] == "214-2.0.0 HELO EHLO MAIL RCPT DATA RSET NOOP VRFY EXPN HELP QUIT"
    options: Any = {"lmtp": True, "extensions": {"ETRN": True}, "middleware": [Auth({"beep": "boop"})]}
    with dial(smtp_server(start=False, **options)) as peer:
        peer.expect("220")
        peer.line("HELP")
        assert peer.expect("214").split("\n")[0].split()[1:] == [
            *["LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "QUIT", "ETRN", "AUTH"]
        ]


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("MAIL", "214-2.0.0 MAIL FROM:<address> [parameters]\n214 2.0.0 Parameters: AUTH BODY SIZE SMTPUTF8"),
        ("rcpt to", "214-2.0.0 RCPT TO:<address> [parameters]\n214 2.0.0 Parameters: NOTIFY ORCPT"),
        ("DATA", "214 2.0.0 DATA"),
        ("BDAT", "214 2.0.0 BDAT size [LAST]"),
        ("help", "214 2.0.0 HELP [verb]"),
        ("ETRN", "504 5.5.4"),
        ("LHLO", "504 5.5.4"),
        ("XYZZY", "504 5.5.4"),
        ("\u00e9", "504 5.5.4"),
    ],
)
def test_help_answers_for_each_verb(smtp_server: MakeServer, argument: str, reply: str) -> None:
    switches = {"DSN": argument.startswith("rcpt")}
    with dial(smtp_server(start=False, extensions=switches)) as peer:
        peer.hello()
        peer.line(f"HELP {argument}")
        assert peer.reply().startswith(reply)


def test_noop_takes_any_argument(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.line("NOOP", "NOOP <still here?> 1=2", "NOOP gr\u00fc\u00dfe", "noop")
        peer.expect("250 2.0.0", "250 2.0.0", "250 2.0.0", "250 2.0.0")
