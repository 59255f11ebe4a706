"""Command lines out of a client's bytes (RFC 5321 sections 2.3.8, 4.5.3.1): bytes in, lines or refusals out.

The rules of this file:

- A line ends with CRLF and with nothing else. A bare LF makes the line bad, and is refused at once, since a client that
  ends its lines so may never send a CRLF.
- The rest of a bad line, up to its CRLF, is dropped. No part of it is ever a command: that is how mail is smuggled.
- A line that is too long is refused once, at its CRLF, so that the replies stay in step with the lines.
- The beginning of a TLS handshake or of an HTTP request is refused as ``canned.NOT_SMTP`` as soon as it can be told. A
  browser that is made to post to a mail port must not be answered line by line.
- A body is taken from the same buffer, byte for byte (``take``, ``unread``), since a client may pipeline it.

How it works: ``feed`` appends to ``_buffer``; the next line begins at ``_at``. Lines are cut out of the buffer without
moving the rest, so a batch of pipelined commands costs one ``find`` and one slice each. What is behind ``_at`` is
forgotten at the next ``feed``. While a bad line is being dropped, ``skipped`` counts its bytes:

=========== ================ ==========================================================
``skipped`` ``_skip_reply``  the next byte belongs to
=========== ================ ==========================================================
0           None             the beginning of a line
more        None             a line with a bare LF, which has been refused
more        a reply          a line that is too long, which gets this reply at its CRLF
=========== ================ ==========================================================

Invariants: ``0 <= _at <= len(_buffer)``. Between two calls of ``next_line`` that return None, the buffer holds at most
``line_limit`` bytes more than what was fed last. At most MAX_SKIPPED bytes of a bad line are dropped, and what was fed
last; a client that goes on gets ``canned.LINE_WITHOUT_END``.

The server's transport inherits from LineReader: a call for each line and each recv would cost more than the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from greensmtp.protocol import canned
from greensmtp.protocol.command import is_foreign
from greensmtp.protocol.reply import Reply

#: The first bytes of a TLS ClientHello.
TLS_HANDSHAKE: Final = b"\x16\x03"

#: Bytes of a bad line that are dropped in search of its CRLF.
MAX_SKIPPED: Final = 1024 * 1024

#: Bytes below which no line is too long, whatever its verb, so that short lines need no look at theirs.
ALWAYS_ALLOWED: Final = 64


class BadLine(Exception):
    """The client sent a line that cannot be a command; ``reply`` refuses it.

    The reader goes on behind the line's CRLF, except after ``canned.NOT_SMTP`` and ``canned.LINE_WITHOUT_END``: the
    connection must be closed then.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    @property
    def is_foreign(self) -> bool:
        """True if the client speaks another protocol: TLS or HTTP."""
        return self.reply is canned.NOT_SMTP


class LineReader:
    """Cuts a client's bytes into command lines, whatever the pieces in which they come.

    :param max_length: verb in upper case -> bytes in its longest line, CRLF included.
    :param line_limit: the greatest of these.
    """

    __slots__ = ("_at", "_buffer", "_line_limit", "_max_length", "_skip_reply", "skipped")

    def __init__(self, max_length: Callable[[str], int], line_limit: int) -> None:
        self._max_length = max_length
        self._line_limit = line_limit
        self._buffer = b""
        self._at = 0
        #: Bytes dropped of a bad line whose CRLF has not come; 0 while there is none.
        self.skipped = 0
        self._skip_reply: Reply | None = None

    def feed(self, data: bytes) -> None:
        """Append bytes from the client."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def next_line(self, max_length: int | None = None, data: bytes = b"") -> bytes | None:
        """Return the next line without its CRLF, or None if no whole line has come.

        :param max_length: bytes that the line may have, CRLF included; None: as many as its verb allows.
        :param data: bytes from the client, appended first: this saves the server a call of ``feed`` for each recv.
        :raises BadLine: the line has a bare LF or is too long, or this is not SMTP.
        """
        at = self._at
        if data:
            self._buffer = self._buffer[at:] + data if at < len(self._buffer) else data
            self._at = at = 0
        if self.skipped:
            if not self._skip_line():
                return None
            at = self._at
        buffer = self._buffer
        end = buffer.find(b"\n", at)
        if end < 0:
            if len(buffer) - at > self._line_limit:
                self._skip_long_line()
            elif buffer and buffer.startswith(TLS_HANDSHAKE, at):
                raise BadLine(canned.NOT_SMTP)  # a handshake has no lines to wait for
            return None
        if end == at or buffer[end - 1] != 13:
            if end - at > self._line_limit:  # refused for what is wrong with it first, as if the LF had not come yet
                self._skip_long_line()
                return None
            self._at = end + 1
            self.skipped = self._at - at
            self._skip_reply = None
            raise BadLine(self._refusal(at, end, canned.BARE_NEWLINE))
        self._at = end + 1
        line = buffer[at : end - 1]
        if end - at >= ALWAYS_ALLOWED and end - at + 1 > (
            max_length or self._max_length(line[:8].split(b" ", 1)[0].decode("latin-1").upper())
        ):
            raise BadLine(self._refusal(at, end, canned.LINE_TOO_LONG))
        return line

    @property
    def awaits_crlf(self) -> bool:
        """True if a line with a bare LF has been refused, and its CRLF has not come."""
        return self.skipped > 0 and self._skip_reply is None

    def take(self, size: int) -> bytes:
        """Remove up to ``size`` bytes from the buffer and return them; ``b""`` if it is empty."""
        at = self._at
        data = self._buffer
        if at or len(data) > size:
            data = data[at : at + size]
        at += len(data)
        if at == len(self._buffer):
            self._buffer = b""
            at = 0
        self._at = at
        return data

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of the buffer: those that followed the end of a body."""
        if data:
            self._buffer = data + self._buffer[self._at :]
            self._at = 0

    def clear(self) -> None:
        """Forget everything that has come, the beginning of a line too."""
        self._buffer = b""
        self._at = self.skipped = 0

    def _refusal(self, start: int, end: int, reply: Reply) -> Reply:
        """Return the reply to a bad line: NOT_SMTP for another protocol's first line, however that is malformed."""
        return canned.NOT_SMTP if is_foreign(self._buffer[start:end]) else reply

    def _skip_long_line(self) -> None:
        """Drop a line that is too long already, up to its CRLF, and refuse it then.

        :raises BadLine: the CRLF has come, or this is not SMTP.
        """
        reply = self._refusal(self._at, len(self._buffer), canned.LINE_TOO_LONG)
        if reply is canned.NOT_SMTP:
            raise BadLine(reply)
        self._skip_reply = reply
        self._skip_line()

    def _skip_line(self) -> bool:
        """Drop a bad line up to its CRLF; return False if that has not come.

        :raises BadLine: it has come, and the line has not been refused yet; or too many bytes came without it.
        """
        end = self._buffer.find(b"\r\n", self._at)
        if end >= 0:
            self._at = end + 2
            self.skipped = 0
            if self._skip_reply is not None:
                raise BadLine(self._skip_reply)
            return True
        keep = 1 if self._buffer.endswith(b"\r") else 0
        self.skipped += len(self._buffer) - self._at
        self._buffer = self._buffer[len(self._buffer) - keep :]
        self._at = 0
        if self.skipped > MAX_SKIPPED:
            raise BadLine(canned.LINE_WITHOUT_END)
        return False
