"""The header section of a body that is being read, behind fields of ours (RFC 5322 section 2.2, RFC 5321 section 4.4).

The rules of this file:

- A body cannot continue the last field of ours. If its first line is neither a field nor empty, it has no header
  section: an empty line is put before it, so that all of it is content.
- A first line ``From `` as in an mbox file (RFC 4155) becomes the field ``X-Mailbox-Line``, as in Postfix. It is not a
  field, but what follows it is the header section.
- The section ends with the first empty line, whatever stands before that.
- Fields of one given name can be left out, with their continuation lines.
- A line begins behind CRLF, LF and CR alike, but only LF ends an empty one. So a field is found wherever any reader
  might see one, in all that any reader might take for the header section.

How it works: each step (``_begin``, ``_pass``, ``_drop``) handles the bytes from a place on and returns where the next
step begins. Where the input is cut, only the beginning of a name that is left out is held back, up to its colon, and a
line end within a field that is left out. Compiled patterns find everything: a hostile section may have
millions of lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

#: Bytes in a name with the blanks behind it: those of the longest line (RFC 5322 section 2.1.1).
_MAX_NAME = 998

_MAILBOX_LINE = b"X-Mailbox-Line: "

_match_field = re.compile(rb"[!-9;-~]+[ \t]*:").match
#: A reader of an mbox file may have quoted the line.
_match_mbox_line = re.compile(rb">{0,9}From ").match
#: Matches bytes that more bytes may make the name of a field.
_may_be_name = re.compile(rb"[!-9;-~]*[ \t]*").fullmatch
#: Finds the end of a field: a line end without a continuation line behind it.
_search_field_end = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?=[^ \t])").search
_line_end_at_end = re.compile(rb"(?:\r\n|\r|\n)\Z").search

_Step = Callable[["HeaderSection", bytes, int, list[bytes], bool], int]


@lru_cache(16)
def _search_event(without: bytes | None) -> Callable[..., re.Match[bytes] | None]:
    """Return what finds the end of the section, or the field that is left out."""
    event = rb"\n\r?\n"
    if without is not None:
        event += rb"|[\r\n]" + re.escape(without) + rb"(?:[ \t]*:|[ \t]{%d})" % _MAX_NAME
    return re.compile(event, re.IGNORECASE).search


class HeaderSection:
    """Passes on a body from its first byte, over any cuts, by the rules above."""

    __slots__ = ("_before", "_held", "_name", "_resume", "_search_event", "_step", "over")

    def __init__(self, without: bytes | None = None) -> None:
        """
        :param without: the name of a field to leave out, in lower case.
        """
        self._name = without
        self._search_event = _search_event(without)
        #: The last two bytes before ``_held``: a line end, perhaps.
        self._before = b""
        self._held = b""
        #: The step for the next bytes, and the step behind a field that is left out.
        self._step: _Step = HeaderSection._begin
        self._resume: _Step = HeaderSection._begin
        #: The header section has ended: all that follows is passed on unchanged.
        self.over = False

    def feed(self, data: bytes, last: bool = False) -> bytes:
        """Take the next bytes of the body; return them without the field that is left out, perhaps none.

        :param last: the body ends with these.
        """
        if self.over:
            return data
        at = len(self._before)
        data = self._before + self._held + data
        self._held = b""
        kept: list[bytes] = []
        while at < len(data) and not self.over:
            at = self._step(self, data, at, kept, last)
        kept.append(data[at:])
        self._before = data[: len(data) - len(self._held)][-2:]
        return b"".join(kept)

    # The steps. Each begins at a place in the data, and returns where the next one begins.

    def _begin(self, data: bytes, at: int, kept: list[bytes], last: bool) -> int:
        """Decide by the first line whether there is a header section."""
        found = _match_field(data, at, at + _MAX_NAME + 1)
        if found is not None:
            is_left_out = self._is_name(found[0][:-1])
            self._step = HeaderSection._drop if is_left_out else HeaderSection._pass
            return at
        if data.startswith((b"\r\n", b"\n"), at):
            self.over = True
            return at
        if not last and len(data) - at <= _MAX_NAME and (data[at:] == b"\r" or _may_be_name(data, at)):
            self._held = data[at:]
            return len(data)
        if _match_mbox_line(data, at):
            kept.append(_MAILBOX_LINE)
            self._step = HeaderSection._pass
            return at
        kept.append(b"\r\n")
        self.over = True
        return at

    def _pass(self, data: bytes, at: int, kept: list[bytes], last: bool) -> int:
        """Pass on lines, up to the empty one or to a field that is left out."""
        found = self._search_event(data, max(at - 2, 0))
        if found is None:
            end = len(data) if last or self._name is None else self._begun_name(data, at)
            self._held = data[end:]
            kept.append(data[at:end])
            return len(data)
        if found[0].endswith(b"\n"):
            self.over = True
            return at
        kept.append(data[at : found.start() + 1])
        self._step, self._resume = HeaderSection._drop, HeaderSection._pass
        return found.start() + 1

    def _begun_name(self, data: bytes, at: int) -> int:
        """Return where the name that is left out begins, if the data may end within it; else the data's length."""
        assert self._name is not None
        start = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if start < max(at, 1) or len(data) - start >= len(self._name) + _MAX_NAME:
            return len(data)
        begun = data[start:].lower()
        return start if self._name.startswith(begun) or self._is_name(begun) else len(data)

    def _drop(self, data: bytes, at: int, kept: list[bytes], last: bool) -> int:
        """Leave a field out, up to a line that does not continue it."""
        found = _search_field_end(data, at)
        if found is None:
            # The next byte tells whether this line end ends the field.
            end = _line_end_at_end(data, at)
            self._held = b"" if last or end is None else end[0]
            return len(data)
        self._step = self._resume
        return found.end()

    def _is_name(self, data: bytes) -> bool:
        return data.rstrip(b" \t").lower() == self._name


def joint(beginning: bytes) -> bytes:
    """Return what goes between fields of ours and a body that begins so; ``b""`` if it begins with a field."""
    whole = HeaderSection().feed(beginning, last=True)
    return whole[: len(whole) - len(beginning)]
