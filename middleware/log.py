"""Logging: what was said on every connection, and how it was answered, without the secrets."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Any

from greensmtp.chain import Proceed
from greensmtp.protocol.commands import (
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    PARSERS,
    PSEUDO_COMMANDS,
    UNKNOWN,
    Command,
)
from greensmtp.protocol.replies import Reply
from greensmtp.session import Session

_KNOWN = PSEUDO_COMMANDS | KNOWN_BUT_NOT_IMPLEMENTED | frozenset(PARSERS)

#: In a session's notes: AUTH was refused, or a line was garbled that may have been AUTH. Clients have been seen to go
#: on with user name and password all the same, which makes unknown commands of them.
_GUARDED = "greensmtp.middleware.log: guarded"


class Logging:
    """Logs the beginning and end of every session and every message at ``level``, every command at DEBUG.

    Each record carries its facts as attributes too, for formatters that make JSON of them: ``session``, ``peer``,
    ``verb``, ``argument``, ``reply`` (code), ``seconds``, and for a message ``sender``, ``recipients``, ``size``.
    What is behind AUTH is shown as ``***``, and so is every unknown command after an AUTH that was refused; answers to
    challenges do not pass through here at all.

    :param logger: where to; ``greensmtp.session`` when not given.
    :param level: of what is logged once a session or a message.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        self.logger = logging.getLogger("greensmtp.session") if logger is None else logger
        self.level = level

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """See the command pass, and its reply come back."""
        level = self.level if command.verb in (CONNECT, DISCONNECT, END_OF_DATA) else logging.DEBUG
        if not self.logger.isEnabledFor(level):
            return proceed(session, command)
        # The transaction is forgotten by the time the reply is there.
        facts = self._facts(session, command)
        began = perf_counter()
        reply = proceed(session, command)
        facts["seconds"] = round(perf_counter() - began, 6)
        facts["reply"] = reply.code
        if command.verb == UNKNOWN or (command.is_secret and not reply.is_positive):
            session.notes[_GUARDED] = True
        self.logger.log(
            level,
            "%s %s%s -> %s (%.1f ms)",
            session.id,
            facts["verb"],
            f" {facts['argument']}" if facts["argument"] else self._about(facts),
            str(reply).replace("\n", " | ") if command.verb != DISCONNECT else "closed",
            facts["seconds"] * 1000,
            extra=facts,
        )
        return reply

    def _facts(self, session: Session, command: Command) -> dict[str, Any]:
        verb, argument = command.verb, str(command.argument)
        if command.is_secret:
            verb, argument = "AUTH", argument and "***"
        elif verb not in _KNOWN and _GUARDED in session.notes:
            verb, argument = UNKNOWN, "***"
        facts: dict[str, Any] = {
            "session": session.id,
            "peer": session.peer_host or "unix",
            "verb": verb,
            "argument": argument,
        }
        if command.verb == END_OF_DATA:
            facts["sender"] = session.from_
            facts["recipients"] = [str(address) for address in session.to]
            facts["size"] = session.message.size if session.message is not None else 0
        return facts

    def _about(self, facts: dict[str, Any]) -> str:
        """What stands in for an argument, where there is none."""
        if "size" in facts:
            recipients = ",".join(f"<{address}>" for address in facts["recipients"])
            return f" from=<{facts['sender']}> to={recipients} size={facts['size']}"
        return f" from {facts['peer']}" if facts["verb"] == CONNECT else ""
