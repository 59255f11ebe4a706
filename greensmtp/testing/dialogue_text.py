"""The small parts of a dialogue's lines: bytes as text with escapes, patterns with ``*``, patterns of replies."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Bytes that one dialogue may send, once its repetitions are written out.
MAX_SIZE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReplyPattern:
    """What a reply must be like."""

    #: Codes in which x stands for any digit.
    codes: tuple[str, ...]
    #: True if the server may close the connection instead.
    or_end: bool = False
    #: True if it may wait for more instead.
    or_nothing: bool = False
    #: The beginning of the text; None for any.
    text: str | None = None
    #: True if the text must not begin so.
    negated: bool = False

    def matches_code(self, code: int) -> bool:
        """Return True if a code is among those allowed."""
        return any(re.fullmatch(each.replace("x", "[0-9]"), str(code)) for each in self.codes)

    def matches(self, code: int, text: str) -> bool:
        """Return True if a reply is as it must be."""
        if not self.matches_code(code):
            return False
        return self.text is None or glob_start(self.text, text) is not self.negated


_CODES = re.compile(r"(?:[2-5x][0-9x][0-9x]|END|NOTHING)(?:\|(?:[2-5x][0-9x][0-9x]|END|NOTHING))*")


def parse_pattern(text: str) -> ReplyPattern:
    """Parse ``250``, ``2xx|END``, ``550 5.1.1 *user``, ``250 !*STARTTLS``.

    :raises ValueError: it is malformed.
    """
    codes, space, rest = text.partition(" ")
    if not _CODES.fullmatch(codes) or (space and not rest):
        raise ValueError(
            f"expected reply codes, like 250, 2xx or 500|5xx|END, and perhaps the beginning of the text, not {text!r}"
        )
    words = codes.split("|")
    return ReplyPattern(
        tuple(word for word in words if word not in ("END", "NOTHING")),
        "END" in words,
        "NOTHING" in words,
        unescape(rest.removeprefix("!")).decode("utf-8", "backslashreplace") or None,
        rest.startswith("!"),
    )


def glob_start(pattern: str, text: str) -> bool:
    """Return True if a text begins as a pattern says, in which ``*`` stands for anything; case does not count."""
    # Piece by piece, each at the first place where it fits: a regular expression would take exponential time.
    first, *pieces = pattern.casefold().split("*")
    text = text.casefold()
    if not text.startswith(first):
        return False
    at = len(first)
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


# Escapes

_ESCAPED = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|\{((?:[^\\{}]|\\[^{])+)\*([0-9]{1,8})\}|(.?))", re.DOTALL)
_LETTERS = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


def unescape(text: str) -> bytes:
    r"""Return the bytes that a text with escapes stands for: ``\r``, ``\x00``, ``\{a*1000}``.

    :raises ValueError: an escape is unknown, or a repetition too long.
    """
    pieces: list[bytes] = []
    at = 0
    for match in _ESCAPED.finditer(text):
        pieces += [text[at : match.start()].encode(), _unescape_one(match)]
        at = match.end()
    return b"".join((*pieces, text[at:].encode()))


def _unescape_one(match: re.Match[str]) -> bytes:
    if match[1]:
        return bytes.fromhex(match[1])
    if match[2]:
        piece = unescape(match[2])
        if len(piece) * int(match[3]) > MAX_SIZE:
            raise ValueError(f"{match[0]!r} stands for more than {MAX_SIZE} bytes")
        return piece * int(match[3])
    if match[4] not in _LETTERS:
        raise ValueError(rf"unknown escape {match[0]!r}: expected \r \n \t \0 \\ \xHH or \{{text*1000}}")
    return _LETTERS[match[4]]


def escape(data: bytes) -> str:
    r"""Return bytes as ``unescape`` reads them: ``Subject: x\r\n``."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(_escape_one(char) for char in text)


def _escape_one(char: str) -> str:
    for letter, byte in _LETTERS.items():
        if char.encode("utf-8", "surrogateescape") == byte:
            return f"\\{letter}"
    if char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
