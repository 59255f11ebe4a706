"""The server's side of SMTP and LMTP without a socket: bytes in, events out; replies in, bytes out.

::

    protocol = ServerProtocol()
    peer.write(protocol.send(Reply(220, "mx.example.com ESMTP", enhanced=None)))
    protocol.receive(peer.read())
    while (event := protocol.next_event()) is not None:
        ...                                     # a Command, Response, Data, EndOfChunk or EndOfData
        peer.write(protocol.send(reply))        # for every event but Data and an accepted BDAT

The rules of this file:

- What the next bytes are depends on the reply to the last command: behind DATA they are a body only if the reply was
  354, behind AUTH a response only if it was 334. So every event but Data is answered, by ``send``, before the next one
  is given. Bytes that come meanwhile wait in the buffer.
- The bytes of a chunk follow BDAT whatever the reply is. A BDAT is refused at once, and its bytes are dropped; or it is
  not answered, and its bytes come as Data, up to an EndOfChunk or an EndOfData, which is answered.
- A malformed line is a Command too; its ``error`` is the reply that it should get.

gevent's server does not run on this class: it reads a body only as fast as its handler does, and asks for no event
objects. It is made of the same parts (LineReader, DotDecoder, ChunkDecoder, ``parse_command``, the table of states).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from greensmtp.protocol import canned
from greensmtp.protocol.chunking import ChunkDecoder
from greensmtp.protocol.command import (
    CONNECT,
    END_OF_DATA,
    UNKNOWN,
    ChunkCommand,
    Command,
    EndOfData,
    is_foreign,
    parse_command,
)
from greensmtp.protocol.dot_stuffing import DotDecoder
from greensmtp.protocol.line_reader import BadLine, LineReader
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import REFUSALS, State

#: Bytes in a command line, CRLF included: RFC 5321 section 4.5.3.1.4, with room for the usual extensions.
MAX_COMMAND = 1024
#: Bytes in a response to a SASL challenge (RFC 4954 section 4).
MAX_RESPONSE = 12_288
#: Bytes of a body in one Data.
MAX_DATA = 64 * 1024


class Data(NamedTuple):
    """The next bytes of a body, without dot-stuffing and without its end. Not to be answered."""

    content: bytes


class EndOfChunk(NamedTuple):
    """All bytes of a BDAT command have come, and it was not the last one."""


class Response(NamedTuple):
    """The client's answer to a 334 challenge: the line, still in base64, or ``*``."""

    line: bytes


Event = Command | Response | Data | EndOfChunk | EndOfData


class _Next(Enum):
    """What the next bytes are."""

    COMMAND = "a command"
    RESPONSE = "a response to a challenge"
    BODY = "a body that ends with CRLF.CRLF"
    CHUNK = "the bytes of a chunk"
    REFUSED_CHUNK = "the bytes of a chunk that has been refused"
    NOTHING = "nothing: the connection is over"


