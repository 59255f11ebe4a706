"""What ``send`` returns: the server's replies to one message, by recipient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from greensmtp.protocol.reply import Reply

_QUEUED_AS = re.compile(r"\bqueued(?: mail)?(?: for delivery)?(?: as|:)? +<?([\w.@-]+)>?", re.I)


@dataclass(frozen=True)
class SendResult:
    """The outcome of a message that the server accepted for at least one recipient."""

    sender: str
    #: Each recipient's reply: to RCPT; or in LMTP, where RCPT was accepted, to the message.
    recipients: Mapping[str, Reply] = field(repr=False)
    #: The reply to the message. (LMTP: the first positive one.)
    reply: Reply
    #: The replies to the message in further transactions, where the server's limits made them necessary.
    further_replies: tuple[Reply, ...] = ()
    #: True if the server offers DSN: RET, ENVID, NOTIFY and ORCPT were passed on, and the server sends the reports.
    dsn: bool = field(default=False, repr=False, compare=False)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The recipients for which the message was accepted."""
        return tuple(recipient for recipient, reply in self.recipients.items() if reply.is_positive)

    @property
    def refused(self) -> dict[str, Reply]:
        """The other recipients, each with the reply that refused it."""
        return {recipient: reply for recipient, reply in self.recipients.items() if not reply.is_positive}

    @property
    def queue_id(self) -> str | None:
        """The server's name for the message, where its reply says ``queued as ...``; else None."""
        return find_queue_id(self.reply.text)

    @property
    def queue_ids(self) -> tuple[str, ...]:
        """The server's names for the message: several where it was sent in several transactions."""
        found = (find_queue_id(reply.text) for reply in (self.reply, *self.further_replies))
        return tuple(each for each in found if each is not None)


def find_queue_id(text: str) -> str | None:
    """Return the queue ID in a reply's text such as ``2.0.0 Ok: queued as 4f2a1``; None if there is none."""
    found = _QUEUED_AS.search(text)
    return None if found is None else found[1]
