"""One header field as bytes (RFC 5322 section 2.2): checked, folded, and encoded where it is not ASCII (RFC 2047)."""

from __future__ import annotations

import re
from base64 import b64encode

#: Characters that a line should have and may have, without CRLF (RFC 5322 section 2.1.1).
_USUAL_LINE = 78
_LONGEST_LINE = 998

#: Bytes of UTF-8 in one encoded word, which may have 75 characters (RFC 2047 section 2).
_ENCODED_WORD = 45

_NAME = re.compile(r"[!-9;-~]{1,76}")
#: A word with the blanks before it.
_WORD = re.compile(r"[ \t]*[^ \t]+")
#: Control characters, line separators, and code points that UTF-8 cannot encode.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def header_field(name: str, value: str, *, utf8: bool = False) -> bytes:
    """Return the field with its CRLF.

    Lines are folded at blanks. Text beyond ASCII becomes encoded words, and so does a word too long for a line.

    :param value: the text, unfolded.
    :param utf8: the message may have UTF-8 in its fields (RFC 6532), so that non-ASCII text is not encoded.
    :raises ValueError: the name does not match RFC 5322, or the value has a control character, such as CR or LF.
    """
    if not _NAME.fullmatch(str(name)):
        raise ValueError(f"a field's name is 1 to 76 printable ASCII characters without a colon, not {name!r}")
    if not isinstance(value, str):
        raise TypeError(f"the value of {name} must be a str, not {value!r}")
    forbidden = _FORBIDDEN.search(value)
    if forbidden is not None:
        raise ValueError(
            f"the value of {name} has a control character ({forbidden[0]!r}); pass it unfolded, as one line of text"
        )
    words = _WORD.findall(value)
    if not words:
        return f"{name}:\r\n".encode()
    if not (value.isascii() or utf8) or max(len(word.encode()) for word in words) > _LONGEST_LINE - len(name) - 2:
        from email.header import Header  # few fields need it

        encoded = Header(value.strip(), "utf-8", header_name=name).encode(linesep="\r\n")
        return f"{name}: {encoded}\r\n".encode()
    pieces = [f"{name}: {words[0].lstrip()}"]
    length = len(pieces[0])
    for word in words[1:]:
        if length + len(word) > _USUAL_LINE:
            pieces.append("\r\n")
            length = 0
        pieces.append(word)
        length += len(word)
    return ("".join(pieces) + "\r\n").encode()


def encoded_words(text: str) -> str:
    """Return text as encoded words (RFC 2047), a blank between them."""
    data = text.encode()
    words: list[str] = []
    start = 0
    while start < len(data):
        # No character is cut in two (RFC 2047 section 5).
        end = start + len(data[start : start + _ENCODED_WORD].decode(errors="ignore").encode())
        words.append(f"=?utf-8?b?{b64encode(data[start:end]).decode()}?=")
        start = end
    return " ".join(words)
