"""Format the lines of a dialogue for ``SMTPClient.trace``: commands and replies, without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from greensmtp.protocol.reply import Reply

#: The reply that asks for the next line of AUTH.
AUTH_CONTINUES = 334

#: Characters of an AUTH response that suffice to find it in a reply that repeats it, perhaps in part.
ECHO = 8

Show = Callable[[str], object]


def show_commands(show: Show, lines: Sequence[bytes], *, secret: bool = False) -> None:
    """Show commands, each after ``> ``.

    :param secret: of AUTH show only the mechanism, and nothing of a response.
    """
    for line in lines:
        text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
        if secret:
            words = text.split(" ")
            text = " ".join([*words[:2], *["***"] * (len(words) > 2)]) if words[0] == "AUTH" else "***"
        show(f"> {text}")


def show_replies(show: Show, replies: Sequence[Reply], *, secret: bool = False) -> None:
    """Show replies, each line after ``< ``.

    :param secret: of a challenge show only the code.
    """
    for reply in replies:
        for text in trace_lines(reply, secret=secret):
            show(text)


def trace_lines(reply: Reply, *, secret: bool = False) -> list[str]:
    """Return the lines of a reply as they were received, each after ``< ``; of a secret challenge only the code."""
    if secret and reply.is_intermediate:
        return [f"< {reply.code} ***"]
    enhanced = f"{reply.enhanced} " if reply.enhanced else ""
    last = len(reply.lines) - 1
    return [f"< {reply.code}{'-' if number < last else ' '}{enhanced}{line}" for number, line in enumerate(reply.lines)]


def without_echo(reply: Reply, line: bytes) -> Reply:
    """Return the reply without any text that it repeats from a line of AUTH.

    Some servers quote a command that they do not know, and replies end up in logs.
    """
    words = line.decode().split()
    if len(words) == 2 or not words:  # AUTH and a mechanism alone, or an empty response
        return reply
    echo = re.compile(rf"{re.escape(words[-1][:ECHO])}[A-Za-z0-9+/=]*", re.IGNORECASE)
    if reply.code == AUTH_CONTINUES or len(words[-1]) < ECHO or not any(map(echo.search, reply.lines)):
        return reply
    return Reply(reply.code, *(echo.sub("***", text) for text in reply.lines), enhanced=reply.enhanced)
