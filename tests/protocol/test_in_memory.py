"""Client and server, back to back in memory: dialogues at every cut, fuzzed input, and gevent's server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import gevent
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greensmtp import Ack, Address, MessageStream, Session, SMTPServer
from greensmtp.protocol import canned
from greensmtp.protocol.client_protocol import ClientProtocol
from greensmtp.protocol.command import PARSERS, Command, EndOfData, PathCommand
from greensmtp.protocol.dot_stuffing import with_crlf
from greensmtp.protocol.errors import ReplySyntaxError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.server_protocol import Data, EndOfChunk, Response, ServerProtocol
from greensmtp.protocol.state import State
from greensmtp.testing import dial

EveryCut = Callable[[bytes], Iterator[list[bytes]]]

BANNER = Reply(220, "mx.example.com ESMTP", enhanced=None)
GREETING = Reply(250, "mx.example.com", "CHUNKING", "PIPELINING", enhanced=None)
NO_SUCH_USER = Reply(550, "5.1.1 No such user")

#: What a client that has EHLO's reply may pipeline, and the codes it gets, the banner's first.
BATCH = (
    b"EHLO relay.example\r\nNOOP\r\nWHAT\r\nRCPT TO:<early@example.com>\r\nMAIL FROM:<a@example.org> SIZE=10\r\n"
    b"MAIL FROM:<b@example.org>\r\nRCPT TO:<malformed\r\nRCPT TO:<x@example.com>\r\nVRFY x\r\nNO\nOP\r\n"
    b"DATA\r\n..first\r\n.\r\nRSET\r\nMAIL FROM:<>\r\nRCPT TO:<y@example.com>\r\n"
    b"BDAT 8\r\nsecond\r\nBDAT 0\r\nNOOP\r\nBDAT 6 LAST\r\nthird\nBDAT 6\r\nQUIT\r\nDATA\r\nQUIT\r\nNOOP\r\n"
)
BATCH_CODES = (
    [220, 250, 250, 500, 503, 250, 503, 501, 250, 252, 500, 354, 250] + [250] * 3 + [250] * 4 + [503, 503, 221]
)


class Server:
    """A server that accepts everything in order, except recipients named ``no``."""

    def __init__(self, *, lmtp: bool = False) -> None:
        self.protocol = ServerProtocol(lmtp=lmtp, max_command=512)
        self.wire = self.protocol.send(BANNER)
        self.senders: list[str] = []
        self.bodies: list[bytes] = []
        self.body = b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes; return those for the client."""
        self.protocol.receive(data)
        while (event := self.protocol.next_event()) is not None:
            if isinstance(event, Data):
                self.body += event.content
                continue
            if isinstance(event, EndOfData):
                self.bodies.append(self.body)
                self.body = b""
                for number in range(max(self.protocol.recipients, 1) if self.protocol._lmtp else 1):
                    self.wire += self.protocol.send(Reply(250, f"2.0.0 Message {number}"))
                continue
            if (reply := self.reply_to(event)) is not None:
                self.wire += self.protocol.send(reply)
        wire, self.wire = self.wire, b""
        return wire

    def reply_to(self, event: Command | Response | EndOfChunk) -> Reply | None:
        if isinstance(event, Response):
            return Reply(235, "2.7.0 Welcome") if event.line == b"cw==" else canned.AUTH_INVALID
        if isinstance(event, EndOfChunk):
            return canned.OK
        refusal = self.protocol.refusal(event)
        if refusal is not None:
            self.body = b"" if event.verb == "BDAT" else self.body
            return refusal
        if event.verb == "BDAT":
            return None
        if event.verb == "RSET":
            self.body = b""
        if event.verb == "MAIL":
            self.senders.append(str(event.address) if isinstance(event, PathCommand) else "")
            return canned.SENDER_OK
        if isinstance(event, PathCommand) and event.address.local_part == "no":
            return NO_SUCH_USER
        if event.verb not in PARSERS and event.verb != "AUTH":
            return canned.UNKNOWN_COMMAND
        return {
            "EHLO": GREETING,
            "LHLO": GREETING,
            "DATA": canned.START_MAIL,
            "AUTH": Reply(334, ""),
            "STARTTLS": canned.START_TLS,
            "QUIT": canned.BYE,
            "VRFY": canned.CANNOT_VERIFY,
        }.get(event.verb, canned.OK)


