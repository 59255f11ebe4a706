"""The text of Logging's lines: for a session, a refused AUTH and a command."""

from __future__ import annotations

from collections.abc import Callable

from greensmtp.middleware.logging.facts import Facts
from greensmtp.protocol.command import CONNECT
from greensmtp.protocol.log_text import printable, without_fields, word


class Line:
    """A record's message, formatted when it is read: a JSON formatter may not read it at all."""

    __slots__ = ("_facts", "_text")

    def __init__(self, text: Callable[[Facts], str], facts: Facts) -> None:
        self._text = text
        self._facts = facts

    def facts(self) -> Facts:
        """Return the attributes of the record."""
        return self._facts

    def __str__(self) -> str:
        facts = self._facts
        seconds = facts["seconds"]
        took = "-" if seconds is None else f"{seconds * 1000:.1f} ms"
        return printable(f"{facts.get('transaction') or facts['session']} {self._text(facts)} ({took})")


def session_text(facts: Facts) -> str:
    """Return the text of a session."""
    secure = f"{word(facts['tls'])}/{word(facts['cipher'])}" if facts["tls"] else "-"
    hello = f"{facts['greeting']}:{word(facts['hostname'])}" if facts["greeting"] else "-"
    refusal = "" if facts["reply"] is None else f": {facts['reply']} {without_fields(facts['reply_text'])}"
    return (
        f"session peer={word(facts['peer'])} tls={secure} greeting={hello} identity={word(facts['identity'])} "
        f"messages={facts['messages']} recipients={facts['recipient_count']} octets={facts['octets']} "
        f"-> {facts['reason']}{refusal}"
    )


def auth_text(facts: Facts) -> str:
    """Return the text of an AUTH that was refused."""
    return f"auth peer={word(facts['peer'])} -> {facts['reply']} {without_fields(facts['reply_text'])}"


def command_text(facts: Facts) -> str:
    """Return the text of a command."""
    said = f"{facts['verb']} {facts['argument']}" if facts["verb"] != CONNECT else f"CONNECT from {word(facts['peer'])}"
    # Escaped, so that the first arrow of a line is ours.
    said = said.rstrip(" ").replace("->", r"-\x3e")
    # Replies quote text from the client: an address, the name in EHLO.
    return without_fields(f"{said} -> {facts['reply']} {facts['reply_text']}".rstrip(" "))