class ServerProtocol:
    """One connection, from its banner on."""

    def __init__(self, *, lmtp: bool = False, max_command: int = MAX_COMMAND) -> None:
        self._lmtp = lmtp
        self._reader = LineReader(lambda verb: max_command, max(max_command, MAX_RESPONSE))
        self._dots = DotDecoder()
        self._chunks = ChunkDecoder()
        self._next = _Next.COMMAND
        #: The verb to be answered, and how many replies it gets. The server speaks first.
        self._verb = CONNECT
        self._owed = 1
        #: The last event was a BDAT, which may be refused.
        self._may_refuse = False
        #: Where the session stands, as the replies have it.
        self.state = State.CONNECTED
        #: Recipients that have been accepted in this transaction.
        self.recipients = 0

    @property
    def is_closed(self) -> bool:
        """True if a reply has ended the connection (221, 421, or 4xx and 5xx as the banner)."""
        return self._next is _Next.NOTHING

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._reader.feed(data)

    def next_event(self) -> Event | None:
        """Return what the client has said next, or None if it has not come as a whole.

        :raises RuntimeError: the last event has not been answered.
        """
        if self.is_closed:
            return None
        if self._owed:
            raise RuntimeError(f"send() the reply to {self._verb} before the next event")
        self._may_refuse = False
        if self._next is _Next.BODY:
            return self._next_of_body()
        if self._next is _Next.CHUNK:
            return self._next_of_chunk()
        if self._next is _Next.REFUSED_CHUNK:
            self._chunks.feed(self._reader.take(self._chunks.left))
            if self._chunks.left:
                return None
            self._next = _Next.COMMAND
        return self._next_line()

    def refusal(self, command: Command) -> Reply | None:
        """Return the reply to a command that is malformed or out of order (RFC 5321 section 4.1.4), else None."""
        return command.error or REFUSALS.get(command.verb, {}).get(self.state)

    def send(self, reply: Reply) -> bytes:
        """Answer the last event; return the bytes for the client.

        LMTP: the end of a body is answered once for each accepted recipient (RFC 2033 section 4.2).

        :raises RuntimeError: there is no event to be answered, or a BDAT was accepted before its bytes have come.
        """
        if self._may_refuse:
            if reply.is_positive:
                raise RuntimeError("a chunk is accepted at its end: go on with next_event()")
            self._may_refuse = False
            self._refuse_chunk()
        elif self._owed:
            self._owed -= 1
            self._take_effect(self._verb, reply)
        else:
            raise RuntimeError("there is no event to be answered: next_event() comes first")
        if reply.ends_connection or (self._verb == CONNECT and not reply.is_positive):
            self._next = _Next.NOTHING
        return reply.encode()

    def _take_effect(self, verb: str, reply: Reply) -> None:
        """Note what a reply says about the state and about the next bytes."""
        self._next = _Next.COMMAND
        if verb == END_OF_DATA:
            if not self._owed:
                self._reset(State.GREETED)
        elif verb == "BDAT" and self.state >= State.RECIPIENTS:
            if reply.is_positive:
                self.state = State.CHUNKS
            else:
                self._reset(State.GREETED)
        elif reply.is_intermediate:
            if verb == "DATA":
                self._next, self._dots = _Next.BODY, DotDecoder()
            elif verb == "AUTH":
                self._next = _Next.RESPONSE
        elif not reply.is_positive:
            return
        elif verb in ("HELO", "EHLO", "LHLO"):
            self._reset(State.GREETED)
        elif verb == "RSET":
            self._reset(min(self.state, State.GREETED))
        elif verb == "MAIL":
            self.state = State.SENDER
        elif verb == "RCPT":
            self.state = State.RECIPIENTS
            self.recipients += 1
        elif verb == "STARTTLS":
            self._reader.clear()  # RFC 3207 section 5: nothing that came in the clear counts
            self._reset(State.CONNECTED)

    def _reset(self, state: State) -> None:
        self.state = state
        self.recipients = 0

    def _refuse_chunk(self) -> None:
        """Drop the bytes of a chunk, and the transaction, of which it was a part (RFC 3030 section 2)."""
        self._next = _Next.REFUSED_CHUNK
        self._verb = "BDAT"
        if self.state > State.SENDER:
            self._reset(State.GREETED)

    def _next_line(self) -> Event | None:
        is_response = self._next is _Next.RESPONSE
        try:
            line = self._reader.next_line(MAX_RESPONSE if is_response else None)
        except BadLine as bad:
            return self._ask("AUTH" if is_response else UNKNOWN, Command(UNKNOWN, "", bad.reply))
        if line is None:
            return None
        if is_response:
            return self._ask("AUTH", Response(line))
        command = parse_command(line)
        if is_foreign(line):
            command = Command(UNKNOWN, "", canned.NOT_SMTP)
        if isinstance(command, ChunkCommand) and command.error is None:
            self._chunks.begin(command.size, command.last)
            self._next = _Next.CHUNK
            self._may_refuse = True
            return command
        return self._ask(command.verb, command)

    def _next_of_body(self) -> Event | None:
        dots = self._dots
        if dots.complete:
            return self._end_of_data()
        data = self._reader.take(MAX_DATA)
        if not data:
            return None
        content = dots.feed(data)
        self._reader.unread(dots.rest)
        return Data(content) if content else self._next_of_body()

    def _next_of_chunk(self) -> Event | None:
        chunks = self._chunks
        if chunks.left:
            data = self._reader.take(min(chunks.left, MAX_DATA))
            return Data(chunks.feed(data)) if data else None
        if chunks.last:
            return self._end_of_data()
        return self._ask("BDAT", EndOfChunk())

    def _end_of_data(self) -> EndOfData:
        self._verb = END_OF_DATA
        self._owed = max(self.recipients, 1) if self._lmtp else 1
        return EndOfData()

    def _ask(self, verb: str, event: Event) -> Event:
        self._verb, self._owed = verb, 1
        return event