def play(pieces: Iterable[bytes]) -> tuple[list[int], list[str], list[bytes]]:
    """Send bytes to a fresh server; return the codes of its replies, the senders, and the bodies."""
    server = Server()
    wire = server.receive(b"")
    for piece in pieces:
        wire += server.receive(piece)
    codes = [int(line[:3]) for line in wire.split(b"\r\n")[:-1] if line[3:4] != b"-"]
    return codes, server.senders, server.bodies


def test_a_batch_gets_the_same_replies_at_every_cut(every_cut: EveryCut) -> None:
    for pieces in every_cut(BATCH):
        assert play(pieces) == (BATCH_CODES, ["a@example.org", ""], [b".first\r\n", b"second\r\nthird\n"]), pieces


class Dialogue:
    """A client and a server, and the bytes between them in pieces of ``size``."""

    def __init__(self, *, lmtp: bool = False, size: int = 1000) -> None:
        self.client = ClientProtocol(lmtp=lmtp)
        self.server = Server(lmtp=lmtp)
        self.size = size
        self.replies: list[tuple[str, Reply]] = []
        self.say(b"")

    def say(self, data: bytes) -> list[tuple[str, int]]:
        """Send what the client has built; return the verbs and codes of the replies to it."""
        answer = self.server.receive(b"")
        for start in range(0, len(data), self.size):
            answer += self.server.receive(data[start : start + self.size])
        found = []
        for start in range(0, len(answer), self.size):
            self.client.receive(answer[start : start + self.size])
            found += list(iter(self.client.next_reply, None))
        self.replies += found
        return [(verb, reply.code) for verb, reply in found]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])
def test_a_transaction_from_banner_to_quit(lmtp: bool, size: int) -> None:
    dialogue = Dialogue(lmtp=lmtp, size=size)
    client = dialogue.client
    assert dialogue.replies == [("CONNECT", BANNER)]
    hello = "LHLO" if lmtp else "EHLO"
    assert dialogue.say(client.hello("client.example")) == [(hello, 250)]
    assert client.extensions == {"CHUNKING": "", "PIPELINING": ""}
    group = [client.mail("jo@example.org"), client.rcpt("one@example.com"), client.rcpt("no@example.com")]
    group += [client.rcpt("two@example.com"), client.command("DATA")]
    assert client.unanswered == ("MAIL", "RCPT", "RCPT", "RCPT", "DATA")
    assert dialogue.say(b"".join(group)) == [("MAIL", 250), ("RCPT", 250), ("RCPT", 550), ("RCPT", 250), ("DATA", 354)]
    assert dialogue.say(client.body(b".dots\r\n..\r\n")) == [("END-OF-DATA", 250)] * (2 if lmtp else 1)
    assert client.recipients == 0
    assert dialogue.server.protocol.state is State.GREETED
    # In one group, the last chunk too: the replies tell how many there are.
    group = [client.mail("", "SIZE=9"), client.rcpt("one@example.com"), client.rcpt("two@example.com")]
    group += [client.chunk(b".\r\n"), client.chunk(b"\r\n.\r\n", last=True)]
    expected = [("MAIL", 250), ("RCPT", 250), ("RCPT", 250), ("BDAT", 250)]
    assert dialogue.say(b"".join(group)) == expected + [("END-OF-DATA", 250)] * (2 if lmtp else 1)
    assert dialogue.server.bodies == [b".dots\r\n..\r\n", b".\r\n\r\n.\r\n"]
    assert dialogue.say(client.command("QUIT")) == [("QUIT", 221)]
    assert dialogue.server.protocol.is_closed
    assert not client.unanswered


