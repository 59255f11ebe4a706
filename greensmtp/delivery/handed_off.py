"""A message that another program gets through a queue: its envelope, and its content.

``CeleryTask`` and ``RedisStream`` put them into a queue; ``mail_task`` and ``read_entry`` take them out.
"""

from __future__ import annotations

import base64
import email.policy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Any, NamedTuple

from greensmtp.delivery._store import stored_message
from greensmtp.delivery.contract import Envelope
from greensmtp.protocol.address import Address


class MailEnvelope(NamedTuple):
    """The envelope of a message in a queue."""

    #: The ID of the reply ``queued as ID``. A message that is delivered twice has the same one.
    id: str
    sender: str
    recipients: tuple[str, ...]
    #: The client's address; None on a unix socket.
    peer: str | None
    #: The client's name, from EHLO.
    hello: str | None
    #: The authenticated user; None if there is none.
    identity: str | None
    #: The name of the server that has accepted it.
    server: str
    #: The time of acceptance, in seconds since 1970.
    time: float

    @classmethod
    def of(cls, envelope: Envelope, recipients: Sequence[Address]) -> MailEnvelope:
        """Return the envelope of a message that is being delivered."""
        session = envelope.session
        return cls(
            id=envelope.id,
            sender=str(envelope.sender),
            recipients=tuple(map(str, recipients)),
            peer=session.peer_host,
            hello=session.hostname,
            identity=None if session.identity is None else str(session.identity),
            server=session.server.hostname,
            time=datetime.now(UTC).timestamp(),
        )


class MailContent:
    """The content of a message in a queue: in the queue itself, or in the store."""

    def __init__(self, content: bytes | None, location: str | None) -> None:
        self._content = content
        #: The path of a file that all machines share, or a URL: ``s3://bucket/prefix/ID.eml``.
        self.location = location

    @property
    def path(self) -> Path | None:
        """The path of the file; None if the content is in the queue or in S3."""
        return None if self.location is None or "://" in self.location else Path(self.location)

    def read(self) -> bytes:
        """Return the content.

        :raises OSError: it cannot be read from the store.
        """
        return self._content or b"" if self.location is None else stored_message(self.location).read()

    def parse(self) -> EmailMessage:
        """Return the message parsed by the standard library's ``email``."""
        return BytesParser(policy=email.policy.default).parsebytes(self.read())


def read_envelope(data: Mapping[str, Any]) -> MailEnvelope:
    """Return the envelope of a task's first argument."""
    return MailEnvelope(**{**data, "recipients": tuple(data["recipients"])})


def read_content(data: Mapping[str, str]) -> MailContent:
    """Return the content of a task's second argument."""
    if "path" in data:
        return MailContent(None, data["path"])
    return MailContent(base64.b64decode(data["content"]), None)
