"""Checks of a body while it is read: bare newlines and line length (RFC 5321 sections 2.3.8, 4.5.3.1.6).

How it works: ``io.IncrementalNewlineDecoder``, the C scanner behind universal newlines, notes each kind of line end in
its input. That is one pass, where counting CR, LF and CRLF costs more than twice as much, in a small body too. The
scanner takes text; Latin-1 has one character for each byte, so decoding is a copy. (typeshed does not know that the
scanner takes text if it has no decoder.)
"""

from __future__ import annotations

import io
from typing import Final

from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply

#: How many CRs directly before an LF belong to its line end: CR CR LF is what a second conversion makes of CRLF.
#: More would have to be held back without a bound where the input is cut.
_MAX_CRS: Final = 3


class NoBareNewlines:
    """Refuses a body with a CR without LF, or an LF without CR, over any cuts."""

    _scanner: io.IncrementalNewlineDecoder | None = None

    def __call__(self, chunk: bytes, last: bool = False) -> Reply | None:
        """Check the next bytes of the body; return the refusal, or None.

        :param last: the body ends with this chunk, so a CR at its end is a bare one.
        """
        scanner = self._scanner
        if scanner is None:
            scanner = self._scanner = io.IncrementalNewlineDecoder(None, translate=False)
        scanner.decode(chunk.decode("latin-1"), last)
        newlines = scanner.newlines
        return None if newlines is None or newlines == "\r\n" else canned.BARE_NEWLINE_IN_DATA


class NormalNewlines:
    """Makes a bare LF a CRLF and a bare CR a space, over any cuts of the body, as Postfix 3.9 does.

    No mail server treats a CR without LF as a line end, so it must not become one: that could end a header section or
    begin a field. Up to three CRs directly before an LF are part of its line end; they are held back where the input
    is cut behind them. Nothing else is held back. A chunk without bare newlines is returned unchanged, not copied.
    """

    _scanner: io.IncrementalNewlineDecoder | None = None
    #: The CRs that ended the last chunk.
    _held = b""

    def feed(self, chunk: bytes, last: bool = False) -> bytes:
        """Take the next bytes of the body; return them with normal newlines, perhaps none.

        :param last: the body ends with this chunk.
        """
        scanner = self._scanner
        if scanner is None:
            scanner = self._scanner = io.IncrementalNewlineDecoder(None, translate=False)
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if not last and chunk.endswith(b"\r"):
            kept = len(chunk[-_MAX_CRS:].rstrip(b"\r"))
            begin = max(len(chunk) - _MAX_CRS, 0) + kept
            self._held = chunk[begin:]
            chunk = chunk[:begin]
        scanner.decode(chunk.decode("latin-1"), True)
        kinds = scanner.newlines
        if kinds is None or kinds == "\r\n":
            return chunk
        scanner.reset()
        if kinds != "\n":
            # Together, the first two remove up to three CRs before an LF.
            chunk = chunk.replace(b"\r\r\n", b"\n").replace(b"\r\n", b"\n").replace(b"\r", b" ")
        return chunk.replace(b"\n", b"\r\n")


class LineLength:
    """Refuses a body with a line longer than ``limit`` bytes, CRLF included, over any cuts."""

    __slots__ = ("_limit", "_open")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Bytes of the line in which the last chunk ended.
        self._open = 0

    def __call__(self, chunk: bytes, last: bool = False) -> Reply | None:
        """Check the next bytes of the body; return the refusal, or None."""
        # From the start of a line, search backwards for the last line end within the limit, so that many short lines
        # are one step.
        start = -self._open
        length = len(chunk)
        while length - start > self._limit:
            end = chunk.rfind(b"\n", max(start, 0), start + self._limit) + 1
            if not end:
                return canned.BODY_LINE_TOO_LONG
            start = end
        end = chunk.rfind(b"\n", max(start, 0)) + 1
        self._open = length - (end or start)
        return None