def test_auth_takes_its_response_for_no_command() -> None:
    dialogue = Dialogue()
    client = dialogue.client
    dialogue.say(client.hello("client.example"))
    assert dialogue.say(client.command("AUTH", "PLAIN")) == [("AUTH", 334)]
    with pytest.raises(RuntimeError, match="AUTH with 3xx"):
        client.command("NOOP")
    assert dialogue.say(client.response(b"QUIT")) == [("AUTH", 535)]
    assert dialogue.say(client.command("AUTH", "PLAIN")) == [("AUTH", 334)]
    assert dialogue.say(client.response(b"cw==")) == [("AUTH", 235)]
    with pytest.raises(RuntimeError, match="only when AUTH"):
        client.response(b"cw==")


def test_starttls_forgets_what_came_in_the_clear_on_both_sides() -> None:
    dialogue = Dialogue()
    client, server = dialogue.client, dialogue.server
    dialogue.say(client.hello("client.example"))
    assert dialogue.say(client.command("STARTTLS") + b"MAIL FROM:<evil@example.net>\r\nNO") == [("STARTTLS", 220)]
    assert (server.senders, server.protocol.state, client.extensions) == ([], State.CONNECTED, {})
    assert dialogue.say(client.command("NOOP")) == [("NOOP", 250)]
    client.command("STARTTLS")
    client.receive(b"220 go\r\n250 injected\r\n")
    with pytest.raises(ReplySyntaxError, match="CVE-2011-0411"):
        client.next_reply()


def test_commands_behind_a_refused_data_are_commands() -> None:
    assert play([b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<no@x>\r\nDATA\r\nRSET\r\n.\r\n"])[0][-3:] == [503, 250, 500]


def test_the_bytes_of_a_refused_chunk_are_no_commands(every_cut: EveryCut) -> None:
    for pieces in every_cut(b"EHLO x\r\nBDAT 12\r\nRSET\r\nRSET\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n"):
        codes, _, _ = play(pieces)
        assert codes == [220, 250, 503, 503, 250], pieces


@pytest.mark.parametrize("wire", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"POST / HTTP/1.0\nRSET\r\n"])
def test_another_protocol_is_told_to_go(every_cut: EveryCut, wire: bytes) -> None:
    for pieces in every_cut(wire + b"\r\nRSET\r\n"):
        assert play(pieces)[0] == [220, 421], pieces


# What either side may not do


def test_the_server_answers_before_it_reads_on() -> None:
    protocol = ServerProtocol()
    with pytest.raises(RuntimeError, match="reply to CONNECT"):
        protocol.next_event()
    protocol.send(BANNER)
    with pytest.raises(RuntimeError, match="no event"):
        protocol.send(canned.OK)
    protocol.receive(b"NOOP\r\nNOOP\r\n")
    assert str(protocol.next_event()) == "NOOP"
    with pytest.raises(RuntimeError, match="reply to NOOP"):
        protocol.next_event()


def test_a_banner_that_refuses_ends_the_connection() -> None:
    protocol = ServerProtocol()
    protocol.send(canned.NO_MAIL_HERE)
    protocol.receive(b"EHLO x\r\n")
    assert protocol.is_closed
    assert protocol.next_event() is None


@pytest.mark.parametrize("verb", ["DATA", "QUIT", "STARTTLS", "AUTH", "EHLO"])
def test_nothing_is_pipelined_behind_what_ends_a_group(verb: str) -> None:
    dialogue = Dialogue()
    dialogue.client.command(verb, "x" if verb in ("AUTH", "EHLO") else None)
    with pytest.raises(RuntimeError, match=f"before {verb} is answered"):
        dialogue.client.command("NOOP")


def test_a_body_needs_an_invitation() -> None:
    dialogue = Dialogue()
    with pytest.raises(RuntimeError, match="only when DATA"):
        dialogue.client.body(b"text")


def test_a_reply_that_answers_nothing_is_an_error_unless_it_says_goodbye() -> None:
    client = Dialogue().client
    client.receive(b"421 4.3.2 going\r\n250 what\r\n")
    assert client.next_reply() == ("", Reply(421, "going", enhanced="4.3.2"))
    with pytest.raises(ReplySyntaxError, match="answers no command"):
        client.next_reply()


def test_an_intermediate_reply_to_what_has_no_more_is_an_error() -> None:
    client = Dialogue().client
    client.command("NOOP")
    client.receive(b"354 go on\r\n")
    with pytest.raises(ReplySyntaxError, match="NOOP was answered 354"):
        client.next_reply()


# Anything


@given(
    body=st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"\r\n.\r\n", b"QUIT\r\n"])).map(b"".join),
    recipients=st.lists(st.sampled_from(["one@example.com", "no@example.com"]), min_size=1, max_size=4),
    size=st.integers(1, 30),
    lmtp=st.booleans(),
    chunked=st.booleans(),
)
def test_any_body_arrives_as_it_was(body: bytes, recipients: list[str], size: int, lmtp: bool, chunked: bool) -> None:
    dialogue = Dialogue(lmtp=lmtp, size=size)
    client = dialogue.client
    dialogue.say(client.hello("client.example"))
    dialogue.say(client.mail("jo@example.org") + b"".join(map(client.rcpt, recipients)))
    accepted = recipients.count("one@example.com")
    if chunked:
        got = dialogue.say(client.chunk(body[:5]) + client.chunk(body[5:], last=True))
        expected = [("BDAT", 250), *[("END-OF-DATA", 250)] * (accepted if lmtp else 1)]
        if not accepted:
            return
    elif accepted:
        assert dialogue.say(client.command("DATA")) == [("DATA", 354)]
        got = dialogue.say(client.body(body))
        expected = [("END-OF-DATA", 250)] * (accepted if lmtp else 1)
        body = with_crlf(body)
        body += b"" if not body or body.endswith(b"\r\n") else b"\r\n"
    else:
        assert dialogue.say(client.command("DATA")) == [("DATA", 503)]
        return
    assert got == expected
    assert dialogue.server.bodies == [body]
    assert not client.unanswered


