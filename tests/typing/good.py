"""A user's program that type checkers must accept."""

from __future__ import annotations

from typing import Any

from greensmtp import (
    Ack,
    Address,
    ChunkCommand,
    Command,
    EndOfData,
    HelloCommand,
    Limits,
    LookupCommand,
    Mail,
    MessageStream,
    PathCommand,
    Proceed,
    QueueCommand,
    Reply,
    Session,
    SMTPServer,
    signals,
)
from greensmtp.chain import middleware

server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", max_message_size=None, command_timeout=30)
limited = SMTPServer("127.0.0.1:0", limits=Limits(max_recipients=10))
switched = SMTPServer("127.0.0.1:0", extensions={"DSN": True, "FUTURERELEASE": (86400, None)}, lenient_addresses=True)


@server.on("connect")
def connected(session: Session, ack: Ack) -> None:
    @session.on("quit")
    def left(session: Session) -> None:
        print(session.id)

    ack.accept()


@server.on("command")
def every_command(session: Session, command: Command, ack: Ack) -> None:
    if command.verb == "VRFY":
        ack.replace(252, "2.0.0 perhaps")


@server.on("greeting")
def hello(session: Session, greeting: HelloCommand, ack: Ack) -> None:
    ack.accept() if greeting.hostname else ack.reject()


@server.on("from")
@server.on("to")
def address(session: Session, address: Address, ack: Ack) -> Reply | None:
    return None if address.domain == "example.com" else Reply(550, "5.7.1 relaying denied")


@server.on("from")
def options(session: Session, address: Address, ack: Ack) -> None:
    print((address.mail_options.envid or "").upper(), "DSN" in session.extensions)
    ack.accept()


@server.on("vrfy")
@server.on("expn")
def look_up(session: Session, command: LookupCommand, ack: Ack) -> Reply | None:
    return Reply(250, command.lookup.name.upper()) if command.lookup.address else Reply(550, "5.1.1 no")


@switched.on("etrn")
def start_queue(session: Session, command: QueueCommand, ack: Ack) -> None:
    ack.accept() if command.queue.kind == "domain" else ack.reject(459, command.queue.name)


@server.on("message")
def message(session: Session, ack: Ack, stream: MessageStream) -> None:
    ack.accept()
    print(stream.read(), session.server.hostname, session.server.limits.max_recipients)


@server.on("received")
def received(session: Session, ack: Ack) -> None:
    ack.accept()


@signals.on("received")
def received_for_each(session: Session, recipient: Address, ack: Ack) -> None:
    ack.accept()


@signals.on("disconnect")
def disconnected(session: Session, reason: str) -> None:
    print(reason.upper())


@server.on("to")
def takes_any(session: Session, **fields: Any) -> None:
    fields["ack"].accept()


class Greylist:
    def __call__(self, session: Session, address: Address, ack: Ack) -> None:
        ack.accept()


server.on("to", Greylist())
server.on("to", lambda session, address, ack: ack.accept() if address.domain else ack.reject(550))
server.signals.on("reset", print)
again: str = str(address(Session.__new__(Session), Address("", "", ""), ack=Ack.__new__(Ack)))  # its type is kept


@server.on_mail
def store(mail: Mail) -> None:
    print(mail.sender, mail.parse()["Subject"])


@middleware(verbs=("EHLO", "MAIL", "RCPT", "BDAT", "END-OF-DATA"))
def look(session: Session, command: Command, proceed: Proceed) -> Reply:
    if isinstance(command, PathCommand):
        print(command.address.domain)
    elif isinstance(command, ChunkCommand):
        print(command.size + 1)
    elif isinstance(command, HelloCommand):
        print(command.hostname.upper())
    elif isinstance(command, EndOfData) and command.recipient is not None:
        print(command.recipient.domain)
    return proceed(session, command)


server.use(look)


def plain(session: Session, command: Command, proceed: Proceed) -> Reply:
    if session.identity is not None:
        print(session.identity.authcid.upper(), session.socket.fileno())
    if isinstance(session.peer, tuple):
        print(session.peer[0].upper())
    return proceed(session, command)


server.use(plain)
if isinstance(server.address, tuple):
    host, port = server.address
    print(host.upper(), port + 1)
