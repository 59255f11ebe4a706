"""Replies as a client reads them (RFC 5321 section 4.2): octets in, Reply objects out, whatever the octets are."""

from __future__ import annotations

import re
from functools import lru_cache

from greensmtp.protocol import enhanced_status as enhanced_codes
from greensmtp.protocol.errors import ReplySyntaxError
from greensmtp.protocol.reply import Reply

#: Octets in the longest line, CRLF included. RFC 5321 section 4.5.3.1.5 says 512, which real servers exceed;
#: a challenge of AUTH may have 12,288 (RFC 4954 section 4).
MAX_LINE = 12_288
#: Lines and octets in one reply: an EHLO with every extension there is has forty lines, a wordy HELP a few more.
MAX_LINES = 512
MAX_OCTETS = 64 * 1024

#: Octets of replies that are looked at together. What a server says to one message it says to the next.
MAX_BATCH = 512

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\r\n\x00]*))?")
#: How a reply line begins, for the part of one that has come.
_BEGINNING = re.compile(rb"(?:[2-5](?:[0-9](?:[0-9](?:[ \-\r].*)?)?)?)?", re.DOTALL)
#: With the separators of lines and what turns the direction of text, so that no reply looks like another line.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class ReplyParser:
    """Takes replies out of a stream, over any cuts of it.

    A line ends with CRLF and nothing else, a reply has one code, and there is a bound to everything: what does not
    keep to that raises, and goes on raising, since nobody knows where the next reply would begin.
    """

    __slots__ = ("_at", "_buffer", "_code", "_octets", "_texts", "broken")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        #: Of the reply that is being read: its code, the texts of its lines, and the octets of them.
        self._code = b""
        self._texts: list[str] = []
        self._octets = 0
        #: What was raised.
        self.broken: ReplySyntaxError | None = None

    @property
    def pending(self) -> bool:
        """Octets have come that no reply has been made of."""
        return self._at < len(self._buffer) or bool(self._texts)

    def feed(self, data: bytes) -> None:
        """Take the next octets off the wire."""
        at = self._at
        self._buffer = self._buffer[at:] + data if at < len(self._buffer) else data
        self._at = 0

    def next_reply(self) -> Reply | None:
        """The next reply that has come as a whole; None: there is none yet.

        :raises ReplySyntaxError: that is no reply.
        """
        replies = self.next_replies(1)
        return replies[0] if replies else None

    def next_replies(self, count: int) -> list[Reply]:
        """The next replies that have come as a whole, up to so many.

        :raises ReplySyntaxError: one of them is no reply.
        """
        if self.broken is not None:
            raise self.broken
        buffer = self._buffer
        at = self._at
        if not at and len(buffer) <= MAX_BATCH and not self._texts:
            batch = _read_batch(buffer)
            if batch is not None and len(batch) <= count:
                self._buffer = b""
                return list(batch)
        replies: list[Reply] = []
        while count:
            end = buffer.find(b"\n", at)
            if end < 0:
                if at < len(buffer):
                    self._check_beginning(buffer[at:])
                break
            if end - at >= MAX_LINE:
                raise self._break("a reply line of more than", MAX_LINE)
            if end == at or buffer[end - 1] != 13:
                raise self._break("a reply line without CRLF:", buffer[at : end + 1])
            line = buffer[at : end - 1]
            at = end + 1
            if self._texts or line[3:4] == b"-":
                if self._add_line(line):
                    replies.append(self._finish())
                    count -= 1
                continue
            reply = _read_single(line)
            if reply is None:
                raise self._break("not a reply line:", line)
            replies.append(reply)
            count -= 1
        self._at = at
        return replies

    def _add_line(self, line: bytes) -> bool:
        """A line of a reply that has several; True: the last."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise self._break("not a reply line:", line)
        if not self._texts:
            self._code = match[1]
        elif match[1] != self._code:
            raise self._break(f"the code changes from {self._code.decode()} within a reply:", line)
        self._texts.append(_decode(match[3] or b""))
        self._octets += len(line)
        if len(self._texts) > MAX_LINES or self._octets > MAX_OCTETS:
            raise self._break("a reply without end, of more than", self._octets)
        return match[2] != b"-"

    def _finish(self) -> Reply:
        texts, self._texts, self._octets = self._texts, [], 0
        return _make(int(self._code), texts)

    def _check_beginning(self, rest: bytes) -> None:
        """The part of a line that has come: too long, or junk, is known before its end."""
        if len(rest) >= MAX_LINE:
            raise self._break("a reply line of more than", MAX_LINE)
        if not _BEGINNING.fullmatch(rest[:4]):
            raise self._break("not a reply line:", rest)

    def _break(self, what: str, seen: bytes | int) -> ReplySyntaxError:
        shown = f"{seen} octets" if isinstance(seen, int) else repr(seen[:80])
        self._buffer = b""
        self._at = 0
        self.broken = ReplySyntaxError(f"{what} {shown}")
        return self.broken


@lru_cache(maxsize=256)
def _read_batch(octets: bytes) -> tuple[Reply, ...] | None:
    """Whole replies, each of one line, and nothing else; None: it is not as simple as that."""
    *lines, rest = octets.split(b"\r\n")
    if rest:
        return None
    replies = []
    for line in lines:
        reply = None if line[3:4] == b"-" else _read_single(line)
        if reply is None:
            return None
        replies.append(reply)
    return tuple(replies)


@lru_cache(maxsize=256)
def _read_single(line: bytes) -> Reply | None:
    """A reply of one line. Most are what the same server said before: a Reply is immutable, so it may be shared."""
    match = _LINE.fullmatch(line)
    return None if match is None else _make(int(match[1]), [_decode(match[3] or b"")])


def _make(code: int, texts: list[str]) -> Reply:
    """Take the enhanced code off the lines; one of another class than the reply's is text (RFC 3463 section 2)."""
    found = enhanced_codes.LEADING.match(texts[0])
    if found is None or found[1][0] != str(code)[0]:
        return Reply(code, *texts, enhanced=None)
    return Reply(code, *(enhanced_codes.LEADING.sub("", text, count=1) for text in texts), enhanced=found[1])


def _decode(text: bytes) -> str:
    """Replies may be UTF-8 (RFC 6531 section 3.7.4); what they hold ends up in logs and on terminals."""
    if text.isascii():
        decoded = text.decode("ascii")
        return decoded if decoded.isprintable() else _UNPRINTABLE.sub("\ufffd", decoded)
    return _UNPRINTABLE.sub("\ufffd", text.decode("utf-8", "replace"))
