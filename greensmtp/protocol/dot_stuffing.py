"""Dot transparency (RFC 5321 section 4.5.2): a body's lines that begin with a dot, and the dot that ends it."""

from __future__ import annotations

import io
import re

_CRLF_DOT = b"\r\n."
_END = b"\r\n.\r\n"

# A compiled pattern finds these in half the time that ``bytes.find`` takes: it skips to the first octet by memchr.
_search_dot = re.compile(re.escape(_CRLF_DOT)).search
_search_end = re.compile(re.escape(_END)).search


class DotDecoder:
    """Undoes dot-stuffing over any cuts of the input, and finds the one thing that ends data: CRLF.CRLF.

    A dot is looked at only where a line begins, and a line begins only after CRLF: a lone dot between bare CRs or
    LFs is content. What cannot be told yet (``.`` or ``.`` CR at the end of a piece) is held back; nothing
    else is, so at most two octets are buffered. A piece without a stuffed dot is handed on as it is, not copied.
    """

    # One is made for every message, and most are over with the first piece: what they start with belongs to the class.
    _held = b""
    _at_line_start = True
    _after_cr = False
    #: CRLF.CRLF has been seen.
    complete = False
    #: What came behind it: the next commands.
    rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next octets off the wire, give what they are of the body (perhaps nothing)."""
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
                return self._finish(data[:line], data[line + 3 :])
            if len(data) - line == 1 or data[line:] == b".\r":
                self._held = data[line:]
                self._at_line_start, self._after_cr = True, False
                return data[:line]
            if line:
                # The LF that ended the line, then a stuffed dot: rare, as a cut must fall between CR and LF.
                data = data[:line] + data[line + 1 :]
            else:
                start = 1
        # One memchr tells for most pieces (base64 has no dots) that there is nothing to look for.
        found = _search_dot(data, start) if b"." in data else None
        dot, end = -1, len(data)
        if found is not None:
            dot = found.start()
            found = _search_end(data, dot)
            if found is not None:
                end = found.start()
                return self._finish(_unstuff(data, start, end + 2, dot), data[end + 5 :])
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

    def _finish(self, body: bytes, rest: bytes) -> bytes:
        self.complete = True
        self.rest = rest
        return body


def _unstuff(data: bytes, start: int, end: int, dot: int) -> bytes:
    """data[start:end], without the dots that follow CRLF; ``dot`` is where the first of them is, if there is one."""
    piece = data if start == 0 and end == len(data) else data[start:end]
    return piece.replace(_CRLF_DOT, b"\r\n") if 0 <= dot < end - 2 else piece


def with_crlf(data: bytes) -> bytes:
    """Make every bare CR and bare LF a CRLF; what has none is given back as it is, not copied."""
    # The C scanner behind universal newlines tells in one pass which kinds there are: see body.NoBareNewlines.
    scanner = io.IncrementalNewlineDecoder(None, translate=False)
    scanner.decode(data.decode("latin-1"), final=True)
    kinds = scanner.newlines
    if kinds is None or kinds == "\r\n":
        return data
    if kinds != "\n":
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.replace(b"\n", b"\r\n")


def stuffed(message: bytes) -> bytes:
    """A whole message of CRLF lines, dot-stuffed; what has no dots to stuff is given back as it is, not copied."""
    if b"." in message:
        # (A search from behind, for its first octet, is the faster way to learn that there is nothing to replace.)
        if message.rfind(b"\n.") >= 0:
            message = message.replace(_CRLF_DOT, b"\r\n..")
        if message.startswith(b"."):
            message = b"." + message
    return message


class LineEncoder:
    """Makes every bare CR and bare LF a CRLF over any cuts of a body, for BDAT, which needs nothing else."""

    __slots__ = ("_after_cr", "_at_line_start")

    def __init__(self) -> None:
        self._after_cr = False
        self._at_line_start = True

    def feed(self, data: bytes) -> bytes:
        """The next octets of the body, as they go over the wire."""
        if not data:
            return b""
        # A CR at the end waits for what follows: an LF belongs to it.
        if self._after_cr:
            data = b"\r" + data
        self._after_cr = data.endswith(b"\r")
        data = with_crlf(data[:-1] if self._after_cr else data)
        if data:
            self._at_line_start = data.endswith(b"\n")
        return data

    def finish(self) -> bytes:
        """What the last line needs."""
        return b"\r\n" if self._after_cr or not self._at_line_start else b""


class DotEncoder(LineEncoder):
    """Dot-stuffs a body over any cuts, makes every bare CR and bare LF a CRLF, and ends it with CRLF.CRLF.

    No further empty line is added to a body that ends in CRLF already. What goes out can smuggle nothing: no
    CR without LF, no LF without CR.
    """

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        """The next octets of the body, as they go over the wire."""
        begins_line = self._at_line_start
        lines = super().feed(data)
        stuffed = lines.replace(_CRLF_DOT, b"\r\n..") if b"." in lines and lines.rfind(b"\n.") >= 0 else lines
        return b"." + stuffed if begins_line and lines.startswith(b".") else stuffed

    def finish(self) -> bytes:
        """What ends the body."""
        return super().finish() + b".\r\n"
