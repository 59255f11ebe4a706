"""What is said on one connection: whose turn it is, which reply answers what, how far the transaction has come."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from greensmtp.client.deadlines import Timeouts
from greensmtp.client.transport import SEND_PIECE, ClientTransport
from greensmtp.errors import PeerProtocolError, ProtocolError
from greensmtp.protocol import command_builder
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.reply import Reply

#: Commands in one write. Their replies must fit what the kernel holds for us while we write: a peer that cannot get
#: rid of a reply stops reading (RFC 2920 section 3.1).
MAX_GROUP = 100

#: Octets up to which a chunk goes in one piece with its BDAT.
SMALL_CHUNK = 16 * 1024

#: The reply that asks for the next line of AUTH.
AUTH_CONTINUES = 334

#: Characters by which a response of AUTH is found in a reply that repeats it, perhaps not to its end.
ECHO = 8

NO_EXTENSIONS: Mapping[str, str] = MappingProxyType({})


class Step(NamedTuple):
    """One command: its line, seconds for its reply, what is to be noted of it, and the 3xx reply that it may have."""

    line: bytes
    seconds: float
    note: Callable[[Reply], None]
    expected_3xx: int = 0


class CommandExchange:
    """The commands and replies of one connection. A reply that cannot be the answer ends it, since nobody knows then
    what the next one would answer; so does 421, behind which nothing comes."""

    __slots__ = (
        "accepted",
        "data_reply",
        "extensions",
        "hello",
        "lmtp",
        "open_transaction",
        "replies",
        "timeouts",
        "trace",
        "wire",
        "writing",
    )

    def __init__(self, wire: ClientTransport, timeouts: Timeouts, *, lmtp: bool) -> None:
        self.wire = wire
        self.timeouts = timeouts
        self.lmtp = lmtp
        #: The reply to the last EHLO, HELO or LHLO that was accepted.
        self.hello: Reply | None = None
        #: What it offers.
        self.extensions = NO_EXTENSIONS
        #: MAIL was said, and the transaction has not come to its end.
        self.open_transaction = False
        #: Recipients that were accepted: so many replies LMTP has to a message.
        self.accepted = 0
        #: What DATA was answered, until the message has been dealt with.
        self.data_reply: Reply | None = None
        #: A message is being written.
        self.writing = False
        #: The replies to the last message.
        self.replies: tuple[Reply, ...] = ()
        #: Is given each line of the dialogue, without secrets; see ``SMTPClient.trace``.
        self.trace: Callable[[str], object] | None = None

    # Commands

    @property
    def message_expected(self) -> bool:
        """The peer waits for a message: whatever is sent would be its text."""
        return self.data_reply is not None and self.data_reply.code == 354

    def check_ready(self) -> None:
        """A command can be said.

        :raises ProtocolError: the peer waits for a message.
        """
        if self.message_expected and not self.wire.closed:
            raise ProtocolError("the peer waits for a message: call message(), or close()")

    def ask(self, line: bytes, seconds: float, expected_3xx: int = 0) -> Reply:
        """Say one command, and give its reply.

        :param expected_3xx: the 3xx code that may answer it.
        :raises PeerProtocolError: another one does.
        """
        if self.data_reply is not None:
            self.check_ready()
        wire = self.wire
        wire.check_silence()
        secret = expected_3xx == AUTH_CONTINUES
        if self.trace is not None:
            self._trace_lines([line], secret=secret)
        reply = wire.exchange(line, 1, seconds, seconds)[0]
        if secret:
            reply = _without_echo(reply, line)
        if self.trace is not None:
            self._trace_replies([reply], secret=secret)
        if 300 <= reply.code < 400 and reply.code != expected_3xx:
            raise self.broken(f"the command was answered {reply}")
        if reply.code == 421:
            wire.close()
        return reply

    def ask_lines(self, lines: Sequence[bytes], while_waiting: Callable[[], object] | None = None) -> list[Reply]:
        """Say several in one write; their replies, in order. Where 421 is one of them, it answers all the rest.

        :param lines: the last may be DATA, and no other.
        :param while_waiting: see ``ClientTransport.exchange``.
        """
        if self.data_reply is not None:
            self.check_ready()
        wire, timeouts = self.wire, self.timeouts
        wire.check_silence()
        count = len(lines)
        with_data = lines[-1] == b"DATA\r\n"
        if self.trace is not None:
            self._trace_lines(lines)
        last_seconds = timeouts.data_start if with_data else timeouts.command
        if count <= MAX_GROUP:
            replies = wire.exchange(b"".join(lines), count, timeouts.command, last_seconds, while_waiting=while_waiting)
        else:
            replies = []
            for start in range(0, count, MAX_GROUP):
                group = lines[start : start + MAX_GROUP]
                replies += wire.exchange(b"".join(group), len(group), timeouts.command, last_seconds)
                if replies[-1].code == 421:
                    break
        if self.trace is not None:
            self._trace_replies(replies)
        if replies[-1].code == 421:
            wire.close()
            replies += [replies[-1]] * (count - len(replies))
        elif with_data:
            self._check_data(replies[-1])
        for reply in replies[:-1] if with_data else replies:
            if 300 <= reply.code < 400:
                raise self.broken(f"a command was answered {reply}")
        return replies

    def send_pipelined(self, steps: Sequence[Step]) -> list[Reply]:
        """The same for a group of steps, each of which notes its reply; one by one where there is no PIPELINING."""
        if "PIPELINING" in self.extensions:
            replies = self.ask_lines([step.line for step in steps])
        else:
            replies = []
            for step in steps:
                if replies and replies[-1].code == 421:
                    replies.append(replies[-1])
                else:
                    replies += self.ask_lines([step.line])
        for step, reply in zip(steps, replies, strict=True):
            step.note(reply)
        return replies

    def take(self, step: Step) -> Reply:
        """One step."""
        reply = self.ask(step.line, step.seconds, step.expected_3xx)
        step.note(reply)
        return reply

    # The steps of a transaction

    def mail(self, address: str, ext: Ext) -> Step:
        """MAIL."""
        return Step(command_builder.mail(address, ext), self.timeouts.command, self._note_mail)

    def rcpt(self, address: str, ext: Ext) -> Step:
        """RCPT."""
        return Step(command_builder.rcpt(address, ext), self.timeouts.command, self._note_rcpt)

    def reset(self) -> Step:
        """RSET."""
        return Step(b"RSET\r\n", self.timeouts.command, self._note_reset)

    def data(self) -> Step:
        """DATA."""
        return Step(b"DATA\r\n", self.timeouts.data_start, self._note_data, 354)

    def plain(self, verb: str, argument: str | None = None) -> Step:
        """A command that changes nothing."""
        return Step(command_builder.line(verb, argument), self.timeouts.command, _nothing)

    def _note_mail(self, reply: Reply) -> None:
        self.data_reply = None
        if reply.is_positive:
            self.open_transaction = True
            self.accepted = 0

    def _note_rcpt(self, reply: Reply) -> None:
        if reply.is_positive:
            self.accepted += 1

    def _note_reset(self, reply: Reply) -> None:
        if reply.is_positive:
            self.forget_transaction()

    def _note_data(self, reply: Reply) -> None:
        self._check_data(reply)
        self.data_reply = reply

    def _check_data(self, reply: Reply) -> None:
        if reply.code < 400 and reply.code != 354:
            raise self.broken(f"DATA was answered {reply}")

    def forget_transaction(self) -> None:
        """It has come to its end."""
        self.open_transaction = False
        self.accepted = 0
        self.data_reply = None
        self.writing = False

    # The message

    def send_body(self, data: bytes) -> None:
        """A piece of it, that is not the last."""
        if self.trace is not None:
            self.trace(f"> ({len(data)} bytes of the message)")
        self.wire.send(data, self.timeouts.data)

    def end_message(self, data: bytes) -> list[Reply]:
        """The last piece, and what is said to the message: one reply; in LMTP one for each recipient."""
        if self.trace is not None:
            self.trace(f"> ({len(data)} bytes of the message, and its end)")
        if len(data) > SEND_PIECE:
            self.wire.send(data[:-SEND_PIECE], self.timeouts.data)
            data = data[-SEND_PIECE:]
        return self._read_finals(data)

    def _read_finals(self, data: bytes) -> list[Reply]:
        """Fewer where 421 is one of them: it answers all the rest."""
        wire, seconds = self.wire, self.timeouts.final
        count = self.accepted if self.lmtp and self.accepted > 1 else 1
        replies = wire.exchange(data, count, seconds, seconds, ends_message=self.timeouts.data)
        if self.trace is not None:
            self._trace_replies(replies)
        for reply in replies:
            if 300 <= reply.code < 400:
                raise self.broken(f"a message was answered {reply}")
        wire.message_sent = False
        self.forget_transaction()
        if replies[-1].code == 421:
            wire.close()
            replies += [replies[-1]] * (count - len(replies))
        self.replies = tuple(replies)
        return replies

    def send_chunks(self, chunks: Sequence[bytes], *, last: bool) -> list[Reply]:
        """Some chunks, one behind the other. What is said to them: the first refusal alone; or, to the last chunk of a
        message, what ``end_message`` gives; or what is said to the last of these."""
        wire, timeouts = self.wire, self.timeouts
        final = len(chunks) - 1
        for number, chunk in enumerate(chunks):
            head = f"BDAT {len(chunk)}{' LAST' if last and number == final else ''}\r\n".encode()
            if self.trace is not None:
                self._trace_lines([head])
            if len(chunk) <= SMALL_CHUNK:
                wire.send(head + chunk, timeouts.data)
            else:
                wire.send(head, timeouts.command)
                wire.send(chunk, timeouts.data)
        wire.message_sent = last
        refusal: Reply | None = None
        reply: Reply | None = None
        for _ in chunks[: final if last else None]:
            reply = wire.reply(timeouts.command)
            if self.trace is not None:
                self._trace_replies([reply])
            if reply.is_intermediate:
                raise self.broken(f"BDAT was answered {reply}")
            if reply.code == 421:
                wire.message_sent = False
                wire.close()
                return [refusal or reply]
            if refusal is None and not reply.is_positive:
                refusal = reply
        if last:
            if refusal is not None:
                self.accepted = 0  # then LMTP answers the last chunk like any other
            replies = self._read_finals(b"")
            if refusal is None:
                return replies
            if replies[-1].is_positive:  # RFC 3030 section 2: it must not be
                raise self.broken(f"a chunk was answered {refusal}, and the message {replies[-1]}", after_content=True)
        said = refusal or reply
        assert said is not None
        return [said]

    def _trace_lines(self, lines: Sequence[bytes], *, secret: bool = False) -> None:
        """
        :param secret: of AUTH, only the mechanism is shown, and nothing of what answers a challenge.
        """
        assert self.trace is not None
        for line in lines:
            text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
            if secret:
                words = text.split(" ")
                text = " ".join([*words[:2], *["***"] * (len(words) > 2)]) if words[0] == "AUTH" else "***"
            self.trace(f"> {text}")

    def _trace_replies(self, replies: Sequence[Reply], *, secret: bool = False) -> None:
        assert self.trace is not None
        for reply in replies:
            for text in trace_lines(reply, secret=secret):
                self.trace(text)

    def broken(self, text: str, *, after_content: bool = False) -> PeerProtocolError:
        """Hang up; what is to be raised."""
        error = PeerProtocolError(text, after_content=after_content or self.wire.message_sent)
        self.wire.close(error)
        return error


def _without_echo(reply: Reply, line: bytes) -> Reply:
    """Return the reply without what it repeats of a line of AUTH: there are servers that quote what they do not know,
    and replies end up in logs."""
    words = line.decode().split()
    if len(words) == 2 or not words:  # AUTH and a mechanism alone, or an empty response
        return reply
    echo = re.compile(rf"{re.escape(words[-1][:ECHO])}[A-Za-z0-9+/=]*", re.IGNORECASE)
    if reply.code == AUTH_CONTINUES or len(words[-1]) < ECHO or not any(map(echo.search, reply.lines)):
        return reply
    return Reply(reply.code, *(echo.sub("***", text) for text in reply.lines), enhanced=reply.enhanced)


def trace_lines(reply: Reply, *, secret: bool = False) -> list[str]:
    """A reply as it came, a line each, behind ``< ``; of a challenge only its code."""
    if secret and reply.is_intermediate:
        return [f"< {reply.code} ***"]
    enhanced = f"{reply.enhanced} " if reply.enhanced else ""
    last = len(reply.lines) - 1
    return [f"< {reply.code}{'-' if number < last else ' '}{enhanced}{line}" for number, line in enumerate(reply.lines)]


def verdict(replies: Sequence[Reply]) -> Reply:
    """One of several: the first refusal, else the last."""
    return next((reply for reply in replies if reply.code >= 300), replies[-1])


def _nothing(reply: Reply) -> None:
    """Nothing is to be noted."""
