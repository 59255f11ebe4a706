"""A server that counts its connections, and pools of connections to it."""

from __future__ import annotations

from typing import Any

from greensmtp import Ack, MessageStream, Pool, Session, SMTPServer


class Counter:
    """A server, and what it observes."""

    def __init__(self, server: SMTPServer) -> None:
        self.connections = 0
        self.open = 0
        self.most = 0
        self.commands: list[str] = []
        self.bodies: list[bytes] = []
        self.reasons: list[str] = []
        server.on("connect", self._connect)
        server.on("disconnect", self._disconnect)
        server.on("command", self._command)
        server.on("to", self._choose)
        server.on("message", self._take)

    def _connect(self, session: Session, ack: Ack) -> None:
        self.connections += 1
        self.open += 1
        self.most = max(self.most, self.open)
        ack.accept()

    def _disconnect(self, session: Session, reason: str) -> None:
        self.open -= 1
        self.reasons.append(reason)

    def _command(self, session: Session, command: Any, ack: Ack) -> None:
        self.commands.append(command.verb)

    def _choose(self, session: Session, address: Any, ack: Ack) -> None:
        if address.local_part == "no":
            ack.reject(550, "no")
        else:
            ack.accept()

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        self.bodies.append(stream.read())


def pool_of(server: Any, size: int = 3, **options: Any) -> Pool:
    port = server.port if hasattr(server, "port") else server.address[1]
    options.setdefault("timeout", 10)
    return Pool("127.0.0.1", port, size, **options)
