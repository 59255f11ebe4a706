"""A greensmtp server of each kind of listener, for real clients and relays: it records what they do."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from greensmtp import Ack, Address, MessageStream, Reject, Session, SMTPServer
from greensmtp.middleware import Auth

if TYPE_CHECKING:
    from tests.conftest import Certificate

_SMTP = {"extensions": {"DSN": True, "REQUIRETLS": True}}
#: Kind of listener -> arguments of SMTPServer. ("plain" and "starttls" differ in what clients do. LMTP is without DSN,
#: so that relays have to notify senders themselves.)
KINDS: dict[str, dict[str, Any]] = {
    "plain": _SMTP,
    "starttls": _SMTP,
    "tls": _SMTP | {"implicit_tls": True},
    "unix": _SMTP,
    "lmtp": {"lmtp": True},
    "lmtp+unix": {"lmtp": True},
}
#: The user, the password, and the recipient that is refused.
USER, PASSWORD, NO = "jo", "se,=same", "no@example.org"

#: Seconds until a message must have arrived.
TIMEOUT = 20.0


class Mail(NamedTuple):
    """A message that has arrived, and how."""

    mechanism: str | None
    tls: bool
    sender: Address
    recipients: tuple[Address, ...]
    body: bytes


class Listener:
    """A server in a thread of its own. ``commands`` are all commands; ``mail`` is a queue of what arrives."""

    def __init__(self, kind: str, folder: Path, certificate: Certificate) -> None:
        self.kind = kind
        self.path = str(folder / kind) if kind.endswith("unix") else None
        self.server = SMTPServer(
            self.path or ("127.0.0.1", 0),
            hostname="mx.example.com",
            certfile=certificate.certfile,
            keyfile=certificate.keyfile,
            middleware=[Auth({USER: PASSWORD}, allow_plaintext=True)],
            **KINDS[kind],
        )
        self.authority = certificate.authority
        self.commands: list[str] = []
        self._mail: queue.SimpleQueue[Mail] = queue.SimpleQueue()
        self.server.on("command", self._command)
        self.server.on("to", self._to)
        self.server.on("message", self._message)

    @property
    def port(self) -> int:
        """The port; not of unix sockets."""
        return int(self.server.address[1])

    def take(self) -> Mail:
        """Return the next message, when it has arrived."""
        return self._mail.get(timeout=TIMEOUT)

    def clear(self) -> None:
        """Forget everything."""
        self.commands.clear()
        while not self._mail.empty():
            self._mail.get()

    def _command(self, session: Session, command: Any, ack: Ack) -> None:
        self.commands.append(str(command))

    def _to(self, session: Session, address: Address, ack: Ack) -> None:
        if address == NO:
            raise Reject(550, "5.1.1 No such user")
        ack.accept()

    def _message(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        mechanism = None if session.identity is None else session.identity.mechanism
        assert session.from_ is not None
        sender, recipients = session.from_, tuple(session.to)
        self._mail.put(Mail(mechanism, bool(session.tls), sender, recipients, stream.read()))


@contextmanager
def listening(folder: Path, certificate: Certificate) -> Iterator[dict[str, Listener]]:
    """Start a listener of each kind, with unix sockets in a folder."""
    with ExitStack() as stack:
        listeners = {kind: Listener(kind, folder, certificate) for kind in KINDS}
        for each in listeners.values():
            stack.enter_context(each.server.in_thread())
            if each.path is not None:
                Path(each.path).chmod(0o777)
        yield listeners
