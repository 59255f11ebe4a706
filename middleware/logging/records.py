"""What Logging keeps of a session and of a transaction until their lines are written, and the facts in those lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from greensmtp.middleware._message_replies import Replies
from greensmtp.protocol.log_text import LISTED, reply_text, shown
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import find_queue_id
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.session.stream import MessageStream

#: A record's attributes, from which its line is written.
Facts = dict[str, Any]

#: Refused recipients that are kept for the transaction's line. All are counted.
_MAX_REFUSED: Final = 20

#: Characters of a queue ID that are logged.
_MAX_QUEUE_ID: Final = 128


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


class TransactionRecord:
    """A transaction, which the session has forgotten by its end."""

    __slots__ = ("began", "forwarded", "id", "message", "recipients", "refused", "refused_count", "replies", "sender")

    def __init__(self, began: float, session: Session, sender: str | None = None) -> None:
        self.began = began
        self.id = session.transaction_id
        self.sender = (session.from_ or "") if sender is None else sender
        self.recipients: Sequence[str] = session.to
        self.message: MessageStream | None = session.message
        self.forwarded = session.forwarded
        self.refused: list[tuple[str, Reply]] = []
        self.refused_count = 0
        self.replies: Replies = []

    def refuse(self, recipient: str, reply: Reply) -> None:
        """Note a refused recipient."""
        self.refused_count += 1
        if len(self.refused) < _MAX_REFUSED:
            self.refused.append((recipient, reply))


def session_facts(session: Session, record: SessionRecord, reason: str) -> Facts:
    """Return the facts of a session that has ended."""
    refusal = record.refusal
    return {
        "event": "session",
        "session": session.id,
        "peer": peer_of(session),
        "seconds": None if record.began is None else seconds_since(record.began),
        "tls": _tls_of(session, record),
        "cipher": record.cipher,
        "identity": _identity_of(session),
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


def transaction_facts(
    session: Session,
    record: SessionRecord,
    transaction: TransactionRecord,
    *,
    outcome: str,
    reason: str | None,
    reply: Reply | None,
) -> Facts:
    """Return the facts of a transaction that is over.

    :param reason: what cut it short: a verb, or the end of the connection.
    """
    recipients, message, forwarded = transaction.recipients, transaction.message, transaction.forwarded
    # (Without a call for each field: this is done for each message.)
    facts: Facts = {
        "event": "transaction",
        "session": session.id,
        "transaction": transaction.id,
        "peer": peer_of(session),
        "seconds": round((perf_counter() - transaction.began) * 1e6) / 1e6,  # as seconds_since
        "tls": record.tls or ("TLS" if session.tls else None),
        "cipher": record.cipher,
        "identity": None if session.identity is None else _identity_of(session),
        "forwarded": None if forwarded is None else {name: shown(value) for name, value in forwarded.items()},
        "sender": shown(transaction.sender),
        "recipients": [shown(recipient) for recipient in recipients[:LISTED]],
        "recipient_count": len(recipients),
        "refused": _reply_facts(transaction.refused) if transaction.refused else [],
        "refused_count": transaction.refused_count,
        "size": 0 if message is None else message.size,
        "outcome": outcome,
        "reason": reason,
        "reply": None if reply is None else reply.code,
        "reply_text": None if reply is None else reply_text(reply),
        "queue_id": None if reply is None else _queue_id(reply, transaction),
    }
    if session.server.lmtp and transaction.replies:
        told = [(to, each) for to, each in zip(recipients, transaction.replies, strict=False) if each is not None]
        facts["replies"] = _reply_facts(told[:LISTED])
        facts["queue_id"] = next(filter(None, (_queue_id(each, transaction) for _, each in told)), None)
    return facts


def seconds_since(began: float) -> float:
    """Return the seconds since a time of ``perf_counter``, to the microsecond."""
    # round(seconds, 6) gives the same by way of a decimal text, which takes twice as long.
    return round((perf_counter() - began) * 1e6) / 1e6


def peer_of(session: Session) -> str:
    """Return the client's address, or ``unix``."""
    return shown(session.peer_host or "unix")


def _identity_of(session: Session) -> str | None:
    """Return the user's name. Nothing else of the identity is logged."""
    identity = session.identity
    return None if identity is None else shown(getattr(identity, "authcid", identity))


def _tls_of(session: Session, record: SessionRecord) -> str | None:
    """Return the TLS version, which is unknown if no EHLO followed STARTTLS."""
    return record.tls or ("TLS" if session.tls else None)


def _reply_facts(replies: Iterable[tuple[str, Reply]]) -> list[Facts]:
    """Return each recipient's reply: ``{"recipient": ..., "reply": 250, "reply_text": ...}``."""
    return [
        {"recipient": shown(recipient), "reply": reply.code, "reply_text": reply_text(reply)}
        for recipient, reply in replies
    ]


def _queue_id(reply: Reply, transaction: TransactionRecord) -> str | None:
    """Return the queue ID in a reply to an accepted message."""
    text = reply.text
    if text == f"Ok: queued as {transaction.id}":
        return transaction.id  # the usual one (the search takes 10,000 instructions)
    if reply.code >= 300 or "queued" not in text.lower():
        return None
    found = find_queue_id(text)
    return None if found is None else found[:_MAX_QUEUE_ID]
