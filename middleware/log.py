"""Logging: what was said on every connection, and how it was answered, without the secrets."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Any

from greensmtp.chain import Proceed
from greensmtp.protocol.commands import CONNECT, DISCONNECT, END_OF_DATA, Command
from greensmtp.protocol.replies import Reply
from greensmtp.session import Session

#: Commands whose argument is a secret, or may be.
_SECRET = frozenset({"AUTH"})


class Logging:
    """Logs the beginning and end of every session and every message at ``level``, every command at DEBUG.

    Each record carries its facts as attributes too, for formatters that make JSON of them: ``session``, ``peer``,
    ``verb``, ``argument``, ``reply`` (code), ``seconds``, and for a message ``sender``, ``recipients``, ``size``.
    What is behind AUTH is shown as ``***``, and answers to challenges do not pass through here at all.

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
        said = "***" if facts["argument"] == "***" else command.argument
        self.logger.log(
            level,
            "%s %s%s -> %s (%.1f ms)",
            session.id,
            command.verb,
            f" {said}" if said else self._about(facts),
            str(reply).replace("\n", " | ") if command.verb != DISCONNECT else "closed",
            facts["seconds"] * 1000,
            extra=facts,
        )
        return reply

    def _facts(self, session: Session, command: Command) -> dict[str, Any]:
        argument = "***" if command.verb in _SECRET and command.argument else str(command.argument)
        facts: dict[str, Any] = {
            "session": session.id,
            "peer": session.peer_host or "unix",
            "verb": command.verb,
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
