"""EarlyTalker: a pause before the banner; who talks during it is refused."""

from __future__ import annotations

from socket import MSG_PEEK

from greensmtp.chain.chain import Proceed
from greensmtp.middleware._pause import hears
from greensmtp.middleware._validate import check_number, make_refusal
from greensmtp.protocol.command import CONNECT, Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: Clients wait five minutes for the banner (RFC 5321 section 4.5.3.2.1); none should have to wait for much of that.
_LONGEST = 60.0
_SHORTEST = 0.001

_SPOKE_FIRST = Reply(554, "5.5.1 A client waits for the greeting (RFC 5321 section 3.1)")


class EarlyTalker:
    """Waits before the banner, and refuses the client that does not, with 554 5.5.1.

    Programs that send spam, and browsers that were sent here, talk at once; mail servers wait for the greeting (RFC
    5321 section 3.1). Under implicit TLS the pause begins when TLS is up. Only this connection waits, and not for a
    server that is shutting down. Clients on unix sockets are not made to wait.

    :param pause: seconds.
    :param code, message: the reply, instead of ``554 5.5.1 ...``. (At CONNECT every 4xx goes out as 421, every 5xx as
        554.)
    :raises ValueError: an argument is out of range.
    """

    verbs = (CONNECT,)

    def __init__(self, pause: float = 2.0, *, code: int | None = None, message: str | None = None) -> None:
        self.pause = check_number("pause", pause, least=_SHORTEST, most=_LONGEST)
        self._refusal = make_refusal(code, message, _SPOKE_FIRST)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Wait, and listen."""
        if session.peer_host is not None and hears(session, self.pause) and _has_talked(session):
            return self._refusal
        return proceed(session, command)

    def __repr__(self) -> str:
        return f"EarlyTalker(pause={self.pause:g})"


def _has_talked(session: Session) -> bool:
    """It has sent something, rather than hung up."""
    if session.tls:
        return True  # which of the two a sealed record holds cannot be told; and who is gone hears no reply
    try:
        return bool(session.socket.recv(1, MSG_PEEK))
    except OSError:
        return False