WIRES = st.lists(
    st.sampled_from(
        [b"EHLO x", b"MAIL FROM:<>", b"RCPT TO:<a@b>", b"DATA", b"BDAT 3", b"BDAT 9 LAST", b"RSET", b"QUIT"]
        + [b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\n"] * 3
        + [b"\r\n"] * 5
        + [b".", b"\n", b"\r", b"x" * 600, b"\r\n.\r\n", b"\xff", b"GET / HTTP/1.1"]
    ),
    max_size=30,
).map(b"".join)


@given(wire=WIRES | st.just(b"EHLO x\r\nAUTH PLAIN\r\nQUIT\r\nQUIT\r\n"), place=st.integers(1, 200))
@example(wire=b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n..\r\n.\r\nQUIT\r\n", place=48)
def test_any_bytes_have_one_outcome_at_any_cut(wire: bytes, place: int) -> None:
    whole = play([wire])
    assert play([wire[:place], wire[place:]]) == whole
    assert play(wire[index : index + 1] for index in range(len(wire))) == whole


def play_with_gevent(wire: bytes) -> tuple[list[int], list[str], list[bytes]]:
    """Do as ``play`` with a real server over a socket pair."""
    senders: list[str] = []
    bodies: list[bytes] = []
    server = SMTPServer(
        ("127.0.0.1", 0), hostname="mx.example.com", bare_newlines="keep", max_errors=1000, max_idle_commands=1000
    )

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        senders.append(str(address))
        ack.accept()

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        body = stream.read()
        bodies.append(body)

    with dial(server) as peer:
        reading = gevent.spawn(peer.rest)
        try:
            peer.send(wire)
            peer.half_close()
        except ConnectionError:
            pass  # the server has closed: its replies tell why
        replies = reading.get(timeout=30)
    codes = [int(line[:3]) for line in replies.split(b"\r\n")[:-1] if line[3:4] != b"-"]
    return codes, senders, bodies


def test_gevents_server_agrees_about_a_batch() -> None:
    assert play_with_gevent(BATCH) == play([BATCH])


@settings(max_examples=50, deadline=None)
@given(wire=WIRES)
@example(
    wire=b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 3\r\n.\r\nBDAT 9\r\nRSET\r\n\r\n.\r\nBDAT 0 LAST\r\nQUIT\r\n"
)
def test_gevents_server_agrees_about_any_bytes(wire: bytes) -> None:
    assert play_with_gevent(wire) == play([wire])
