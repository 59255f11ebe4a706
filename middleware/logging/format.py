"""The text of Logging's lines: for a session, a transaction, a refused AUTH and a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greensmtp.protocol.command import CONNECT
from greensmtp.protocol.log_text import address, addresses, without_fields, word


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
        name = facts.get("transaction") or facts["session"]
        return f"{name} {self._text(facts)} ({took})"


def session_text(facts: dict[str, Any]) -> str:
    """Return the text of a session."""
    secure = f"{word(facts['tls'])}/{word(facts['cipher'])}" if facts["tls"] else "-"
    hello = f"{facts['greeting']}:{word(facts['hostname'])}" if facts["greeting"] else "-"
    refusal = "" if facts["reply"] is None else f": {facts['reply']} {without_fields(facts['reply_text'])}"
    return (
        f"session peer={word(facts['peer'])} tls={secure} greeting={hello} identity={word(facts['identity'])} "
        f"messages={facts['messages']} recipients={facts['recipient_count']} octets={facts['octets']} "
        f"-> {facts['reason']}{refusal}"
    )


def auth_text(facts: dict[str, Any]) -> str:
    """Return the text of an AUTH that was refused."""
    return f"auth peer={word(facts['peer'])} -> {facts['reply']} {without_fields(facts['reply_text'])}"


def command_text(facts: dict[str, Any]) -> str:
    """Return the text of a command."""
    said = f"{facts['verb']} {facts['argument']}" if facts["verb"] != CONNECT else f"CONNECT from {word(facts['peer'])}"
    # Escaped, so that the first arrow of a line is ours.
    said = said.rstrip(" ").replace("->", r"-\x3e")
    # Replies quote text from the client: an address, the name in EHLO.
    return without_fields(f"{said} -> {facts['reply']} {facts['reply_text']}".rstrip(" "))


def transaction_text(facts: dict[str, Any]) -> str:
    """Return the text of a transaction."""
    refused = tls = identity = client = ""
    if facts["refused"]:
        each = ",".join(f"{address(one['recipient'])}:{one['reply']}" for one in facts["refused"])
        rest = facts["refused_count"] - len(facts["refused"])
        refused = f" refused={each}" + (f",...({rest} more)" if rest else "")
    if facts["tls"]:
        tls = f" tls={word(facts['tls'])}"
    if facts["identity"]:
        identity = f" identity={word(facts['identity'])}"
    if facts["forwarded"]:
        client = f" client={word(facts['forwarded'].get('NAME'))}[{word(facts['forwarded'].get('ADDR'))}]"
    if "replies" in facts:
        end = "; ".join(
            f"{address(one['recipient'])} {one['reply']} {without_fields(one['reply_text'].replace(';', ','))}"
            for one in facts["replies"]
        )
    elif facts["reply"] is not None:
        end = f"{facts['reply']} {without_fields(facts['reply_text'])}"
    else:
        end = facts["outcome"]
    if facts["reason"] is not None:
        end = f"{end}, {facts['reason']}"
    return (
        f"message from={address(facts['sender'])} to={addresses(facts['recipients'], facts['recipient_count'])}"
        f"{refused} size={facts['size']} peer={word(facts['peer'])}{client}{tls}{identity} -> {end}"
    )
