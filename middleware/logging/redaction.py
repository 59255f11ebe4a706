"""What Logging shows of a command: no argument of AUTH, and nothing that may be a password in the place of a command.

After a refused AUTH some clients send user name and password all the same, which the server reads as unknown commands.
A malformed line may have been AUTH.
"""

from __future__ import annotations

from greensmtp.protocol.command import KNOWN_BUT_NOT_IMPLEMENTED, PARSERS, PSEUDO_COMMANDS, UNKNOWN, Command
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

_KNOWN = PSEUDO_COMMANDS | KNOWN_BUT_NOT_IMPLEMENTED | frozenset(PARSERS)

#: The key in a session's notes which says that passwords may follow.
_GUARDED = "greensmtp.middleware.logging: guarded"


def note_secrets(session: Session, command: Command, reply: Reply) -> None:
    """Note whether passwords may follow this command."""
    if command.verb == UNKNOWN or (command.is_secret and not reply.is_positive):
        session.notes[_GUARDED] = True


def shown_command(session: Session, command: Command, *, guarded: bool = False) -> tuple[str, str]:
    """Return verb and argument as they may be logged.

    :param guarded: passwords may follow, whatever has been noted.
    """
    if command.is_secret:
        return "AUTH", command.argument and "***"
    if command.verb not in _KNOWN and (guarded or _GUARDED in session.notes):
        return UNKNOWN, "***"
    return shown(command.verb), shown(command.argument)
