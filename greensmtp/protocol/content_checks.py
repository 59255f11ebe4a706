"""What a body's octets are checked for, and made of, while they flow (RFC 5321 sections 2.3.8, 4.5.3.1.6).

The C scanner behind universal newlines notes every kind of line end that it meets: one pass, where three counts of CR,
LF and CRLF cost more than twice as much, in a small body too. Latin-1 is one octet, one character: a copy, not a
decoding. Without a decoder of its own the scanner takes text, which typeshed does not know.
"""

from __future__ import annotations

import io

from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply

#: How many CRs directly before an LF belong to its line end: CR CR LF is what a second conversion makes of CRLF.
#: More would have to be held back without a bound where the input is cut.
_MAX_CRS = 3


class NoBareNewlines:
    """Finds a CR without LF, or an LF without CR, over any cuts of the body."""

    _scanner: io.IncrementalNewlineDecoder | None = None

    def __call__(self, chunk: bytes, last: bool = False) -> Reply | None:
        """Return the refusal, or None as long as all is well.

        :param last: the body ends with this chunk, so that a CR at its end is a bare one.
        """
        scanner = self._scanner
        if scanner is None:
            scanner = self._scanner = io.IncrementalNewlineDecoder(None, translate=False)
        scanner.decode(chunk.decode("latin-1"), last)
        newlines = scanner.newlines
        return None if newlines is None or newlines == "\r\n" else canned.BARE_NEWLINE_IN_DATA


class NormalNewlines:
    """Makes a bare LF a CRLF and a bare CR a space, over any cuts of the body, as Postfix 3.9 does.

    A CR without an LF is no line end to any mail server, so it must not become one: that could end a header section,
    or begin a field. Up to three CRs directly before an LF are part of its line end. So many are held back where the
    input is cut behind a CR; nothing else is. A chunk without bare newlines is handed on as it is, not copied.
    """

    _scanner: io.IncrementalNewlineDecoder | None = None
    #: The CRs that ended the last chunk.
    _held = b""

    def feed(self, chunk: bytes, last: bool = False) -> bytes:
        """Take the next octets of the body; return what they are in the content, perhaps nothing.

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
            # Together these two take up to three CRs off an LF.
            chunk = chunk.replace(b"\r\r\n", b"\n").replace(b"\r\n", b"\n").replace(b"\r", b" ")
        return chunk.replace(b"\n", b"\r\n")


class LineLength:
    """Finds a line longer than ``limit`` octets, CRLF included, over any cuts of the body."""

    __slots__ = ("_limit", "_open")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Octets of the line that the last chunk left open.
        self._open = 0

    def __call__(self, chunk: bytes, last: bool = False) -> Reply | None:
        """Return the refusal, or None as long as all is well."""
        # From the start of a line, its end must lie within the limit; look for the last end in reach, so that
        # many short lines are one step.
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
