"""Text that a peer had a hand in, as it goes into a log: bounded, on one line, and unable to pass for something else.

Everything that writes such text for people uses this: a quoted local part may hold blanks, brackets and whole fields.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from greensmtp.protocol.reply import Reply

#: Characters of one value. (A path has 256 octets at most, RFC 5321 section 4.5.3.1.3, a command line 512.)
ROOM = 512

#: Recipients that are named in one record; their number is told besides.
LISTED = 100

#: The names of fields in lines of ours. A value that has one of them with its ``=`` in it would be found by a search.
_FIELDS = ("from", "to", "refused", "size", "peer", "tls", "identity", "greeting", "messages", "recipients", "octets")
_FIELD = re.compile("|".join(f"(?<={name})=" for name in _FIELDS))

#: In the text of a line a value is one word, without what ends a word, and without what looks like another field.
_APART = re.compile(f"[ <>;]|{_FIELD.pattern}")


def printable(text: str) -> str:
    """Escape what is not printable: control characters, line ends, invisible characters, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown(value: object, room: int = ROOM) -> str:
    """The value as text that is printable and no longer than this; what is not printable is escaped."""
    text = value if isinstance(value, str) else str(value)
    if len(text) <= room and text.isprintable():
        return text
    rest = len(text) - room
    # (Cut before it is escaped: what is escaped takes ten characters at most.)
    text = printable(text[:room])
    return f"{text}...({rest} more)" if rest > 0 else text


def word(value: object) -> str:
    """The value as one word of a line; ``-`` where there is none."""
    if value is None or value == "":
        return "-"
    return _APART.sub(_escape, str(value))


def without_fields(text: str) -> str:
    """A text of several words, in which nothing looks like a field of ours."""
    return _FIELD.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"


def address(value: str) -> str:
    """An address, in brackets."""
    return f"<{word(value) if value else ''}>"


def addresses(values: Sequence[str], count: int) -> str:
    """Addresses, of which there are ``count`` in all."""
    if not values:
        return "-"
    rest = count - len(values)
    return ",".join(map(address, values)) + (f",...({rest} more)" if rest else "")


def reply_text(reply: Reply) -> str:
    """Enhanced code and text, on one line."""
    text = f"{reply.enhanced} {reply.text}".rstrip(" ") if reply.enhanced else reply.text
    return shown(text.replace("\n", " | ") if "\n" in text else text)
