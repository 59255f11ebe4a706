"""A user's program with mistakes: type checkers must report an error in each line marked so, and in no other."""

from __future__ import annotations

from typing import Any

from greensmtp import (
    Ack,
    Address,
    ChunkCommand,
    Command,
    Limits,
    PathCommand,
    Proceed,
    Reply,
    Session,
    SMTPServer,
    signals,
)
from greensmtp.chain import middleware

SMTPServer(("127.0.0.1", 0), max_mesage_size=3)  # error
SMTPServer(("127.0.0.1", 0), max_message_size="3")  # error
Limits(max_recipient=3)  # error
server = SMTPServer(("127.0.0.1", 0))


def right(session: Session, address: Address, ack: Ack) -> None: ...
def misnamed(session: Session, addres: Address, ack: Ack) -> None: ...
def without_ack(session: Session, address: Address) -> None: ...
def mistyped(session: Session, address: int, ack: Ack) -> None: ...
def returns_text(session: Session, address: Address, ack: Ack) -> str:
    return ""


async def asynchronous(session: Session, address: Address, ack: Ack) -> None: ...


server.on("rcpt", right)  # error
server.on("recieved")  # error
server.on("to", misnamed)  # error
server.on("to", without_ack)  # error
server.on("to", mistyped)  # error
server.on("to", returns_text)  # error
server.on("to", asynchronous)  # error
server.on("quit", right)  # error
signals.on("to", misnamed)  # error
signals.on("tp", right)  # error


@server.on("connect")
def connected(session: Session, ack: Ack) -> None:
    session.on("to", misnamed)  # error
    session.on("too", right)  # error
    print(session.peer.upper())  # error
    print(session.identity.authcid)  # error
    session.server.stop()  # error
    session.socket.nosuch()  # error


@middleware(verbs=("MAIL",))
def looks(session: Session, command: Command, proceed: Proceed) -> Reply:
    print(command.address)  # error
    if isinstance(command, PathCommand):
        print(command.hostname)  # error
        print(command.address.lower().size)  # error
    if isinstance(command, ChunkCommand):
        print(command.size.upper())  # error
    return proceed(session, command)


def is_no_middleware(session: Session, command: Command) -> Any: ...


middleware(verbs=("MAIL",))(is_no_middleware)  # error
middleware(verb=("MAIL",))  # error
server.use(is_no_middleware)  # error
server.address + 1  # error
