"""The header section of a body that flows, where fields of ours go before it (RFC 5322 section 2.2, RFC 5321 4.4).

The rules of this file:

- Fields of ours cannot be continued. A body whose first line is neither a field nor empty has no header section; an
  empty line goes before it, so that all of it is content.
- The section goes on to the first empty line, whatever else stands in between.
- A field of a given name can be left out, with its folded lines; another one then comes first.
- A line begins behind CRLF, LF and CR alike, but only LF ends an empty one: what any reader may take for a field is
  looked at, in all that any reader may take for the header section.

Where the input is cut, only what may be such a name is held back, up to its colon, and a line end within a field that
is left out. Everything is found by compiled patterns, for a hostile section may have millions of lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: Octets that a name may have, the blanks behind it included: the longest line (RFC 5322 section 2.1.1).
_MAX_NAME = 998

_match_field = re.compile(rb"[!-9;-~]+[ \t]*:").match
#: It may become the name of a field yet.
_may_be_name = re.compile(rb"[!-9;-~]*[ \t]*").fullmatch
#: The end of a field: a line end that no continuation follows.
_search_field_end = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?=[^ \t])").search
_line_end_at_end = re.compile(rb"(?:\r\n|\r|\n)\Z").search

_Step = Callable[["HeaderSection", bytes, list[bytes], bool], bytes]


class HeaderSection:
    """Passes a body on from its first octet, over any cuts, as the rules above say."""

    __slots__ = ("_before", "_held", "_name", "_resume", "_search_event", "_step", "over")

    def __init__(self, without: bytes | None = None) -> None:
        """
        :param without: the name of the field that is left out, in lower case.
        """
        self._name = without
        event = rb"\n\r?\n"
        if without is not None:
            event += rb"|[\r\n]" + re.escape(without) + rb"(?:[ \t]*:|[ \t]{%d})" % _MAX_NAME
        self._search_event = re.compile(event, re.IGNORECASE).search
        self._held = b""
        #: The two octets before those that come next: a line end, perhaps.
        self._before = b""
        #: What takes the next octets, and what does so once a field has been left out.
        self._step: _Step = HeaderSection._begin
        self._resume: _Step = HeaderSection._begin
        #: The header section has ended: what comes now is passed on without a look.
        self.over = False

    def feed(self, data: bytes, last: bool = False) -> bytes:
        """Take the next octets of the body; return what they become, perhaps nothing.

        :param last: the body ends with these.
        """
        if self.over:
            return data
        if self._held:
            data = self._held + data
            self._held = b""
        kept: list[bytes] = []
        while data and not self.over:
            data = self._step(self, data, kept, last)
        kept.append(data)
        return b"".join(kept)

    # Each step takes what it can tell, and returns the rest; what it cannot tell yet it holds.

    def _begin(self, data: bytes, kept: list[bytes], last: bool) -> bytes:
        """The first line decides whether there is a header section at all."""
        found = _match_field(data, 0, _MAX_NAME + 1)
        if found is not None:
            is_left_out = self._is_name(found[0][:-1])
            self._step = HeaderSection._drop if is_left_out else HeaderSection._pass
            return data
        if data.startswith((b"\r\n", b"\n")):
            self.over = True
            return data
        if not last and len(data) <= _MAX_NAME and (data == b"\r" or _may_be_name(data)):
            self._held = data
            return b""
        kept.append(b"\r\n")
        self.over = True
        return data

    def _pass(self, data: bytes, kept: list[bytes], last: bool) -> bytes:
        """Pass lines on, to the empty one or to a field that is left out."""
        before = self._before
        seen = before + data
        found = self._search_event(seen)
        if found is None:
            end = len(data) if last or self._name is None else self._begun_name(seen) - len(before)
            self._held = data[end:]
            self._before = seen[: len(before) + end][-2:]
            kept.append(data[:end])
            return b""
        if found[0].endswith(b"\n"):
            self.over = True
            return data
        start = found.start() + 1 - len(before)
        kept.append(data[:start])
        self._step, self._resume = HeaderSection._drop, HeaderSection._pass
        self._before = b"\n"
        return data[start:]

    def _begun_name(self, seen: bytes) -> int:
        """Where the name that is left out begins, if the octets may end within it; else their length."""
        assert self._name is not None
        start = max(seen.rfind(b"\n"), seen.rfind(b"\r")) + 1
        if not start or len(seen) - start >= len(self._name) + _MAX_NAME:
            return len(seen)
        begun = seen[start:].lower()
        return start if self._name.startswith(begun) or self._is_name(begun) else len(seen)

    def _drop(self, data: bytes, kept: list[bytes], last: bool) -> bytes:
        """Leave a field out, up to a line that does not continue it."""
        found = _search_field_end(data)
        if found is None:
            # The next octet tells whether this line end is the field's.
            end = _line_end_at_end(data)
            self._held = b"" if last or end is None else end[0]
            return b""
        self._step = self._resume
        return data[found.end() :]

    def _is_name(self, octets: bytes) -> bool:
        return octets.rstrip(b" \t").lower() == self._name
