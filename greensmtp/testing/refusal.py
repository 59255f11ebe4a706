"""The rules of ``SMTPSink.refuse``: which commands a sink refuses."""

from __future__ import annotations

from fnmatch import fnmatchcase

from greensmtp.protocol.command import CONNECT, END_OF_DATA, Command, EndOfData, HelloCommand, PathCommand
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: Verb -> the stage that ``refuse`` takes for it.
STAGES = {
    CONNECT: CONNECT,
    "HELO": "EHLO",
    "EHLO": "EHLO",
    "LHLO": "EHLO",
    "STARTTLS": "STARTTLS",
    "AUTH": "AUTH",
    "MAIL": "MAIL",
    "RCPT": "RCPT",
    "DATA": "DATA",
    "BDAT": "DATA",
    END_OF_DATA: END_OF_DATA,
}

#: Stages whose replies have no enhanced status code (RFC 2034 section 4).
_PLAIN = frozenset({CONNECT, "EHLO"})


class Refusal:
    """A rule that refuses commands, made by ``SMTPSink.refuse``.

    ``hits`` counts the commands that it has refused; ``cancel()`` ends the rule.
    """

    def __init__(
        self, stage: str, code: int | Reply, message: str | None, matching: str | None, times: int | None
    ) -> None:
        name = STAGES.get(str(stage).upper().replace("_", "-"))
        if name is None:
            raise ValueError(f"stage: expected one of {', '.join(dict.fromkeys(STAGES.values()))}; got {stage!r}")
        if times is not None and times < 1:
            raise ValueError(f"times: expected at least 1, or None for every time; got {times!r}")
        self.stage = name
        self.reply = code if isinstance(code, Reply) and message is None else self._make_reply(code, message)
        if not 400 <= self.reply.code <= 599:
            raise ValueError(f"code: expected a 4xx or 5xx reply code; got {self.reply.code}")
        self.hits = 0
        self._matching = matching
        #: How many more commands it refuses; None for all.
        self._left = times

    def _make_reply(self, code: int | Reply, message: str | None) -> Reply:
        if isinstance(code, Reply):
            raise TypeError("expected a Reply or a message; got both: the Reply has its own text")
        if not isinstance(code, int):
            raise TypeError(f"code: expected a reply code, like 451, or a Reply; got {code!r}")
        if message is not None and not isinstance(message, str):
            raise TypeError(f"message: expected a str; got {message!r}")
        enhanced = None if self.stage in _PLAIN else ""
        return Reply(code, message or "Refused, as the test has asked for", enhanced=enhanced)

    def cancel(self) -> None:
        """Stop refusing."""
        self._left = 0

    @property
    def is_over(self) -> bool:
        """True if it refuses no more commands."""
        return self._left == 0

    def matches(self, values: list[str] | None) -> bool:
        """True if it refuses a command with these values; see ``values_of``."""
        if self._matching is None:
            return True
        return values is not None and any(matches_pattern(value, self._matching) for value in values)

    def count(self) -> None:
        """Count a command that it refuses."""
        self.hits += 1
        if self._left is not None:
            self._left -= 1

    def __repr__(self) -> str:
        return f"<Refusal {self.stage} {self.reply} hits={self.hits}>"


def values_of(session: Session, command: Command) -> list[str] | None:
    """Return the values to compare a rule's ``matching`` with; None if they are not known yet."""
    if isinstance(command, PathCommand):
        return [str(command.address)]
    if isinstance(command, HelloCommand):
        return [command.hostname]
    if isinstance(command, EndOfData) and command.recipient is not None:
        return [str(command.recipient)]
    if command.verb in (END_OF_DATA, "DATA", "BDAT"):
        return [str(each) for each in session.to]
    if command.verb == CONNECT:
        return [session.peer_host or ""]
    return None


def matches_pattern(text: str, pattern: str) -> bool:
    """True if the pattern matches the whole text, case-insensitive; only ``*`` is special, not brackets and ``?``."""
    escaped = "".join(f"[{char}]" if char in "[?" else char for char in pattern.casefold())
    return fnmatchcase(text.casefold(), escaped)
