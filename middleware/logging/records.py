"""What Logging keeps of a session and of a transaction until their lines are written."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from gevent.ssl import SSLSocket

from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.session.stream import MessageStream

#: Refused recipients that are kept for the transaction's line. All are counted.
_MAX_REFUSED = 20


class SessionRecord:
    """What the session does not keep itself, or has forgotten by its end."""

    __slots__ = ("began", "cipher", "recipients", "refusal", "size", "tls", "transaction")

    def __init__(self, began: float | None) -> None:
        self.began = began
        self.tls: str | None = None
        self.cipher: str | None = None
        self.refusal: Reply | None = None
        self.transaction: TransactionRecord | None = None
        #: Recipients of accepted messages.
        self.recipients = 0
        #: Bytes of all messages.
        self.size = 0

    def note_tls(self, session: Session) -> None:
        """Note the TLS version and cipher, which a closed socket no longer has."""
        if session.tls and self.tls is None:
            socket = cast(SSLSocket, session.socket)
            self.tls = socket.version() or "TLS"
            self.cipher = (socket.cipher() or (None,))[0]

    def facts(self, session: Session, event: str, began: float | None) -> dict[str, Any]:
        """Return the attributes that sessions and transactions have in common."""
        return {
            "event": event,
            "session": session.id,
            "peer": peer_of(session),
            "seconds": None if began is None else round(perf_counter() - began, 6),
            # The version is unknown if no EHLO followed STARTTLS.
            "tls": self.tls or ("TLS" if session.tls else None),
            "cipher": self.cipher,
            "identity": None if session.identity is None else identity_of(session.identity),
        }


class TransactionRecord:
    """A transaction, which the session has forgotten by its end."""

    __slots__ = ("began", "message", "recipients", "refused", "refused_count", "replies", "sender")

    def __init__(self, began: float, session: Session, sender: str | None = None) -> None:
        self.began = began
        self.sender = (session.from_ or "") if sender is None else sender
        self.recipients = session.to
        self.message: MessageStream | None = session.message
        self.refused: list[tuple[str, Reply]] = []
        self.refused_count = 0
        #: LMTP: the replies by recipient.
        self.replies: list[tuple[str, Reply]] = []

    def refuse(self, recipient: str, reply: Reply) -> None:
        """Note a refused recipient."""
        self.refused_count += 1
        if len(self.refused) < _MAX_REFUSED:
            self.refused.append((recipient, reply))


def peer_of(session: Session) -> str:
    """Return the client's address, or ``unix``."""
    return shown(session.peer_host or "unix")


def identity_of(identity: Any) -> str:
    """Return the user's name. Nothing else of the identity is logged."""
    return shown(getattr(identity, "authcid", identity))
