"""Replies as a client reads them (RFC 5321 section 4.2): bytes in, Reply objects out, or ReplySyntaxError.

The rules of this file:

- A line ends with CRLF and nothing else, and all lines of a reply have the same code.
- Lines, lines in a reply, and bytes in a reply are bounded. A hostile server costs bounded memory.
- A syntax error is final: it cannot be known where the next reply would begin.
- Text is decoded as UTF-8 and stripped of control characters, since it ends up in logs and on terminals.
- A Reply is immutable, so equal bytes share one object: servers say the same few lines to each message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from greensmtp.protocol import enhanced_status
from greensmtp.protocol.errors import ReplySyntaxError
from greensmtp.protocol.reply import Reply

#: Bytes in the longest line, CRLF included. RFC 5321 section 4.5.3.1.5 says 512, which real servers exceed. A challenge
#: of AUTH may have 12,288 (RFC 4954 section 4).
MAX_LINE = 12_288
#: Lines and bytes in one reply. A reply to EHLO with every extension has forty lines, a long HELP a few more.
MAX_LINES = 512
MAX_BYTES = 64 * 1024

#: Bytes of replies that are cached as one. The replies to one message are mostly those to the next.
MAX_BATCH = 512

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\r\n\x00]*))?")
#: The first four bytes of a line, as far as they have come.
_BEGINNING = re.compile(rb"(?:[2-5](?:[0-9](?:[0-9](?:[ \-\r].*)?)?)?)?", re.DOTALL)
#: With the separators of lines and what turns the direction of text, so that no reply looks like another line.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class ReplyParser:
    """Cuts a server's bytes into replies, whatever the pieces in which they come."""

    __slots__ = ("_at", "_buffer", "_code", "_size", "_texts", "broken", "pending", "ready")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        #: Replies that were parsed and not asked for yet. They came before what is in the buffer.
        self.ready: tuple[Reply, ...] = ()
        #: True if bytes have come that have not been returned as a reply.
        self.pending = False
        #: Of a reply of several lines that has begun: its code, the texts of its lines, and their bytes.
        self._code = b""
        self._texts: list[str] = []
        self._size = 0
        #: The error, once one was raised. Each later call raises it again.
        self.broken: ReplySyntaxError | None = None

    def feed(self, data: bytes) -> None:
        """Append bytes from the server."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        self.pending = self.pending or bool(data)

    def read(self, data: bytes, count: int) -> Sequence[Reply]:
        """Do as ``feed`` and ``next_replies`` do, at once: the replies to a group of commands mostly come in one piece.

        :raises ReplySyntaxError: the server has sent something else among them.
        """
        if not self.pending and len(data) <= MAX_BATCH and self.broken is None:
            batch = _read_batch(data)
            if batch is not None:
                if len(batch) <= count:
                    return batch
                self.ready = batch[count:]
                self.pending = True
                return batch[:count]
        self.feed(data)
        return self.next_replies(count)

    def next_reply(self) -> Reply | None:
        """Return the next reply, or None if no whole reply has come.

        :raises ReplySyntaxError: the server has sent something else.
        """
        replies = self.next_replies(1)
        return replies[0] if replies else None

    def next_replies(self, count: int) -> list[Reply]:
        """Return the whole replies that have come, at most ``count``.

        :raises ReplySyntaxError: the server has sent something else among them.
        """
        if self.broken is not None:
            raise self.broken
        replies: list[Reply] = []
        if self.ready:
            replies += self.ready[:count]
            self.ready = self.ready[count:]
            count -= len(replies)
            if not count:
                self.pending = bool(self.ready or self._buffer)
                return replies
        buffer = self._buffer
        at = self._at
        while count:
            end = buffer.find(b"\n", at)
            if end < 0:
                if at < len(buffer):
                    self._check_beginning(buffer[at:])
                break
            if end - at >= MAX_LINE:
                raise self._break("expected a shorter reply line than", MAX_LINE)
            if end == at or buffer[end - 1] != 13:
                raise self._break("expected a reply line that ends with CRLF, got", buffer[at : end + 1])
            line = buffer[at : end - 1]
            at = end + 1
            if self._texts or line[3:4] == b"-":
                if self._add_line(line):
                    replies.append(self._finish())
                    count -= 1
                continue
            reply = _read_single(line)
            if reply is None:
                raise self._break("expected a reply line, got", line)
            replies.append(reply)
            count -= 1
        if at < len(buffer):
            self._at = at
        else:
            self._buffer, self._at = b"", 0
        self.pending = bool(self._buffer or self._texts)
        return replies

    def _add_line(self, line: bytes) -> bool:
        """Add a line to a reply of several lines; return True if it is the last."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise self._break("expected a reply line, got", line)
        if not self._texts:
            self._code = match[1]
        elif match[1] != self._code:
            raise self._break(f"expected another line with code {self._code.decode()}, got", line)
        self._texts.append(_decode(match[3] or b""))
        self._size += len(line)
        if len(self._texts) > MAX_LINES or self._size > MAX_BYTES:
            raise self._break("reply without end, of more than", self._size)
        return match[2] != b"-"

    def _finish(self) -> Reply:
        texts, self._texts, self._size = self._texts, [], 0
        return _make(int(self._code), texts)

    def _check_beginning(self, rest: bytes) -> None:
        """Check the part of a line that has come: it may be too long or malformed already."""
        if len(rest) >= MAX_LINE:
            raise self._break("expected a shorter reply line than", MAX_LINE)
        if not _BEGINNING.fullmatch(rest[:4]):
            raise self._break("expected a reply line, got", rest)

    def _break(self, what: str, seen: bytes | int) -> ReplySyntaxError:
        shown = f"{seen} bytes" if isinstance(seen, int) else repr(seen[:80])
        self._buffer = b""
        self._at = 0
        self.broken = ReplySyntaxError(f"{what} {shown}")
        return self.broken


@lru_cache(maxsize=256)
def _read_batch(data: bytes) -> tuple[Reply, ...] | None:
    """Return replies of one line each, or None if the bytes are anything else."""
    *lines, rest = data.split(b"\r\n")
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
    """Return a reply of one line, or None if it is malformed."""
    match = _LINE.fullmatch(line)
    return None if match is None else _make(int(match[1]), [_decode(match[3] or b"")])


def _make(code: int, texts: list[str]) -> Reply:
    """Make a reply, with the enhanced code of its text; one of another class is text (RFC 3463 section 2)."""
    found = enhanced_status.LEADING.match(texts[0])
    if found is None or found[1][0] != str(code)[0]:
        return Reply(code, *texts, enhanced=None)
    return Reply(code, *(enhanced_status.LEADING.sub("", text, count=1) for text in texts), enhanced=found[1])


def _decode(text: bytes) -> str:
    """Decode the text of a line, which may be UTF-8 (RFC 6531 section 3.7.4)."""
    if text.isascii():
        decoded = text.decode("ascii")
        return decoded if decoded.isprintable() else _UNPRINTABLE.sub("\ufffd", decoded)
    return _UNPRINTABLE.sub("\ufffd", text.decode("utf-8", "replace"))
