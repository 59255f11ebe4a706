"""One line of output for every accepted message."""

from __future__ import annotations

from collections.abc import Sequence

from greensmtp.chain.chain import Proceed
from greensmtp.line_writer import LineWriter
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import END_OF_DATA, Command, EndOfData
from greensmtp.protocol.log_text import LISTED, address, addresses, printable, reply_text, without_fields
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session


class Announce:
    """A middleware that prints a line for every message that was accepted for at least one recipient."""

    verbs = (END_OF_DATA,)

    def __init__(self, stdout: LineWriter) -> None:
        self._stdout = stdout

    def __repr__(self) -> str:
        return "Announce()"

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Print the line once the message is stored; in LMTP, after the reply for the last recipient.

        The Maildir moves its file when the staged changes take effect, so the line is staged behind it: a message that
        cannot be stored has no line, and one that has a line is there.
        """
        assert isinstance(command, EndOfData)
        reply = proceed(session, command)
        if command.recipient is None:
            if reply.is_positive:
                session.stage(self._print, session, session.to, reply)
            return reply
        accepted: list[tuple[Address, Reply]] = session.notes.setdefault(self, [])
        if reply.is_positive:
            session.stage(accepted.append, (command.recipient, reply))
        if command.recipient is session.to[-1]:
            del session.notes[self]
            if reply.is_positive:
                session.stage(self._print_each, session, accepted)
            else:
                self._print_each(session, accepted)
        return reply

    def _print_each(self, session: Session, accepted: Sequence[tuple[Address, Reply]]) -> None:
        if accepted:
            self._print(session, [recipient for recipient, _ in accepted], accepted[-1][1])

    def _print(self, session: Session, recipients: Sequence[Address], reply: Reply) -> None:
        size = session.message.size if session.message is not None else 0
        to = addresses(recipients[:LISTED], len(recipients))
        sender = address(session.from_ or "")
        end = without_fields(reply_text(reply))  # which may quote an address
        self._stdout.say(printable(f"message from={sender} to={to} size={size}: {reply.code} {end}"))
