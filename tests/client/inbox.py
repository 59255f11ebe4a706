"""A server that keeps what it receives, and messages for it."""

from __future__ import annotations

from email.message import EmailMessage
from typing import Any

from greensmtp import Ack, Address, MessageStream, Session, SMTPServer, connect


class Inbox:
    """What a server has received: commands, envelopes, content."""

    def __init__(self, server: SMTPServer) -> None:
        self.server = server
        self.commands: list[str] = []
        self.senders: list[Address] = []
        self.recipients: list[list[Address]] = []
        self.bodies: list[bytes] = []
        server.on("message", self._take)
        server.on("to", self._choose)
        server.on("command", self._note)

    def _note(self, session: Session, command: Any, ack: Ack) -> None:
        self.commands.append(str(command))

    def _choose(self, session: Session, address: Address, ack: Ack) -> None:
        if address.local_part == "no":
            ack.reject(550, "5.1.1 no such user")
        elif address.local_part == "later":
            ack.reject(450, "4.2.1 busy")
        else:
            ack.accept()

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        if session.from_ == "refuse@example.com":
            ack.reject(554, "5.7.1 no")
            return
        ack.accept()
        assert session.from_ is not None
        self.senders.append(session.from_)
        self.recipients.append(list(session.to))
        self.bodies.append(stream.read())

    def send(self, *args: Any, **options: Any) -> Any:
        """Send a message on a new connection."""
        with connect(*self.server.address, timeout=10) as mail:
            return mail.send(*args, **options)


def composed(**fields: Any) -> EmailMessage:
    message = EmailMessage()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    message.set_content("hi\n")
    return message


ENVELOPE = b"From: a@example.com\r\nTo:  b@example.com ,\r\n\tc@example.com\r\n".replace(b"To:  ", b"To: ")
