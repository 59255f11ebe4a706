"""Synchronization: rejected input is consumed to its true end, and no byte of a body is ever a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import Ack, Address, Command, MessageStream, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import chunk

if TYPE_CHECKING:
    from tests.attacks.conftest import Play, PlayCut
    from tests.conftest import Cuts

ENVELOPE = b"EHLO relay.example\r\nMAIL FROM:<sender@example.org>\r\nRCPT TO:<recipient@example.com>\r\n"
SECOND = b"MAIL FROM:<second@example.org>\r\nRCPT TO:<recipient@example.com>\r\n"
COMMANDS = b"RSET\r\nMAIL FROM:<evil@example.net>\r\nRCPT TO:<victim@example.com>\r\nQUIT\r\n"

HOWS: list[dict[str, Any]] = [{}, {"late": True}, {"lazy": True}]
how_acks_come = pytest.mark.parametrize("how", HOWS, ids=["at once", "late", "lazy"])


def note_senders(server: SMTPServer, senders: list[str]) -> None:
    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        senders.append(address)
        ack.accept()


# Pipelining


BATCH = (
    b"EHLO relay.example\r\nNOOP\r\nWHAT\r\nRCPT TO:<early@example.com>\r\nMAIL FROM:<a@example.org> SIZE=10\r\n"
    b"MAIL FROM:<b@example.org>\r\nRCPT TO:<malformed\r\nRCPT TO:<x@example.com>\r\nVRFY x\r\n"
    b"DATA\r\n..first\r\n.\r\nRSET\r\nMAIL FROM:<c@example.org> NONSENSE\r\nMAIL FROM:<>\r\nRCPT TO:<y@example.com>\r\n"
    b"BDAT 8\r\nsecond\r\nBDAT 0\r\nNOOP\r\nBDAT 6 LAST\r\nthird\nDATA\r\nQUIT\r\n"
)
BATCH_CODES = [
    220,
    250,
    250,
    500,
    503,
    250,
    503,
    501,
    250,
    252,
    354,
    250,
    250,
    555,
    250,
    250,
    250,
    250,
    250,
    250,
    503,
    221,
]


@how_acks_come
def test_a_batch_gets_the_same_replies_in_the_same_order_at_every_cut(play_cut: PlayCut, how: dict[str, Any]) -> None:
    outcome = play_cut(BATCH, **how)
    assert outcome.codes == BATCH_CODES
    assert outcome.messages == [b".first\r\n", b"second\r\nthird\r\n"]  # made normal
    assert outcome.envelopes == [("a@example.org", ("x@example.com",)), ("", ("y@example.com",))]


@how_acks_come
def test_a_batch_gets_the_replies_that_its_commands_get_one_by_one(play: Play, how: dict[str, Any]) -> None:
    whole = play(BATCH, **how)
    ends = [index + 2 for index in range(len(BATCH)) if BATCH.startswith(b"\r\n", index)]
    assert play(BATCH, at=ends, **how) == whole


def test_late_acks_keep_the_order_when_they_are_decided_in_another(smtp_server: MakeServer) -> None:
    """The second command is not read before the first is decided."""
    server = smtp_server(start=False)
    kept: list[Ack] = []
    server.on("from", lambda session, address, ack: kept.append(ack))
    server.on("to", lambda session, address, ack: kept.append(ack))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.let_it_read()
        assert len(kept) == 1
        peer.expect_nothing()
        kept.pop().accept(250, "first")
        peer.let_it_read()
        kept.pop().accept(250, "second")
        peer.expect("250 *first", "250 *second", "250 2.0.0 Ok")


# Size


@how_acks_come
@pytest.mark.parametrize("announced", [b"", b" SIZE=20", b" SIZE=0", b" SIZE=99"])
def test_a_lie_about_the_size_runs_nothing_of_the_body(
    play_cut: PlayCut, how: dict[str, Any], announced: bytes
) -> None:
    wire = (
        b"EHLO x\r\nMAIL FROM:<liar@example.org>%s\r\nRCPT TO:<recipient@example.com>\r\nDATA\r\n" % announced
        + b"x" * 98
        + b"\r\n"
        + COMMANDS
        + b".\r\nNOOP\r\nQUIT\r\n"
    )
    outcome = play_cut(wire, step=5, max_message_size=100, **how)
    assert outcome.senders == ["liar@example.org"]
    assert outcome.codes == [220, 250, 250, 250, 354, 552, 250, 221]
    assert outcome.messages == []


def test_a_body_of_exactly_the_size_is_taken_and_one_octet_more_is_not(play: Play) -> None:
    for body, code in [(b"x" * 98 + b"\r\n", 250), (b"x" * 99 + b"\r\n", 552), (b"." + b"x" * 98 + b"\r\n", 250)]:
        outcome = play(ENVELOPE + b"DATA\r\n" + body + b".\r\nQUIT\r\n", max_message_size=100)
        assert outcome.codes[-2:] == [code, 221], body


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ("100", 250),
        ("101", 552),
        ("0", 250),
        ("00000000000000000100", 250),
        ("99999999999999999999", 552),
        ("999999999999999999999", 501),
        ("-1", 501),
        ("+1", 501),
        ("1e3", 501),
        ("0x10", 501),
        ("1_0", 501),
        ("\u0661", 501),
        ("", 501),
    ],
)
def test_only_a_number_is_a_size(play: Play, size: str, code: int) -> None:
    outcome = play(f"EHLO x\r\nMAIL FROM:<a@example.org> SIZE={size}\r\nQUIT\r\n".encode(), max_message_size=100)
    assert outcome.codes == [220, 250, code, 221]


@how_acks_come
def test_too_large_in_chunks_runs_nothing_of_them(play_cut: PlayCut, how: dict[str, Any]) -> None:
    wire = (
        ENVELOPE
        + chunk(b"x" * 90)
        + chunk(COMMANDS)
        + chunk(COMMANDS, last=True)
        + SECOND
        + chunk(b"small", last=True)
        + b"QUIT\r\n"
    )
    outcome = play_cut(wire, start=len(ENVELOPE), step=3, max_message_size=100, **how)
    assert outcome.senders == ["sender@example.org", "second@example.org"]
    assert outcome.messages == [b"small"]
    assert outcome.codes[-5:] == [552, 250, 250, 250, 221]
    # One reply for each chunk, whenever the refusal comes.
    assert len(outcome.codes) == 11


# Chunks


@how_acks_come
def test_chunks_that_hold_commands_are_a_body(play_cut: PlayCut, how: dict[str, Any]) -> None:
    wire = (
        ENVELOPE
        + chunk(COMMANDS)
        + chunk(b".\r\n" + COMMANDS)
        + chunk(b"\r\n.\r\n" + COMMANDS, last=True)
        + b"QUIT\r\n"
    )
    outcome = play_cut(wire, start=len(ENVELOPE), **how)
    assert outcome.messages == [COMMANDS + b".\r\n" + COMMANDS + b"\r\n.\r\n" + COMMANDS]
    assert outcome.senders == ["sender@example.org"]
    assert outcome.codes == [220, 250, 250, 250, 250, 250, 250, 221]


@pytest.mark.parametrize("before", [b"", b"EHLO x\r\n", b"EHLO x\r\nMAIL FROM:<sender@example.org>\r\n"], ids=repr)
def test_a_chunk_out_of_sequence_is_consumed(play_cut: PlayCut, before: bytes) -> None:
    outcome = play_cut(before + chunk(COMMANDS, last=True) + b"NOOP\r\nQUIT\r\n")
    assert outcome.codes[-3:] == [503, 250, 221]
    assert outcome.senders == ["sender@example.org"] * before.count(b"MAIL")


def refuse_messages(server: SMTPServer) -> None:
    server.on("message", lambda session, stream, ack: ack.reject(450, "4.3.2 not now"))


def refuse_bdat_commands(server: SMTPServer) -> None:
    @server.on("command")
    def command(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "BDAT":
            ack.reject(450, "4.3.2 not now")


def answer_bdat_commands(server: SMTPServer) -> None:
    @server.on("command")
    def command(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "BDAT":
            ack.replace(250, "or so it says")


def refuse_in_middleware(server: SMTPServer) -> None:
    def no_chunks(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(450, "4.3.2 not now") if command.verb == "BDAT" else proceed(session, command)

    server.use(no_chunks)


def fail_in_middleware(server: SMTPServer) -> None:
    def broken(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "BDAT":
            raise RuntimeError("broken")
        return proceed(session, command)

    server.use(broken)


REFUSERS = [refuse_messages, refuse_bdat_commands, answer_bdat_commands, refuse_in_middleware, fail_in_middleware]


@pytest.mark.parametrize("refuse", REFUSERS)
def test_the_octets_of_a_refused_chunk_are_consumed_at_every_cut(
    smtp_server: MakeServer, cuts: Cuts, refuse: Any
) -> None:
    senders: list[str] = []
    wire = chunk(COMMANDS) + chunk(COMMANDS, last=True) + b"NOOP\r\nQUIT\r\n"
    server = smtp_server(start=False)
    refuse(server)
    note_senders(server, senders)
    for cut in cuts(wire):
        with dial(server) as peer:
            peer.hello()
            peer.envelope()
            peer.send(wire, cut=cut)
            assert peer.reply()[0] in "45"
            assert peer.reply()[0] in "45"
            peer.expect("250 2.0.0 Ok", "221")
            peer.expect_end()
    assert set(senders) == {"sender@example.org"}


@pytest.mark.parametrize("how", ["middleware", "command", "syntax"])
def test_what_follows_a_refused_chunk_does_not_pass_for_the_message(smtp_server: MakeServer, how: str) -> None:
    """The first chunk is refused, once; the second must not be taken for all there is (RFC 3030 section 2)."""
    refused: list[Command] = []
    bodies: list[bytes] = []

    def once(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "BDAT" and not refused:
            refused.append(command)
            return Reply(450, "4.3.2 not now")
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[once] if how == "middleware" else [])
    if how == "command":

        @server.on("command")
        def command(session: Session, command: Command, ack: Ack) -> None:
            if command.verb == "BDAT" and not refused:
                refused.append(command)
                ack.reject(450, "4.3.2 not now")

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        bodies.append(stream.read())

    first = b"BDAT 6 LAST?\r\n" if how == "syntax" else b"BDAT 6\r\nfirst "
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send(first + b"BDAT 6 LAST\r\nsecondNOOP\r\n")
        assert peer.reply()[:3] in ("450", "501")
        peer.expect("503", "250 2.0.0 Ok")
    assert bodies == []


SIZES = [
    ("-1", 501),
    ("+5", 501),
    ("", 501),
    ("LAST", 501),
    ("5 LAST LAST", 501),
    ("5 FIRST", 501),
    ("5LAST", 501),
    ("0x5", 501),
    ("5.0", 501),
    ("1e1", 501),
    ("\u0665", 501),
    ("\uff15", 501),
    ("9" * 21, 501),
    ("9" * 400, 501),
]


@pytest.mark.parametrize(("size", "code"), SIZES)
def test_what_is_no_size_is_a_syntax_error_and_one_reply(play_cut: PlayCut, size: str, code: int) -> None:
    outcome = play_cut(ENVELOPE + f"BDAT {size}\r\nNOOP\r\nQUIT\r\n".encode(), start=len(ENVELOPE), step=7)
    assert outcome.codes == [220, 250, 250, 250, code, 250, 221]
    assert outcome.messages == []


@pytest.mark.parametrize("size", [2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**20 - 1])
@pytest.mark.parametrize("state", [b"", ENVELOPE], ids=["refused", "accepted"])
def test_an_absurd_chunk_swallows_what_follows_and_no_memory(smtp_server: MakeServer, size: int, state: bytes) -> None:
    server = smtp_server(start=False)
    senders: list[str] = []
    lost: list[BaseException] = []
    note_senders(server, senders)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            stream.read(1_000_000)
        except OSError as error:
            lost.append(error)
            raise

    with dial(server) as peer:
        peer.send(state + b"BDAT %d LAST\r\n" % size + COMMANDS * 10)
        peer.half_close()
        replies = peer.rest().decode().splitlines()
    assert senders == ["sender@example.org"] * bool(state)
    assert replies[-1].startswith("250 2.1.5" if state else "503")
    assert len(lost) == bool(state)


@how_acks_come
def test_a_last_chunk_of_nothing_ends_the_body(play_cut: PlayCut, how: dict[str, Any]) -> None:
    wire = ENVELOPE + chunk(b"all of it") + chunk(b"", last=True) + SECOND + chunk(b"", last=True) + b"QUIT\r\n"
    outcome = play_cut(wire, start=len(ENVELOPE), **how)
    assert outcome.messages == [b"all of it", b""]
    assert outcome.codes == [220, 250, 250, 250, 250, 250, 250, 250, 250, 221]


def test_chunks_of_nothing_again_and_again_come_to_an_end(play: Play) -> None:
    outcome = play(ENVELOPE + chunk(b"") * 1000 + chunk(b"", last=True), max_idle_commands=50)
    assert outcome.codes[:4] == [220, 250, 250, 250]
    assert outcome.codes[-1] == 421
    assert set(outcome.codes[4:-1]) == {250}
    assert len(outcome.codes) < 60
    assert outcome.messages == []


@pytest.mark.parametrize("end", [b"RSET\r\n", b"EHLO again\r\n", b"HELO again\r\n"], ids=repr)
@how_acks_come
def test_a_body_given_up_between_two_chunks_is_not_delivered(
    play_cut: PlayCut, how: dict[str, Any], end: bytes
) -> None:
    wire = (
        ENVELOPE
        + chunk(COMMANDS)
        + end
        + chunk(COMMANDS, last=True)
        + SECOND
        + chunk(b"whole", last=True)
        + b"QUIT\r\n"
    )
    outcome = play_cut(wire, start=len(ENVELOPE), step=2, **how)
    assert outcome.codes == [220, 250, 250, 250, 250, 250, 503, 250, 250, 250, 221]
    assert outcome.messages == [b"whole"]
    assert outcome.envelopes == [("second@example.org", ("recipient@example.com",))]


@pytest.mark.parametrize(
    "line", [b"MAIL FROM:<evil@example.net>", b"RCPT TO:<victim@example.com>", b"DATA", b"STARTTLS", b"WHAT", b"NOOP"]
)
def test_a_command_between_two_chunks_gets_its_reply_and_does_no_harm(play_cut: PlayCut, line: bytes) -> None:
    wire = ENVELOPE + chunk(b"one ") + line + b"\r\n" + chunk(b"two", last=True) + b"QUIT\r\n"
    outcome = play_cut(wire, start=len(ENVELOPE))
    assert outcome.messages == [b"one two"]
    assert outcome.envelopes == [("sender@example.org", ("recipient@example.com",))]
    assert len(outcome.codes) == 8


def test_a_malformed_chunk_within_a_body_ends_the_transaction(play_cut: PlayCut) -> None:
    wire = (
        ENVELOPE
        + chunk(b"one")
        + b"BDAT x\r\n"
        + chunk(b"two", last=True)
        + SECOND
        + chunk(b"3", last=True)
        + b"QUIT\r\n"
    )
    outcome = play_cut(wire, start=len(ENVELOPE))
    assert outcome.codes == [220, 250, 250, 250, 250, 501, 503, 250, 250, 250, 221]
    assert outcome.messages == [b"3"]


def test_data_after_binarymime_is_refused_and_its_transaction_goes_on(play: Play) -> None:
    wire = b"EHLO x\r\nMAIL FROM:<a@example.org> BODY=BINARYMIME\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
    outcome = play(wire + chunk(b"\0\n\r", last=True) + b"QUIT\r\n")
    assert outcome.codes == [220, 250, 250, 250, 503, 250, 221]
    assert outcome.messages == [b"\0\n\r"]


# Lines


@pytest.mark.parametrize("length", [513, 1000, 16_384, 16_385, 100_000, 900_000])
@pytest.mark.parametrize("tail", [b"", b"\n", b"\r", b"\rNOOP", b"\nNOOP"], ids=repr)
def test_a_line_too_long_is_one_reply_and_its_tail_is_no_command(play: Play, length: int, tail: bytes) -> None:
    line = b"x" * length + tail + b"MAIL FROM:<evil@example.net>"
    wire = b"EHLO x\r\n" + line + b"\r\nNOOP\r\nQUIT\r\n"
    for at in ([], [len(wire) - 14], [len(wire) - 13], [len(wire) // 2]):
        outcome = play(wire, at=at)
        assert outcome.senders == []
        assert outcome.codes == [220, 250, 500, 250, 221], at


@pytest.mark.parametrize("verb", [b"NOOP", b"RCPT TO:<a", b"EHLO", b"", b"DATA"], ids=repr)
def test_a_bare_newline_makes_no_command_of_what_follows(play_cut: PlayCut, verb: bytes) -> None:
    """A line ends at CRLF: what a client took for one line must not be two commands."""
    wire = b"EHLO x\r\n" + verb + b"\nMAIL FROM:<evil@example.net>\r\nNOOP\r\nQUIT\r\n"
    outcome = play_cut(wire)
    assert outcome.senders == []
    assert 500 in outcome.codes
    assert outcome.codes[-2:] == [250, 221]


@pytest.mark.parametrize("octet", [b"\r", b"\0", b"\x0b", b"\x0c", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8"], ids=repr)
def test_other_octets_that_may_pass_for_a_newline_do_not(play_cut: PlayCut, octet: bytes) -> None:
    outcome = play_cut(b"EHLO x\r\nNOOP" + octet + b"MAIL FROM:<evil@example.net>\r\nNOOP\r\nQUIT\r\n", start=9)
    assert outcome.senders == []
    assert outcome.codes == [220, 250, 500, 250, 221]


# After a refusal


def test_a_body_without_354_is_no_message(play: Play) -> None:
    """The client has not waited for 354, so its lines are commands, and malformed ones."""
    outcome = play(b"EHLO x\r\nMAIL FROM:<a@example.org>\r\nDATA\r\nSubject: x\r\n\r\nbody\r\n.\r\nQUIT\r\n")
    assert outcome.codes == [220, 250, 250, 503, 500, 500, 500, 500, 221]
    assert outcome.messages == []


@pytest.mark.parametrize("verb", [b"DATA\r\n", b"BDAT 4 LAST\r\nbody"], ids=repr)
def test_a_message_that_a_handler_breaks_off_is_drained_to_its_end(smtp_server: MakeServer, verb: bytes) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.abort(554, "5.6.0 no more")

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        if verb.startswith(b"DATA"):
            peer.send(verb)
            peer.expect("354")
            peer.send(COMMANDS * 100 + b"\r\n.\r\nNOOP\r\n")
        else:
            peer.send(verb + b"NOOP\r\n")
        peer.expect("554 5.6.0", "250 2.0.0 Ok")


def test_lmtp_answers_each_recipient_once_whatever_the_errors(smtp_server: MakeServer) -> None:
    """The 421 for too many errors comes after the replies of all recipients."""
    server = smtp_server(start=False, lmtp=True, max_errors=2)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, recipient, ack: ack.reject(550, "5.1.1 no"))
    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["a@example.com", "b@example.com", "c@example.com", "d@example.com"])
        peer.line("DATA", "x", ".")
        peer.expect("354", "550", "550", "550", "550", "421 4.7.0")
        peer.expect_end()


def test_more_errors_than_allowed_close_without_a_reset(smtp_server: MakeServer) -> None:
    """The client is still sending, and can read the 421."""
    server = smtp_server(max_idle_commands=3)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send(chunk(b"") * 10 + b"x" * 200_000)
        peer.half_close()
        assert b"421 4.7.0" in raw_rest(peer)


def raw_rest(peer: Peer) -> bytes:
    """Read to the end of the connection; a reset raises."""
    pieces = []
    while piece := peer.socket.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
