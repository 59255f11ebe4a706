"""Bad input, row by row: its reply, whether the session goes on, and no noise in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from gevent.event import Event

from greensmtp import Ack, ConnectionLost, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.attacks.conftest import Play, PlayCut

MAIL = "MAIL FROM:<a@example.org>"
RCPT = "RCPT TO:<b@example.com>"

#: (lines before, the line, its code)
LINES = [
    # a syntax error is 501
    *[
        ((), line, 501)
        for line in (
            "HELO",
            "EHLO",
            "EHLO ",
            "DATA now",
            "RSET x",
            "QUIT now",
            "VRFY",
            "EXPN ",
        )
    ],
    *[
        (("EHLO x",), line, 501)
        for line in (
            "MAIL",
            "MAIL FROM",
            "MAIL FROM:",
            "MAIL FROM:a@example.org",
            "MAIL FROM:<a@example.org",
            "MAIL FROM <a@example.org>",
            "MAIL TO:<a@example.org>",
            "MAIL FROM:<a@example.org>SIZE=1",
            "MAIL FROM:<a@example.org> SIZE=",
            "MAIL FROM:<a@example.org> =1",
            "MAIL FROM:<a@example.org> SIZE=1 SIZE=1",
            "MAIL FROM:<a@example.org> size=1 SIZE=2",
            "MAIL FROM:<a@example.org> SIZE",
            "MAIL FROM:<a@example.org> BODY=9BIT",
            "MAIL FROM:<a@example.org> BODY",
            "MAIL FROM:<a@example.org> SMTPUTF8=1",
        )
    ],
    *[
        (("EHLO x", MAIL), line, 501)
        for line in ("RCPT", "RCPT TO:", "RCPT FROM:<b@example.com>", "RCPT TO:b@example.com")
    ],
    (("EHLO x", MAIL, RCPT), "BDAT", 501),
    (("EHLO x", MAIL, RCPT), "BDAT x", 501),
    # an unknown verb is 500
    *[
        ((), line, 500)
        for line in (
            "XYZZY",
            "",
            " ",
            "  NOOP",
            "MAILFROM:<a@example.org>",
            "DATA\u00e9",
            "ma\u0131l",
            "EHLO\u00a0x",
            "LHLO x",
        )
    ],
    # a verb that is not implemented is 502
    *[
        (("EHLO x",), verb, 502)
        for verb in ("AUTH PLAIN", "ETRN x", "TURN", "SEND", "SOML", "SAML", "ATRN", "BURL x", "STARTTLS")
    ],
    # out of sequence is 503
    *[((), line, 503) for line in (MAIL, RCPT, "DATA", "BDAT 0 LAST")],
    *[(("EHLO x",), line, 503) for line in (RCPT, "DATA", "BDAT 0 LAST")],
    *[(("EHLO x", MAIL), line, 503) for line in (MAIL, "DATA", "BDAT 0 LAST")],
    *[(("EHLO x", MAIL, RCPT), line, 503) for line in (MAIL,)],
    *[(("EHLO x", MAIL, RCPT, "RSET"), line, 503) for line in (RCPT, "DATA")],
    *[(("EHLO x", MAIL, RCPT, "EHLO x"), line, 503) for line in (RCPT, "DATA")],
    # an unknown parameter is 555
    *[(("EHLO x",), f"{MAIL} {parameter}", 555) for parameter in ("X=1", "RET=FULL", "SIZE=1 ENVID=x", "NONSENSE")],
    *[(("EHLO x", MAIL), f"{RCPT} {parameter}", 555) for parameter in ("SIZE=1", "NOTIFY=NEVER", "BODY=7BIT")],
    (("HELO x",), f"{MAIL} SIZE=1", 555),
    # a malformed address is 501
    *[
        (("EHLO x",), f"MAIL FROM:<{path}>", 501)
        for path in ("a", "@", "a@", "a@b@c", "a@b..c", "a b@c.d", "a@[1.2.3]")
    ],
    *[(("EHLO x", MAIL), f"RCPT TO:<{path}>", 501) for path in ("", "b", "@", "b@", "b@-c")],
    (("EHLO x",), "MAIL FROM:<caf\u00e9@example.org>", 553),
    (("EHLO x", MAIL), "RCPT TO:<caf\u00e9@example.org>", 553),
]


@pytest.mark.parametrize(
    ("before", "line", "code"), LINES, ids=lambda part: repr(part) if isinstance(part, str) else None
)
def test_a_bad_line_gets_its_reply_and_the_session_goes_on(
    smtp_server: MakeServer, before: tuple[str, ...], line: str, code: int
) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        for earlier in before:
            peer.line(earlier)
            peer.expect("250")
        peer.line(line, "NOOP", "HELO again", MAIL, "QUIT")
        reply = peer.expect(str(code))
        assert all(text[4:].startswith("5.") for text in reply.splitlines())
        peer.expect("250 2.0.0 Ok", "250 mx", "250 2.1.0", "221")
        peer.expect_end()


@pytest.mark.parametrize("how", [{}, {"late": True}], ids=["at once", "late"])
def test_bad_lines_are_as_bad_at_every_cut(play_cut: PlayCut, how: dict[str, bool]) -> None:
    lines = [line for before, line, _ in LINES if not before]
    outcome = play_cut("".join(f"{line}\r\n" for line in [*lines, "QUIT"]).encode(), step=3, max_errors=1_000, **how)
    assert outcome.codes == [220, *(code for before, _, code in LINES if not before), 221]


# Too many of them


@pytest.mark.parametrize("line", ["XYZZY", "MAIL", "DATA", "VRFY", "RCPT TO:<x>"])
def test_too_many_errors_are_421_and_a_close(play: Play, line: str) -> None:
    outcome = play(f"{line}\r\n".encode() * 10 + b"EHLO x\r\n", max_errors=3)
    code = outcome.codes[1]
    assert outcome.codes == [220, code, code, code, 421]
    assert outcome.replies[-1].startswith("421 4.7.0")


def test_a_message_that_is_accepted_wipes_the_slate(play: Play) -> None:
    wire = (
        b"EHLO x\r\n" + b"XYZZY\r\n" * 2 + b"MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n.\r\n" + b"XYZZY\r\n" * 3
    )
    assert play(wire, max_errors=3).codes == [220, 250, 500, 500, 250, 250, 354, 250, 500, 500, 500, 421]


def test_a_message_that_is_refused_is_an_error_too(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_errors=2)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack: ack.reject())
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("550")
        assert peer.deliver().startswith("550")
        peer.expect("421 4.7.0")
        peer.expect_end()


# Lines


def test_a_line_too_long_is_500_once_and_on_from_the_next_crlf(play_cut: PlayCut) -> None:
    long = b"NOOP " + b"x" * 600 + b"\nMAIL FROM:<evil@example.net>\rMAIL FROM:<evil@example.net>"
    outcome = play_cut(b"EHLO x\r\n" + long + b"\r\nNOOP\r\n" + long + b"\r\nQUIT\r\n", step=11)
    assert outcome.codes == [220, 250, 500, 250, 500, 221]
    assert outcome.senders == []


@pytest.mark.parametrize("length", [511, 512, 513, 514, 12_288, 12_289, 16_384, 100_000])
def test_a_line_may_have_512_octets_and_no_more(play: Play, length: int) -> None:
    line = b"NOOP ".ljust(length - 2, b"x") + b"\r\n"
    wire = b"EHLO x\r\n" + line + b"QUIT\r\n"
    for at in ([], [len(wire) - 7], [len(wire) - 8], range(500, 520)):
        assert play(wire, at=at).codes == [220, 250, 250 if length <= 512 else 500, 221]


def test_a_line_without_an_end_is_421(play: Play) -> None:
    outcome = play(b"EHLO x\r\n" + b"x" * 3_000_000 + b"\r\nNOOP\r\n")
    assert outcome.codes == [220, 250, 421]
    assert outcome.replies[-1].startswith("421 4.5.2")


@pytest.mark.parametrize(
    "wire",
    [
        b"EHLO x\n",
        b"EHLO x\nMAIL FROM:<evil@example.net>\n",
        b"EHLO x\r\nMAIL FROM:<evil@example.net>\n",
        b"EHLO x\r\n\nMAIL FROM:<evil@example.net>\r\n",
        b"EHLO x\r\n\r\r\nMAIL FROM:<evil@example.net>\n\r",
        b"EHLO x\r\nNOOP\n\r\nMAIL FROM:<evil@example.net>\n",
    ],
    ids=repr,
)
def test_a_command_line_with_a_bare_newline_is_never_executed(play_cut: PlayCut, wire: bytes) -> None:
    outcome = play_cut(wire)
    assert outcome.senders == []
    assert 500 in outcome.codes


def test_a_bare_newline_is_told_at_once(smtp_server: MakeServer) -> None:
    """A client that ends its lines with LF would wait for a reply that never comes."""
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.send("EHLO x\n")
        peer.expect("500 5.5.2")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        *[(line, 500) for line in (b"\0", b"NO\x08OP", b"\xff\xfe\xfd", b"NOOP\0", b"NOOP\x7f")],
        *[(line, 501) for line in (b"NOOP \x1b", b"NOOP \xff", b"NOOP \xc3")],
        *[(line, 501) for line in (b"MAIL FROM:<a\0@b.c>", b"VRFY \x7f", b"EHLO \x1b")],
    ],
    ids=repr,
)
def test_a_verb_that_is_no_text_is_500_and_an_argument_501(play_cut: PlayCut, line: bytes, code: int) -> None:
    assert play_cut(line + b"\r\nNOOP\r\nQUIT\r\n").codes == [220, code, 250, 221]


@pytest.mark.parametrize(
    "line",
    [
        "ehlo x",
        "EhLo x",
        "EHLO x ",
        "EHLO   x",
        "EHLO\tx",
        "noop",
        "NOOP anything at all",
        "rset",
        "RSET ",
        "help mail",
        "vrfy x",
    ],
)
def test_what_is_only_odd_is_let_through(play: Play, line: str) -> None:
    assert play(f"EHLO x\r\n{line}\r\nQUIT\r\n".encode()).codes[2] // 100 == 2


# Bodies


@pytest.mark.parametrize("body", [b"bare\nlf\r\n", b"bare\rcr\r\n", b"x\r\n\n\r\n", b"x\r\r\n", b"\n", b"\r"], ids=repr)
def test_a_bare_newline_in_a_body_is_drained_and_refused_once(play_cut: PlayCut, body: bytes) -> None:
    envelope = b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
    wire = envelope + body + b"MAIL FROM:<evil@example.net>\r\n.\r\nNOOP\r\nQUIT\r\n"
    outcome = play_cut(wire, start=len(envelope), bare_newlines="reject")
    assert outcome.codes == [220, 250, 250, 250, 354, 554, 250, 221]
    assert outcome.senders == ["a@example.org"]
    assert outcome.messages == []


def test_too_large_is_552_at_once_or_after_the_end(play: Play) -> None:
    wire = (
        b"EHLO x\r\nMAIL FROM:<a@example.org> SIZE=101\r\n"
        b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n" + b"x" * 100 + b"\r\n.\r\nQUIT\r\n"
    )
    outcome = play(wire, max_message_size=100)
    assert outcome.codes == [220, 250, 552, 250, 250, 354, 552, 221]
    assert {reply[4:9] for reply in outcome.replies if reply.startswith("552")} == {"5.3.4"}


# Peers that leave


def leave(peer: Peer) -> None:
    peer.close()


def break_off(peer: Peer) -> None:
    peer.reset()


def half_close(peer: Peer) -> None:
    peer.half_close()
    peer.rest()


def at_the_banner(peer: Peer) -> None:
    peer.expect("220")


def in_a_line(peer: Peer) -> None:
    peer.hello()
    peer.send("MAIL FROM:<a@exam")


def in_a_transaction(peer: Peer) -> None:
    peer.hello()
    peer.envelope()


def in_a_body(peer: Peer) -> None:
    peer.hello()
    peer.envelope()
    peer.line("DATA")
    peer.expect("354")
    peer.send("Subject: half\r\n\r\nHalf a mess")


def at_a_dot(peer: Peer) -> None:
    in_a_body(peer)
    peer.send("\r\n.\r")


def in_a_chunk(peer: Peer) -> None:
    peer.hello()
    peer.envelope()
    peer.send("BDAT 100 LAST\r\nhalf a chunk")


def between_chunks(peer: Peer) -> None:
    peer.hello()
    peer.envelope()
    peer.send("BDAT 5\r\nchunk")
    peer.expect("250")


def in_a_refused_chunk(peer: Peer) -> None:
    peer.hello()
    peer.send("BDAT 100 LAST\r\nhalf a chunk")
    peer.expect("503")


def with_replies_unread(peer: Peer) -> None:
    peer.line("EHLO x", *["HELP"] * 50)
    peer.let_it_read()


WAYS = [leave, break_off, half_close]
MOMENTS = [
    at_the_banner,
    in_a_line,
    in_a_transaction,
    in_a_body,
    at_a_dot,
    in_a_chunk,
    between_chunks,
    in_a_refused_chunk,
    with_replies_unread,
]


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_peer_that_goes_is_a_debug_line_and_delivers_nothing(
    smtp_server: MakeServer,
    caplog: pytest.LogCaptureFixture,
    moment: Callable[[Peer], None],
    way: Callable[[Peer], None],
    reads: bool,
) -> None:
    caplog.set_level(logging.DEBUG, logger="greensmtp")
    server = smtp_server()
    over = Event()
    reasons: list[str] = []
    received: list[Session] = []
    reads_of: list[type[BaseException]] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        if reads:
            try:
                stream.read()
            except OSError as error:
                reads_of.append(type(error))
                raise

    @server.on("received")
    def take(session: Session, ack: Ack) -> None:
        received.append(session)
        ack.accept()

    @server.on("disconnect")
    def disconnect(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    with dial(server) as peer:
        moment(peer)
        peer.let_it_read()
        way(peer)
        assert over.wait(5)
    assert received == []
    assert reasons == ["reset" if way is break_off else "closed"] or (
        # Data that is sent to a client that has gone is answered with a reset.
        moment is with_replies_unread and reasons == ["reset"]
    )
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    body_had_begun = moment in (in_a_body, at_a_dot, in_a_chunk, between_chunks)
    assert reads_of == [ConnectionLost] * (reads and body_had_begun)


def test_one_that_half_closes_gets_all_its_replies(play: Play) -> None:
    wire = b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\nDATA\r\nbody\r\n.\r\nVRFY x\r\nNO"
    assert play(wire).codes == [220, 250, 250, 250, 354, 250, 252]


def test_a_peer_that_goes_while_a_handler_decides_is_a_debug_line(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="greensmtp")
    server = smtp_server()
    kept: list[Ack] = []
    asked, over = Event(), Event()

    @server.on("from")
    def later(session: Session, address: str, ack: Ack) -> None:
        kept.append(ack)
        asked.set()

    @server.on("disconnect")
    def disconnect(session: Session, reason: str) -> None:
        over.set()

    with dial(server) as peer:
        peer.hello()
        peer.line(MAIL)
        assert asked.wait(5)
        peer.reset()
        kept.pop().accept()
        assert over.wait(5)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_a_tcp_reset_before_any_command_does_no_harm(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = smtp_server()
    for _ in range(50):
        dial(server).reset()
    with dial(server) as peer:
        peer.hello()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Handlers


def raises(session: Session, address: str, ack: Ack) -> None:
    raise RuntimeError("my secret")


def forgets(session: Session, address: str, ack: Ack) -> None:
    pass


def decides_twice(session: Session, address: str, ack: Ack) -> None:
    ack.accept()
    ack.reject()


KEPT: list[Ack] = []


def takes_too_long(session: Session, address: str, ack: Ack) -> None:
    KEPT.append(ack)


@pytest.mark.parametrize("handler", [raises, forgets, decides_twice, takes_too_long])
@pytest.mark.usefixtures("clock")
def test_a_bad_handler_is_451_and_named_and_the_connection_goes_on(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, handler: Callable[..., None]
) -> None:
    server = smtp_server(start=False, ack_timeout=0.2)
    server.on("to", handler)
    with dial(server) as peer:
        peer.hello()
        peer.line(MAIL, RCPT, "NOOP", RCPT, "DATA", "QUIT")
        peer.expect("250", "451 4.3.0", "250 2.0.0 Ok", "451 4.3.0", "503", "221")
        assert "secret" not in peer.transcript
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert all(f"test_errors.{handler.__name__}" in record.getMessage() for record in errors)
    KEPT.clear()


def test_a_message_without_handlers_is_refused(smtp_server: MakeServer) -> None:
    server: SMTPServer = smtp_server(start=False)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("554")
