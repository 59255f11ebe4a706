"""What Logging keeps of a session until its line is written, and the facts in that line and in that of an AUTH."""

from __future__ import annotations

from greensmtp.middleware.logging.facts import Facts, identity_of, peer_of, seconds_since, tls_of
from greensmtp.middleware.logging.transaction import TransactionRecord
from greensmtp.protocol.log_text import reply_text, shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session


class SessionRecord:
    """What the session does not keep itself, or has forgotten by its end."""

    __slots__ = ("began", "cipher", "recipients", "refusal", "size", "tls", "transaction")

    def __init__(self, began: float | None) -> None:
        #: None: logging was enabled later.
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
            # (Behind a proxy these are its words.)
            self.tls = shown(session.tls_version or "TLS")
            cipher = session.tls_cipher
            self.cipher = None if cipher is None else shown(cipher)


def session_facts(session: Session, record: SessionRecord, reason: str) -> Facts:
    """Return the facts of a session that has ended."""
    refusal = record.refusal
    return {
        "event": "session",
        "session": session.id,
        "peer": peer_of(session),
        "seconds": None if record.began is None else seconds_since(record.began),
        "tls": tls_of(session, record.tls),
        "cipher": record.cipher,
        "identity": identity_of(session),
        "greeting": session.greeting,
        "hostname": None if session.hostname is None else shown(session.hostname),
        "messages": session.messages_accepted,
        "recipient_count": record.recipients,
        "octets": record.size,
        "reason": reason,
        "reply": None if refusal is None else refusal.code,
        "reply_text": None if refusal is None else reply_text(refusal),
    }


def auth_facts(session: Session, began: float, reply: Reply) -> Facts:
    """Return the facts of an AUTH that was refused."""
    return {
        "event": "auth",
        "session": session.id,
        "peer": peer_of(session),
        "seconds": seconds_since(began),
        "reply": reply.code,
        "reply_text": reply_text(reply),
    }
