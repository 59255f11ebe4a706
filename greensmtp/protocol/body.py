"""What a body's octets are checked for while they flow (RFC 5321 sections 2.3.8, 4.5.3.1.6)."""

from __future__ import annotations

import io

from greensmtp.protocol import standard
from greensmtp.protocol.replies import Reply


class NoBareNewlines:
    """Finds a CR without LF, or an LF without CR, over any cuts of the body.

    The work is done by the C scanner behind universal newlines, which notes every kind of line end that it meets:
    one pass, where three counts of CR, LF and CRLF cost more than twice as much, in a small body too.
    """

    _scanner: io.IncrementalNewlineDecoder | None = None

    def __call__(self, chunk: bytes) -> Reply | None:
        scanner = self._scanner
        if scanner is None:
            scanner = self._scanner = io.IncrementalNewlineDecoder(None, translate=False)
        # Latin-1 is one octet, one character: a copy, not a decoding. With no decoder of its own, the scanner
        # takes text, which typeshed does not know.
        scanner.decode(chunk.decode("latin-1"))
        newlines = scanner.newlines
        return None if newlines is None or newlines == "\r\n" else standard.BARE_NEWLINE_IN_DATA


class LineLength:
    """Finds a line longer than ``limit`` octets, CRLF included, over any cuts of the body."""

    __slots__ = ("_limit", "_open")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Octets of the line that the last chunk left open.
        self._open = 0

    def __call__(self, chunk: bytes) -> Reply | None:
        # From the start of a line, its end must lie within the limit; look for the last end in reach, so that
        # many short lines are one step.
        start = -self._open
        length = len(chunk)
        while length - start > self._limit:
            end = chunk.rfind(b"\n", max(start, 0), start + self._limit) + 1
            if not end:
                return standard.BODY_LINE_TOO_LONG
            start = end
        last = chunk.rfind(b"\n", max(start, 0)) + 1
        self._open = length - (last or start)
        return None
