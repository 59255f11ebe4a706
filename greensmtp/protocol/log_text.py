"""Text of a peer for a log: bounded, on one line, and never mistaken for another field.

All code that logs or prints such text uses this module: a quoted local part may hold blanks, brackets and whole fields.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from greensmtp.protocol.reply import Reply

#: Characters of one value. (RFC 5321 section 4.5.3.1: a path has at most 256, a command line 512.)
MAX_LENGTH: Final = 512

#: Recipients that are named in one record, beside their number.
LISTED: Final = 100

#: The names of fields in log lines of ours. In a value, their ``=`` is escaped, so that a search does not find it.
_FIELDS = (
    *("from", "to", "refused", "size", "peer", "client", "tls", "identity", "greeting"),
    *("messages", "recipients", "octets"),
)
#: What has just been matched is the ``=`` of a field. (Looking back is slow, so both patterns begin with a character.)
_OF_FIELD = "|".join(f"(?<={name}=)" for name in _FIELDS)
_FIELD: Final = re.compile(f"=(?:{_OF_FIELD})")

#: Characters that are escaped in a word: those that end a word, and the ``=`` of a field.
_APART: Final = re.compile(f"[ <>;=](?:(?<!=)|{_OF_FIELD})")


def printable(text: str) -> str:
    """Escape what is not printable: control characters, line ends, invisible characters, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown(value: object, max_length: int = MAX_LENGTH) -> str:
    """Return a value as printable text of at most ``max_length`` characters, and how many more there were."""
    text = value if isinstance(value, str) else str(value)
    if len(text) <= max_length and text.isprintable():
        return text
    # (Cut first: an escaped character takes up to ten.)
    return printable(cut(text, max_length))


def cut(value: object, max_length: int = MAX_LENGTH) -> str:
    """Return at most ``max_length`` characters of a value, and how many more there were."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= max_length else f"{text[:max_length]}...({len(text) - max_length} more)"


def word(value: object) -> str:
    """Return a value as one word of a line; ``-`` for None and ``""``."""
    if value is None or value == "":
        return "-"
    return _one_word(str(value))


def without_fields(text: str) -> str:
    """Return a text of several words in which nothing looks like a field of ours."""
    return _FIELD.sub(_escape, text) if "=" in text else text


def _one_word(text: str) -> str:
    # Few values have anything to escape, and a search is faster than a substitution.
    return text if _APART.search(text) is None else _APART.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"


def address(value: object) -> str:
    """Return an address in angle brackets, cut. The caller escapes what is not printable.

    (A middleware may have set one of another type.)
    """
    text = cut(value)
    # (A search with the pattern takes twice as long.)
    if " " in text or "<" in text or ">" in text or ";" in text or "=" in text:
        text = _APART.sub(_escape, text)
    return f"<{text}>"


def addresses(values: Sequence[object], count: int) -> str:
    """Return addresses as a list, and how many of ``count`` are not in it. They are shown by ``address``."""
    if not values:
        return "-"
    if count == 1:
        return address(values[0])
    rest = count - len(values)
    return ",".join(map(address, values)) + (f",...({rest} more)" if rest else "")


def reply_text(reply: Reply) -> str:
    """Return a reply's enhanced code and text on one line."""
    text = " | ".join(reply.lines)
    if reply.enhanced:
        text = f"{reply.enhanced} {text}".rstrip(" ")
    return text if len(text) <= MAX_LENGTH and text.isprintable() else shown(text)
