"""Dot-stuffing (RFC 5321 section 4.5.2): bodies of DATA in and out, over any cuts.

The rules of this file:

- Only CRLF.CRLF ends a body, or .CRLF at its very beginning. A line begins behind CRLF and nowhere else: a dot behind a
  bare CR or a bare LF is content. A server that sees an end where its client sees none can be made to smuggle mail.
- The decoder leaves bare CRs and bare LFs as they are (``content_checks`` decides about them). The encoders make each
  of them a CRLF, so what goes out has no CR without LF and no LF without CR.
- A piece that needs no change is returned, not copied. Most pieces have no dot to stuff.

How decoding works: at most two bytes are held back, ``.`` or ``.`` CR at the beginning of a line, since only the next
byte tells what they are. What else must be known of the pieces before is in two flags:

==================== =============== =========================================================
``_at_line_start``   ``_after_cr``   the last piece ended
==================== =============== =========================================================
True                 any             with CRLF, or is the beginning of the body
False                True            with CR: an LF as the next byte begins a line
False                False           within a line
==================== =============== =========================================================

Invariant: what ``feed`` has returned so far is the body up to there, whatever the cuts.
"""

from __future__ import annotations

import io
import re
from typing import Final

_CRLF_DOT: Final = b"\r\n."
_END: Final = b"\r\n.\r\n"

# A compiled pattern finds these in half the time that ``bytes.find`` takes: it skips to the first byte by memchr.
_search_dot: Final = re.compile(re.escape(_CRLF_DOT)).search
_search_end: Final = re.compile(re.escape(_END)).search


class DotDecoder:
    """Undoes dot-stuffing, and finds the end of a body. The rules are at the head of this file."""

    # One is made for each message, and most messages are one piece: the initial values belong to the class.
    _held = b""
    _at_line_start = True
    _after_cr = False
    #: The end has come.
    complete = False
    #: What came behind the end: the next commands.
    rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes from the client; return those of the body, perhaps none."""
        if self._held:
            data = self._held + data
            self._held = b""
        start = 0
        if self._at_line_start:
            line = 0
        elif self._after_cr and data.startswith(b"\n"):
            line = 1
        else:
            line = -1
        if line >= 0 and data.startswith(b".", line):
            if data.startswith(b".\r\n", line):
                self.complete = True
                self.rest = data[line + 3 :]
                return data[:line]
            if len(data) - line == 1 or data[line:] == b".\r":
                self._held = data[line:]
                self._at_line_start, self._after_cr = True, False
                return data[:line]
            if line:
                # An LF that ends a line, then a stuffed dot. This is rare: a cut must fall between CR and LF.
                data = data[:line] + data[line + 1 :]
            else:
                start = 1
        # Most messages are one piece, and its only CRLF before a dot is the end.
        if data.endswith(_END) and _search_dot(data, start, len(data) - 3) is None:
            self.complete = True
            return data[start:-3]
        # base64 has no dots, so one memchr is all that most pieces cost. (``in`` is slow: see command_loop.)
        found = _search_dot(data, start) if data.find(b".") >= 0 else None
        dot, end = -1, len(data)
        if found is not None:
            dot = found.start()
            found = _search_end(data, dot)
            if found is not None:
                end = found.start()
                self.complete = True
                self.rest = data[end + 5 :]
                return _unstuff(data, start, end + 2, dot)
            if data.endswith(_CRLF_DOT):
                end -= 1
            elif data.endswith(b"\r\n.\r"):
                end -= 2
            self._held = data[end:]
        if end > start:
            last = data[end - 1]
            self._at_line_start = last == 10 and (self._after_cr if end - start == 1 else data[end - 2] == 13)
            self._after_cr = last == 13
        return _unstuff(data, start, end, dot)


def _unstuff(data: bytes, start: int, end: int, dot: int) -> bytes:
    """Return data[start:end] without the dots behind CRLF; ``dot`` is the place of the first CRLF with one, or -1."""
    piece = data if start == 0 and end == len(data) else data[start:end]
    return piece.replace(_CRLF_DOT, b"\r\n") if 0 <= dot < end - 2 else piece


def with_crlf(data: bytes) -> bytes:
    """Make each bare CR and bare LF a CRLF; return bytes without any as they are, not copied."""
    # The C scanner behind universal newlines tells in one pass which kinds there are: see content_checks.
    scanner = io.IncrementalNewlineDecoder(None, translate=False)
    scanner.decode(data.decode("latin-1"), final=True)
    kinds = scanner.newlines
    if kinds is None or kinds == "\r\n":
        return data
    if kinds != "\n":
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.replace(b"\n", b"\r\n")


def stuffed(message: bytes) -> bytes:
    """Stuff the dots of a whole message of CRLF lines; return one without such dots unchanged, not copied."""
    if message.find(b".") >= 0:
        # (Searching backwards for two bytes is the fastest way to learn that there is nothing to replace.)
        if message.rfind(b"\n.") >= 0:
            message = message.replace(_CRLF_DOT, b"\r\n..")
        if message.startswith(b"."):
            message = b"." + message
    return message


class LineEncoder:
    """Makes each bare CR and bare LF of a body a CRLF, over any cuts. BDAT needs nothing else."""

    __slots__ = ("_after_cr", "_at_line_start")

    def __init__(self) -> None:
        self._after_cr = False
        self._at_line_start = True

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body; return them as they are sent."""
        if not data:
            return b""
        # A CR at the end is held back: an LF may follow, which belongs to it.
        if self._after_cr:
            data = b"\r" + data
        self._after_cr = data.endswith(b"\r")
        data = with_crlf(data[:-1] if self._after_cr else data)
        if data:
            self._at_line_start = data.endswith(b"\n")
        return data

    def finish(self) -> bytes:
        """Return what completes the last line: CRLF, or nothing."""
        return b"\r\n" if self._after_cr or not self._at_line_start else b""


class DotEncoder(LineEncoder):
    """Stuffs the dots of a body over any cuts, makes each bare CR and bare LF a CRLF, and ends it with CRLF.CRLF.

    A body that ends with CRLF gets no further empty line.
    """

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body; return them as they are sent."""
        begins_line = self._at_line_start
        lines = super().feed(data)
        stuffed = lines.replace(_CRLF_DOT, b"\r\n..") if lines.find(b".") >= 0 and lines.rfind(b"\n.") >= 0 else lines
        return b"." + stuffed if begins_line and lines.startswith(b".") else stuffed

    def finish(self) -> bytes:
        """Return the end of the body."""
        return super().finish() + b".\r\n"
