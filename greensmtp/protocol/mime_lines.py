"""Normal line ends in a MIME message that may have binary parts (RFC 2045 section 2.9, RFC 3030 section 3).

The rules of this file:

- In header sections, delimiters and most parts, each bare CR and bare LF becomes CRLF.
- The body of a part is unchanged if the part's own header section says ``Content-Transfer-Encoding: binary``. Text
  that merely quotes such a line does not count.
- The line end before a delimiter belongs to the delimiter (RFC 2046 section 5.1.1).
- Heads, delimiters and nesting are bounded. Beyond the bounds, everything is text.
"""

from __future__ import annotations

import re

from greensmtp.protocol.dot_stuffing import with_crlf

#: Bytes of a part's header section that are parsed.
MAX_HEAD = 64 * 1024
#: Bytes in a delimiter line: hyphens, a boundary of up to 70 (RFC 2046 section 5.1.1), blanks. A longer line is not a
#: delimiter, so it is passed on before it is whole.
MAX_DELIMITER = 128
#: Levels of nested multiparts; a deeper one is text.
MAX_DEPTH = 50

_LINE = re.compile(rb"([^\r\n]*+)(\r\n|\r|\n|\Z)")
_CANDIDATE = re.compile(rb"(?<=[\r\n])--")
_FOLD = re.compile(rb"(?:\r\n|\r|\n)(?=[ \t])")
_BINARY = re.compile(rb"^content-transfer-encoding[ \t]*+:[ \t]*+binary\b", re.I | re.M)
_TYPE = re.compile(rb"^content-type[ \t]*+:[ \t]*+(multipart/|message/(?:rfc822|global)\b)([^\r\n]*+)", re.I | re.M)
_BOUNDARY = re.compile(rb'[;\s]boundary[ \t]*+=[ \t]*+(?:"((?:[^"\\]++|\\.)*+)"|([^\s;"]++))', re.I)


def may_be_binary(message: bytes) -> bool:
    """Return True if a part may be binary. (A quick check: a quoted line passes it too.)"""
    return b"inary" in message and _BINARY.search(message) is not None


class MimeLines:
    """Makes the line ends of a message normal, over any cuts."""

    def __init__(self) -> None:
        #: The beginning of a line that is not whole yet.
        self._held = b""
        #: The lines of the header section that is being read; None in a body.
        self._head: list[bytes] | None = []
        self._head_size = 0
        self._binary = False
        self._boundaries: list[bytes] = []
        self._at_line_start = True
        #: The last line end of a binary part, which may belong to a delimiter.
        self._ending = b""
        #: A binary part has a NUL, or line ends that are not CRLF.
        self.needs_binary = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the message; return them as they are sent."""
        data = self._held + data
        # The last line may be part of a delimiter; a CR at its end may be half of a CRLF.
        end = data.rfind(b"\n") + 1
        bound = MAX_DELIMITER if self._head is None else MAX_HEAD
        if len(data) - end > bound:
            end = len(data) - data.endswith(b"\r")
        self._held = data[end:]
        return self._take(data[:end] if self._held else data)

    def finish(self) -> bytes:
        """Return the bytes that were held back, with the end of the last line if that is text."""
        rest, self._held = self._take(self._held), b""
        if self._binary:
            self.needs_binary = self.needs_binary or self._ending != b"\r\n"
            return rest + self._ending
        return rest if self._at_line_start else rest + b"\r\n"

    def _take(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if self._head is not None or (self._at_line_start and data.startswith(b"--", at)):
                found = _LINE.match(data, at)
                assert found is not None
                stop = found.end()
                pieces += self._line(found[1], found[2])
            else:
                # Everything up to the next line that may be a delimiter.
                candidate = _CANDIDATE.search(data, at + 1) if self._boundaries else None
                stop = end if candidate is None else candidate.start()
                pieces += self._body(data[at:stop])
            at = stop
        return b"".join(pieces)

    def _line(self, text: bytes, ending: bytes) -> tuple[bytes, ...]:
        """Return a line of a header section, or one that may be a delimiter, as it is sent."""
        if self._head is None:
            if not self._is_delimiter(text[2:].rstrip(b" \t")):
                return self._body(text + ending)
            before, self._ending = b"\r\n" if self._ending else b"", b""
        else:
            before = b""
            if self._head_size < MAX_HEAD:
                self._head.append(text + ending)
                self._head_size += len(text) + len(ending)
            if not text and ending and self._at_line_start:
                self._begin_body(b"".join(self._head))
        self._at_line_start = bool(ending)
        return before, text, b"\r\n" if ending else b""

    def _body(self, data: bytes) -> tuple[bytes, ...]:
        """Return lines of a body as they are sent; the last may not be whole."""
        self._at_line_start = data.endswith((b"\n", b"\r"))
        if not self._binary:
            return (with_crlf(data),)
        size = 2 if data.endswith(b"\r\n") else int(self._at_line_start)
        data = self._ending + data
        data, self._ending = data[: len(data) - size], data[len(data) - size :]
        self.needs_binary = self.needs_binary or b"\0" in data or with_crlf(data) is not data
        return (data,)

    def _begin_body(self, head: bytes) -> None:
        head = _FOLD.sub(b"", head)
        self._head = None
        self._binary = False
        kind = _TYPE.search(head)
        if kind is None or len(self._boundaries) >= MAX_DEPTH:
            self._binary = _BINARY.search(head) is not None
        elif kind[1].lower().startswith(b"message"):
            self._head, self._head_size = [], 0
        elif (found := _BOUNDARY.search(kind[2])) is not None:
            boundary = found[2] or re.sub(rb"\\(.)", rb"\1", found[1])
            if boundary:
                self._boundaries.append(boundary)

    def _is_delimiter(self, text: bytes) -> bool:
        """Whether this line, behind its hyphens, ends a part; then the next one begins."""
        for number in range(len(self._boundaries) - 1, -1, -1):
            boundary = self._boundaries[number]
            if text == boundary:
                del self._boundaries[number + 1 :]
                self._head, self._head_size = [], 0
            elif text == boundary + b"--":
                del self._boundaries[number:]
                self._head = None
            else:
                continue
            self._binary = False
            return True
        return False
