"""Line ends of a MIME message that may have binary parts (RFC 2045 section 2.9, RFC 3030 section 3).

Header sections, delimiters and most parts are lines: their bare CRs and LFs become CRLF. The body of a part whose own
header section says ``Content-Transfer-Encoding: binary`` stays as it is; text that merely quotes such a line does not
count. The end of the line in front of a delimiter belongs to the delimiter (RFC 2046 section 5.1.1).
"""

from __future__ import annotations

import re

#: Octets of a part's header section that are looked at.
MAX_HEAD = 64 * 1024
#: Octets in a delimiter line: hyphens, a boundary of up to 70 (RFC 2046 section 5.1.1), blanks. A longer line is none,
#: and need not be whole to be handed on.
MAX_DELIMITER = 128
#: Multipart entities in one another; what is deeper is text.
MAX_DEPTH = 50

_FOLD = re.compile(rb"(?:\r\n|\r|\n)(?=[ \t])")
_BINARY = re.compile(rb"^content-transfer-encoding[ \t]*+:[ \t]*+binary\b", re.I | re.M)
_TYPE = re.compile(rb"^content-type[ \t]*+:[ \t]*+(multipart/|message/(?:rfc822|global)\b)([^\r\n]*+)", re.I | re.M)
_BOUNDARY = re.compile(rb'[;\s]boundary[ \t]*+=[ \t]*+(?:"((?:[^"\\]++|\\.)*+)"|([^\s;"]++))', re.I)


def may_be_binary(octets: bytes) -> bool:
    """True if a part of this may be binary: a quick look, which a quoted line passes too."""
    return b"inary" in octets and _BINARY.search(octets) is not None


class MimeLines:
    """Takes a message in any pieces, and gives what goes over the wire."""

    def __init__(self) -> None:
        #: A line that is not yet whole.
        self._held = b""
        #: The header section that is being read; None: a body is.
        self._head: list[bytes] | None = []
        self._head_size = 0
        self._binary = False
        self._boundaries: list[bytes] = []
        self._at_line_start = True
        #: A binary part's last end of a line: perhaps it belongs to a delimiter.
        self._ending = b""
        #: A binary part has a NUL, or line ends that are not CRLF.
        self.needs_binary = False

    def feed(self, data: bytes) -> bytes:
        """Return the next octets as they go over the wire."""
        lines = (self._held + data).splitlines(keepends=True)
        self._held = b""
        # (A CR at the end may be half of a CRLF.)
        if lines and not lines[-1].endswith(b"\n"):
            last = lines.pop()
            bound = MAX_DELIMITER if self._head is None else MAX_HEAD
            if len(last) <= bound or last.endswith(b"\r"):
                self._held = last
            else:
                lines.append(last)
        return b"".join([piece for line in lines for piece in self._line(line)])

    def finish(self) -> bytes:
        """Return what was held back, and the end of the last line, where that is text."""
        pieces = list(self._line(self._held)) if self._held else []
        self._held = b""
        if self._binary:
            pieces.append(self._ending)
            self.needs_binary = self.needs_binary or self._ending != b"\r\n"
        elif not self._at_line_start:
            pieces.append(b"\r\n")
        return b"".join(pieces)

    def _line(self, line: bytes) -> tuple[bytes, ...]:
        text = line.rstrip(b"\r\n")
        ending = line[len(text) :]
        began, self._at_line_start = self._at_line_start, bool(ending)
        if self._head is not None:
            if self._head_size < MAX_HEAD:
                self._head.append(line)
                self._head_size += len(line)
            if not text and ending:
                self._begin_body(b"".join(self._head))
            return text, b"\r\n" if ending else b""
        if began and text.startswith(b"--") and self._is_delimiter(text[2:].rstrip(b" \t")):
            held, self._ending = self._ending, b""
            return b"\r\n" if held else b"", text, b"\r\n" if ending else b""
        if not self._binary:
            return text, b"\r\n" if ending else b""
        held, self._ending = self._ending, ending
        self.needs_binary = self.needs_binary or held in (b"\n", b"\r") or b"\0" in text
        return held, text

    def _begin_body(self, head: bytes) -> None:
        head = _FOLD.sub(b"", head)
        self._head = None
        self._binary = False
        kind = _TYPE.search(head)
        if kind is None or len(self._boundaries) >= MAX_DEPTH:
            self._binary = _BINARY.search(head) is not None
        elif kind[1].lower().startswith(b"message"):
            self._head, self._head_size = [], 0
        elif (boundary := _BOUNDARY.search(kind[2])) is not None:
            self._boundaries.append(re.sub(rb"\\(.)", rb"\1", boundary[1]) if boundary[1] else boundary[2])

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
