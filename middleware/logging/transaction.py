"""What Logging keeps of a transaction until its line is written, the facts in that line, and its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

from greensmtp.middleware._message_replies import Replies
from greensmtp.middleware.logging.facts import Facts, identity_of, tls_of, to_microseconds
from greensmtp.protocol.log_text import (
    LISTED,
    address,
    addresses,
    cut,
    printable,
    reply_text,
    shown,
    without_fields,
    word,
)
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import find_queue_id
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.session.stream import MessageStream

#: Refused recipients that are kept for the transaction's line. All are counted.
_MAX_REFUSED: Final = 20

#: Characters of a queue ID that are logged.
_MAX_QUEUE_ID: Final = 128


class TransactionRecord:
    """A transaction, which the session has forgotten by its end. Once ``end`` was called, any thread may read it."""

    __slots__ = (
        "_cipher",
        "_identity",
        "_outcome",
        "_peer",
        "_reason",
        "_recipient_count",
        "_reply",
        "_seconds",
        "_session_id",
        "_tls",
        "_told",
        "_told_queue_id",
        "began",
        "forwarded",
        "id",
        "message",
        "recipients",
        "refused",
        "refused_count",
        "replies",
        "sender",
        "size",
    )

    def __init__(self, began: float, session: Session, sender: str | None = None) -> None:
        self.began = began
        self.id = session.transaction_id
        self.sender = (session.from_ or "") if sender is None else sender
        self.recipients: Sequence[str] = session.to
        self.message: MessageStream | None = session.message
        #: Bytes of the message, known once ``end`` was called.
        self.size = 0
        self.forwarded = session.forwarded
        self.refused: Sequence[tuple[str, Reply]] = ()
        self.refused_count = 0
        self.replies: Replies = []
        #: The recipients with their replies (LMTP), and the first queue ID in one of these.
        self._told: Sequence[tuple[str, Reply]] | None = None
        self._told_queue_id: str | None = None

    def refuse(self, recipient: str, reply: Reply) -> None:
        """Note a refused recipient."""
        self.refused_count += 1
        if len(self.refused) < _MAX_REFUSED:
            self.refused = (*self.refused, (recipient, reply))

    def end(
        self,
        session: Session,
        outcome: str,
        reason: str | None,
        reply: Reply | None,
        *,
        tls: str | None,
        cipher: str | None,
    ) -> None:
        """Keep what the session may change or forget.

        :param reason: what cut the transaction short: a verb, or the end of the connection.
        """
        self._seconds = perf_counter() - self.began
        self._session_id = session.id
        self._peer = session.peer_host
        self._tls = tls_of(session, tls)
        self._cipher = cipher
        self._identity = None if session.identity is None else identity_of(session)
        if session.server.lmtp and self.replies:
            told = [(to, each) for to, each in zip(self.recipients, self.replies, strict=False) if each is not None]
            self._told = told[:LISTED]
            self._told_queue_id = next(filter(None, (self._queue_id(each) for _, each in told)), None)
        self.replies = []
        self._recipient_count = len(self.recipients)
        self.recipients = self.recipients[:LISTED]
        if self.message is not None:
            self.size = self.message.size
            self.message = None
        self._outcome = outcome
        self._reason = reason
        self._reply = reply

    def facts(self) -> Facts:
        """Return the attributes of the transaction's log record."""
        forwarded, reply = self.forwarded, self._reply
        facts: Facts = {
            "event": "transaction",
            "session": self._session_id,
            "transaction": self.id,
            "peer": shown(self._peer or "unix"),
            "seconds": to_microseconds(self._seconds),
            "tls": self._tls,
            "cipher": self._cipher,
            "identity": self._identity,
            "forwarded": None if forwarded is None else {name: shown(value) for name, value in forwarded.items()},
            "sender": shown(self.sender),
            "recipients": [shown(recipient) for recipient in self.recipients],
            "recipient_count": self._recipient_count,
            "refused": _reply_facts(self.refused),
            "refused_count": self.refused_count,
            "size": self.size,
            "outcome": self._outcome,
            "reason": self._reason,
            "reply": None if reply is None else reply.code,
            "reply_text": None if reply is None else reply_text(reply),
            "queue_id": None if reply is None else self._queue_id(reply),
        }
        if self._told is not None:
            facts["replies"] = _reply_facts(self._told)
            facts["queue_id"] = self._told_queue_id
        return facts

    def __str__(self) -> str:
        refused = tls = identity = client = ""
        if self.refused:
            each = ",".join(f"{address(recipient)}:{reply.code}" for recipient, reply in self.refused)
            rest = self.refused_count - len(self.refused)
            refused = f" refused={each}" + (f",...({rest} more)" if rest else "")
        if self.forwarded:
            name, host = (word(cut(self.forwarded.get(key) or "")) for key in ("NAME", "ADDR"))
            client = f" client={name}[{host}]"
        if self._tls:
            tls = f" tls={word(self._tls)}"
        if self._identity:
            identity = f" identity={word(self._identity)}"
        if self._told is not None:
            end = "; ".join(
                f"{address(recipient)} {reply.code} {without_fields(reply_text(reply).replace(';', ','))}"
                for recipient, reply in self._told
            )
        elif self._reply is not None:
            end = f"{self._reply.code} {without_fields(reply_text(self._reply))}"
        else:
            end = self._outcome
        if self._reason is not None:
            end = f"{end}, {self._reason}"
        took = f"{self._seconds * 1000:.1f}"  # (One format beside others makes mypyc format all parts in a slow way.)
        line = (
            f"{self.id} message from={address(self.sender)} to={addresses(self.recipients, self._recipient_count)}"
            f"{refused} size={self.size} peer={word(cut(self._peer or 'unix'))}{client}{tls}{identity} -> {end} "
            f"({took} ms)"
        )
        return line if line.isprintable() else printable(line)

    def _queue_id(self, reply: Reply) -> str | None:
        """Return the queue ID in a reply to an accepted message."""
        text = reply.text
        if text == f"Ok: queued as {self.id}":
            return self.id  # the usual one (the search takes 10,000 instructions)
        if reply.code >= 300 or "queued" not in text.lower():
            return None
        found = find_queue_id(text)
        return None if found is None else found[:_MAX_QUEUE_ID]


def _reply_facts(replies: Iterable[tuple[str, Reply]]) -> list[Facts]:
    """Return each recipient's reply: ``{"recipient": ..., "reply": 250, "reply_text": ...}``."""
    return [
        {"recipient": shown(recipient), "reply": reply.code, "reply_text": reply_text(reply)}
        for recipient, reply in replies
    ]
