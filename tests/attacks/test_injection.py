"""CRLF injection: any text of a handler, a middleware or a client makes one well-formed reply."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Ack, Address, Command, Reject, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.attacks.conftest import Play, PlayCut

FORGED = "250 2.1.5 forged"

TEXTS = [
    f"no\r\n{FORGED}",
    f"no\n{FORGED}",
    f"no\r{FORGED}",
    f"no\r\n\r\n{FORGED}\r\n",
    f"\r\n{FORGED}",
    f"5.7.1 no\r\n{FORGED}",
    f"no\0{FORGED}",
    f"no\x0b{FORGED}\x0c{FORGED}\x1c{FORGED}",
    f"no\x85{FORGED}",
    f"no\u2028{FORGED}\u2029{FORGED}",
    f"no\u560a{FORGED}\u560d",  # whose low bytes are LF and CR
    "caf\u00e9 \U0001f4e7 \udce9",
    "\x1b[2J\x07\x7f\x9b",
    "",
    " ",
    "\n",
    "-",
    "- 250 x",
    "x" * 5_000,
    "word " * 1_000,
    f"{'x' * 480}\r\n{FORGED}",
    "a\n" * 200,
]

texts = pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))


def reject_with_ack(server: SMTPServer, text: str) -> None:
    server.on("to", lambda session, address, ack: ack.reject(550, text))


def reject_with_lines(server: SMTPServer, text: str) -> None:
    server.on("to", lambda session, address, ack: ack.reject("550", [text, text]))


def raise_reject(server: SMTPServer, text: str) -> None:
    @server.on("to")
    def refuse(session: Session, address: Address, ack: Ack) -> None:
        raise Reject(550, text)


def reject_in_middleware(server: SMTPServer, text: str) -> None:
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(550, text) if command.verb == "RCPT" else proceed(session, command)

    server.use(refuse)


def raise_in_middleware(server: SMTPServer, text: str) -> None:
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "RCPT":
            raise Reject(550, text)
        return proceed(session, command)

    server.use(refuse)


def reject_the_command(server: SMTPServer, text: str) -> None:
    @server.on("command")
    def refuse(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "RCPT":
            ack.reject(550, text)


WAYS = [
    reject_with_ack,
    reject_with_lines,
    raise_reject,
    reject_in_middleware,
    raise_in_middleware,
    reject_the_command,
]


@texts
@pytest.mark.parametrize("refuse", WAYS)
def test_a_text_makes_one_reply_of_its_own_code(
    smtp_server: MakeServer, refuse: Callable[[SMTPServer, str], None], text: str
) -> None:
    server = smtp_server(start=False)
    refuse(server, text)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect("250")
        lines = peer.expect("550").splitlines()
        assert all(line[3:4] == "-" for line in lines[:-1])
        assert all(len(line) <= 510 and line.isascii() and line.isprintable() for line in lines)
        assert all(line[4:].startswith("5.") for line in lines)
        peer.expect("250 2.0.0 Ok")


@texts
@pytest.mark.parametrize(("name", "code"), [("connect", "220"), ("greeting", "250")])
def test_a_text_of_acceptance_makes_one_reply(smtp_server: MakeServer, name: Any, code: str, text: str) -> None:
    server = smtp_server(start=False)

    @server.on(name)
    def accept(session: Session, ack: Ack, **fields: object) -> None:
        ack.accept(message=text)

    with dial(server) as peer:
        peer.line("EHLO client.example", "NOOP")
        for expected in ("220", "250"):
            reply = peer.expect(expected)
            if expected == code:
                assert all(len(line) <= 510 and line.isascii() and line.isprintable() for line in reply.splitlines())
        peer.expect("250 2.0.0 Ok")


@texts
def test_a_text_behind_data_and_after_it_makes_one_reply(smtp_server: MakeServer, text: str) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept(354, text))
    server.on("received", lambda session, ack: ack.accept(250, text.removeprefix("5.7.1 ")))
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA", "body", ".", "NOOP")
        peer.expect("354", "250", "250 2.0.0 Ok")


@texts
def test_a_refused_connection_gets_one_reply(smtp_server: MakeServer, text: str) -> None:
    server = smtp_server(start=False)
    server.on("connect", lambda session, ack: ack.reject(554, text))
    with dial(server) as peer:
        peer.expect("554")
        peer.expect_end()


@texts
def test_a_broken_off_body_gets_one_reply(smtp_server: MakeServer, text: str) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def abort(session: Session, stream: object, ack: Ack) -> None:
        ack.accept()
        session.message.abort(554, text)  # type: ignore[union-attr]

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("554")
        peer.line("NOOP")
        peer.expect("250 2.0.0 Ok")


@pytest.mark.parametrize("message", ["4.7.1 of another class", "2.0.0 fine"])
@pytest.mark.parametrize("refuse", [raise_reject, raise_in_middleware])
def test_a_reject_that_is_no_reply_is_451_and_the_connection_goes_on(
    smtp_server: MakeServer,
    caplog: pytest.LogCaptureFixture,
    refuse: Callable[[SMTPServer, str], None],
    message: str,
) -> None:
    server = smtp_server(start=False)
    refuse(server, message)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect("250", "451 4.3.0", "250 2.0.0 Ok")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "refuse" in caplog.text


def test_a_pipe_that_raises_a_reject_that_is_no_reply_fails_the_message(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise Reject(452, "5.3.1 of another class")

    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: object, ack: Ack) -> None:
        session.message.pipe(Full())  # type: ignore[union-attr]
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("451 4.3.0")
    assert "ERROR" in [record.levelname for record in caplog.records]


# What a peer says


NAMES = [
    b"a\rb",
    b"a\0b",
    b"a\x0bb",
    b"a\x1b[2Jb",
    b"\xff\xfe\0",
    b"x" * 256,
    b"",
    b"a\xe2\x80\xa8250 b",
]


@pytest.mark.parametrize("verb", [b"EHLO", b"HELO"])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_that_is_none_gets_one_reply_without_it(play_cut: PlayCut, verb: bytes, name: bytes) -> None:
    outcome = play_cut(verb + b" " + name + b"\r\nNOOP\r\nQUIT\r\n", step=5)
    assert outcome.codes[1] in (500, 501)
    assert outcome.codes == [220, outcome.codes[1], 250, 221]
    if name:
        assert name not in outcome.replies[1].encode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xc3\xa9", "caf?"),
        (b"caf\xe9", "caf?"),
        (b"\xff\xfe", "??"),
        (b"b\x81ro-pc", "b\\x81ro-pc"),
    ],
)
@pytest.mark.parametrize("verb", [b"EHLO", b"HELO"])
def test_a_name_beyond_ascii_gets_one_reply_in_ascii(play_cut: PlayCut, verb: bytes, name: bytes, shown: str) -> None:
    outcome = play_cut(verb + b" " + name + b"\r\nNOOP\r\nQUIT\r\n")
    assert outcome.codes == [220, 250, 250, 221]
    assert f"greets {shown}" in outcome.replies[1].splitlines()[0]


@pytest.mark.parametrize(
    "name",
    [b"[192.0.2.1]", b"[IPv6:2001:db8::1]", b"under_score", b"x" * 255, b"250-PIPELINING", b"-", b"%s", b"Copier 3000"],
)
@pytest.mark.parametrize("verb", [b"EHLO", b"HELO"])
def test_an_odd_name_gets_one_reply_with_it(play: Play, verb: bytes, name: bytes) -> None:
    outcome = play(verb + b" " + name + b"\r\nNOOP\r\nQUIT\r\n")
    assert outcome.codes == [220, 250, 250, 221]
    assert name in outcome.replies[1].encode()
    offered = [line[4:].split(" ")[0] for line in outcome.replies[1].splitlines()]
    assert offered.count("PIPELINING") == (verb == b"EHLO")


ADDRESSES = [
    b"<a\r@example.org>",
    b"<a\0@example.org>",
    b"<a@example.org\r>",
    b'<"a\rb"@example.org>',
    b'<"a\\\rb"@example.org>',
    b'<"a\0b"@example.org>',
    b"<a@exam\x85ple.org>",
    b"<a@exam\xc2\x85ple.org>",
    b"<a@exam\xe2\x80\xa8ple.org>",
    b"<a@\xff.org>",
    b"<a@\xed\xa0\x80.org>",
    b"<a@\xc0\x8a.org>",
]


@pytest.mark.parametrize("command", [b"MAIL FROM:", b"RCPT TO:"])
@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
def test_control_characters_in_an_address_get_one_reply(play: Play, command: bytes, address: bytes) -> None:
    outcome = play(
        b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRSET\r\n" + command + address + b" SMTPUTF8\r\nNOOP\r\nQUIT\r\n"
    )
    assert outcome.senders == ["a@b.example"]
    assert outcome.codes == [220, 250, 250, 250, 500, 250, 221]


@pytest.mark.parametrize(
    "path",
    [
        "<<a@example.org>>",
        "<a@example.org><b@example.org>",
        "<a@example.org",
        "a@example.org>",
        "<a@example.org>x",
        "<a b@example.org>",
        "<a@exa mple.org>",
        "<a@>",
        "<@example.org>",
        "<a@b@example.org>",
        "<.a@example.org>",
        "<a..b@example.org>",
        "<a.@example.org>",
        "<a@.example.org>",
        "<a@example..org>",
        "<a@-example.org>",
        "<a@example.org->",
        "<a@[>",
        "<a@[]>",
        "<a@[999.1.1.1]>",
        "<a@[IPv6:x]>",
        "<a@[IPv6:fe80::1%eth0]>",
        "<a@[IPv6:fe80::1%a,b <c>]>",
        '<"a@example.org>',
        '<"a"b@example.org>',
        "<a\\@example.org>",
        "<a,b@example.org>",
        "<a;b@example.org>",
        "<a:b@example.org>",
        "<(comment)a@example.org>",
        "< a@example.org >",
        "<a@example.org >",
        "<@x,@y a@example.org>",
        "<@x:>",
        "<a@" + "x" * 64 + ".org>",
        "<a@" + ".".join(["x" * 60] * 5) + ">",
    ],
)
def test_what_is_no_address_is_501_or_553(play: Play, path: str) -> None:
    outcome = play(f"EHLO x\r\nMAIL FROM:{path}\r\nMAIL FROM:<ok@example.org>\r\nRCPT TO:{path}\r\nQUIT\r\n".encode())
    sender, recipient = outcome.codes[2], outcome.codes[4]
    assert {sender, recipient} <= {501, 553}
    assert outcome.codes == [220, 250, sender, 250, recipient, 221]
    assert outcome.senders == ["ok@example.org"]


def test_nothing_that_a_peer_says_breaks_a_line_of_the_log(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    from greensmtp.middleware import Logging

    logger = logging.getLogger("greensmtp.test")
    caplog.set_level(logging.DEBUG, logger="greensmtp.test")
    wire = b"".join(b"EHLO " + name + b"\r\n" for name in NAMES) + b"".join(
        b"MAIL FROM:" + path + b"\r\n" for path in ADDRESSES
    )
    play(wire + b"\x1b[2JX\r\nQUIT\r\n", middleware=[Logging(logger)], max_errors=1_000)
    messages = [record.getMessage() for record in caplog.records if record.name == "greensmtp.test"]
    assert len(messages) > len(NAMES) + len(ADDRESSES)
    assert [message for message in messages if not message.isprintable()] == []
