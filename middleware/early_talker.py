"""EarlyTalker: a pause before the banner, and a refusal for clients that send something during it."""

from __future__ import annotations

from socket import MSG_PEEK

from gevent.ssl import SSLSocket

from greensmtp.chain.chain import Proceed
from greensmtp.middleware._pause import wait_readable
from greensmtp.middleware._validate import check_number, make_refusal
from greensmtp.protocol.command import CONNECT, Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: Seconds. Clients wait five minutes for the banner (RFC 5321 section 4.5.3.2.1).
_MIN_PAUSE = 0.001
_MAX_PAUSE = 60.0

_SPOKE_FIRST = Reply(554, "5.5.1 Wait for the banner before sending (RFC 5321 section 3.1)")


class EarlyTalker:
    """Pauses before the banner, and refuses clients that do not wait for it, with 554 5.5.1.

    Programs that send spam, and browsers that were directed here, send at once. Mail servers wait for the banner (RFC
    5321 section 3.1). Under implicit TLS the pause begins when TLS is up. Only this connection waits, and a server that
    shuts down ends the pause. Clients on unix sockets do not wait.

    :param pause: seconds before the banner.
    :param code: the code of the refusal; None: 554. At CONNECT a 4xx is sent as 421, a 5xx as 554.
    :param message: its text.
    :raises ValueError: an argument is out of range.
    """

    verbs = (CONNECT,)

    def __init__(self, pause: float = 2.0, *, code: int | None = None, message: str | None = None) -> None:
        self.pause = check_number("pause", pause, least=_MIN_PAUSE, most=_MAX_PAUSE)
        self._refusal = make_refusal(code, message, _SPOKE_FIRST)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Wait for the pause to end, or for the client to send something."""
        if session.peer_host is not None and wait_readable(session, self.pause) and _has_sent(session):
            return self._refusal
        return proceed(session, command)

    def __repr__(self) -> str:
        return f"EarlyTalker(pause={self.pause:g})"


def _has_sent(session: Session) -> bool:
    """Return whether the client has sent something, rather than hung up."""
    if isinstance(session.socket, SSLSocket):
        return True  # an encrypted record may be either; a client that is gone gets no reply
    try:
        return bool(session.socket.recv(1, MSG_PEEK))
    except OSError:
        return False
