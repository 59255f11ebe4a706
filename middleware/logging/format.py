"""The text of Logging's lines: for a session, a transaction and a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from greensmtp.protocol.command import CONNECT
from greensmtp.protocol.log_text import address, addresses, reply_text, shown, without_fields, word
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import find_queue_id

#: Characters of a queue ID that are logged.
_MAX_QUEUE_ID = 128


def replies(given: Iterable[tuple[str, Reply]]) -> list[dict[str, Any]]:
    """Return each recipient's reply: ``{"recipient": ..., "reply": 250, "reply_text": ...}``."""
    return [
        {"recipient": shown(recipient), "reply": reply.code, "reply_text": reply_text(reply)}
        for recipient, reply in given
    ]


def queue_id(*given: Reply) -> str | None:
    """Return the queue ID in the first of these replies that has one."""
    for reply in given:
        if reply.code < 300 and "queued" in reply.text.lower():
            found = find_queue_id(reply.text)
            if found is not None:
                return found[:_MAX_QUEUE_ID]
    return None


class Line:
    """A record's message, formatted when it is read: a JSON formatter may not read it at all."""

    __slots__ = ("_facts", "_text")

    def __init__(self, text: Callable[[dict[str, Any]], str], facts: dict[str, Any]) -> None:
        self._text = text
        self._facts = facts

    def __str__(self) -> str:
        facts = self._facts
        seconds = facts["seconds"]
        took = "-" if seconds is None else f"{seconds * 1000:.1f} ms"
        return f"{facts['session']} {self._text(facts)} ({took})"


def session_text(facts: dict[str, Any]) -> str:
    """Return the text of a session."""
    secure = f"{facts['tls']}/{word(facts['cipher'])}" if facts["tls"] else "-"
    hello = f"{facts['greeting']}:{word(facts['hostname'])}" if facts["greeting"] else "-"
    away = "" if facts["reply"] is None else f": {facts['reply']} {without_fields(facts['reply_text'])}"
    return (
        f"session peer={word(facts['peer'])} tls={secure} greeting={hello} identity={word(facts['identity'])} "
        f"messages={facts['messages']} recipients={facts['recipient_count']} octets={facts['octets']} "
        f"-> {facts['reason']}{away}"
    )


def command_text(facts: dict[str, Any]) -> str:
    """Return the text of a command."""
    said = f"{facts['verb']} {facts['argument']}" if facts["verb"] != CONNECT else f"CONNECT from {word(facts['peer'])}"
    # Escaped, so that the first arrow of a line is ours.
    said = said.rstrip(" ").replace("->", r"-\x3e")
    # Replies quote text from the client: an address, the name in EHLO.
    return without_fields(f"{said} -> {facts['reply']} {facts['reply_text']}".rstrip(" "))


def transaction_text(facts: dict[str, Any]) -> str:
    """Return the text of a transaction."""
    words = [
        f"message from={address(facts['sender'])}",
        f"to={addresses(facts['recipients'], facts['recipient_count'])}",
    ]
    if facts["refused"]:
        each = (f"{address(one['recipient'])}:{one['reply']}" for one in facts["refused"])
        rest = facts["refused_count"] - len(facts["refused"])
        words.append(f"refused={','.join(each)}" + (f",...({rest} more)" if rest else ""))
    words += (f"size={facts['size']}", f"peer={word(facts['peer'])}")
    words += (f"{name}={word(facts[name])}" for name in ("tls", "identity") if facts[name])
    if "replies" in facts:
        each = (
            f"{address(one['recipient'])} {one['reply']} {without_fields(one['reply_text'].replace(';', ','))}"
            for one in facts["replies"]
        )
        end = "; ".join(each)
    elif facts["reply"] is not None:
        end = f"{facts['reply']} {without_fields(facts['reply_text'])}"
    else:
        end = facts["outcome"]
    if facts["reason"] is not None:
        end += f", {facts['reason']}"
    return f"{' '.join(words)} -> {end}"
