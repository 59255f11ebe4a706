"""What goes into a log line: values that a peer had a hand in, bounded, on one line, and unable to pass for others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from greensmtp.protocol.replies import Reply

#: Characters of one value. (A path has 256 octets at most, RFC 5321 section 4.5.3.1.3, a command line 512.)
ROOM = 512

#: Recipients that are named in one record; their number is told besides.
LISTED = 100

#: In the text of a line a value is one word: a quoted local part may have blanks and brackets in it, and would
#: otherwise read like the fields that follow.
_APART = re.compile(r"[ <>;]")

#: How servers name what they have taken: ``250 2.0.0 Ok: queued as 4f2a1``.
_QUEUED_AS = re.compile(r"\bqueued(?: mail)?(?: for delivery)?(?: as|:)? +<?([\w.@-]{1,128})>?", re.IGNORECASE)


def shown(value: object, room: int = ROOM) -> str:
    """The value as text that is printable and no longer than this; what is not printable is escaped."""
    text = value if isinstance(value, str) else str(value)
    if len(text) <= room and text.isprintable():
        return text
    rest = len(text) - room
    # (Cut before it is escaped: what is escaped takes ten characters at most.)
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:room])
    return f"{text}...({rest} more)" if rest > 0 else text


def word(value: object) -> str:
    """The value as one word of a line; ``-`` where there is none."""
    if value is None or value == "":
        return "-"
    return _APART.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))


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


def replies(given: Iterable[tuple[str, Reply]]) -> list[dict[str, Any]]:
    """What became of each recipient: ``{"recipient": ..., "reply": 250, "reply_text": ...}``."""
    return [
        {"recipient": shown(recipient), "reply": reply.code, "reply_text": reply_text(reply)}
        for recipient, reply in given
    ]


def queue_id(*given: Reply) -> str | None:
    """What the first of these replies that says so calls the message."""
    for reply in given:
        if reply.code < 300 and "queued" in reply.text.lower():
            match = _QUEUED_AS.search(reply.text)
            if match is not None:
                return match[1]
    return None
