"""The server of a cost curve: ``python -m benchmarks.curves_server KIND COUNT``.

It prints one line of JSON when it serves: its port, and the CPU and memory of its start. It exits when its standard
input ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from gevent.fileobject import FileObjectThread

from benchmarks import measure
from greensmtp import SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.config.load import load
from greensmtp.delivery.contract import Delivery, Envelope, Transfer
from greensmtp.delivery.routing import Route
from greensmtp.delivery.runner import Deliveries
from greensmtp.log_writer import LogHandler
from greensmtp.middleware import Auth, ConnectionLimit, Logging, RateLimit
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import Command
from greensmtp.protocol.reply import Reply
from greensmtp.service.control import Control
from greensmtp.service.service import Service
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    """Read and discard the body."""
    ack.accept()
    for _ in stream:
        pass


def make(**options: Any) -> SMTPServer:
    """Return a server without the limits that a curve would reach."""
    bounds: dict[str, Any] = {
        "max_connections": None,
        "max_message_size": None,
        "max_recipients": 1_000,
        "max_idle_commands": 10**9,
    }
    return SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", **bounds, **options)


def stack() -> list[Any]:
    """Return the middleware of a typical server."""
    return [Logging(), ConnectionLimit(100_000, 100_000), RateLimit("100000/minute"), Auth({"beep": "boop"})]


def full(count: int, **options: Any) -> SMTPServer:
    """Return a server with the usual stack and receivers, which logs a line for each message."""
    folder = os.environ["BENCH_FOLDER"]
    logging.basicConfig(level=logging.INFO, handlers=[LogHandler("text", str(Path(folder, f"{os.getpid()}.log")))])
    server = make(middleware=stack(), **options)
    server.on("to", lambda session, address, ack: ack.accept())
    server.on("message", take)
    return server


class PassOn:
    """A middleware that sees every command."""

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass the command on."""
        return proceed(session, command)


def middleware(count: int) -> SMTPServer:
    """Return a server with a stack of this depth."""
    server = make(middleware=[PassOn() for _ in range(count)])
    server.on("message", take)
    return server


def keys(count: int) -> SMTPServer:
    """Return a server that counts messages by sender, with the default strategy."""
    server = make(middleware=[RateLimit("100000/hour", by="sender")])
    server.on("message", take)
    return server


def observe(number: int, session: Session, address: Address, ack: Ack) -> None:
    """Look at a recipient; the last handler of them accepts it."""
    if not number:
        ack.accept()


def handlers(count: int) -> SMTPServer:
    """Return a server with ``count`` handlers of ``to``."""
    server = make()
    for number in reversed(range(count)):
        server.on("to", partial(observe, number))
    server.on("message", take)
    return server


def session_handlers(count: int) -> SMTPServer:
    """Return a server whose sessions have ``count`` handlers of ``to`` each."""
    server = make()

    def connect(session: Session, ack: Ack) -> None:
        for number in reversed(range(count)):
            server.signals.to.connect(partial(observe, number), sender=session, weak=False)
        ack.accept()

    server.on("connect", connect)
    server.on("message", take)
    return server


class Drop(Delivery):
    """A delivery that discards all messages."""

    class Dropped(Transfer):
        """A message that is discarded."""

        def write(self, data: bytes, /) -> None:
            """Discard a piece of the body."""

        def commit(self, recipients: Sequence[Address]) -> None:
            """Do nothing."""

    def begin(self, envelope: Envelope) -> Transfer:
        """Return a transfer for a message."""
        return self.Dropped(envelope)


def routes(count: int) -> SMTPServer:
    """Return a server with ``count`` deliveries, each for a domain; the load writes to the last one."""
    server = make()
    domains = [f"d{number}.example" for number in range(1, count)] + ["example.com"]
    Deliveries([Route(Drop(), f"*@{domain}") for domain in domains]).attach(server)
    return server


def lmtp(count: int) -> SMTPServer:
    """Return an LMTP server with a delivery, which replies to each recipient."""
    server = make(lmtp=True)
    Deliveries([Drop()]).attach(server)
    return server


LISTENER = '[[listeners]]\nurl = "smtp://127.0.0.1:0"\n'

CONFIGURATION = """
hostname = "mx.example.com"
middleware = [
    { use = "Logging" },
    { use = "ConnectionLimit" },
    { use = "RateLimit", limit = "1000/minute" },
    { use = "Tarpit" },
]
[delivery]
maildir = "maildir"
[service]
control = false
"""


def listeners(count: int) -> Service:
    """Return a service with ``count`` listeners, each with its own stack."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["BENCH_FOLDER"]))
    file = folder / "greensmtp.toml"
    file.write_text(CONFIGURATION + LISTENER * count)
    return Service(lambda: load(file, [], {}, None))


KINDS: Mapping[str, Callable[[int], SMTPServer | Service]] = {
    "full": full,
    "lmtp": lmtp,
    "middleware": middleware,
    "keys": keys,
    "handlers": handlers,
    "session_handlers": session_handlers,
    "routes": routes,
    "listeners": listeners,
}


def main() -> None:
    """Serve until standard input ends."""
    kind, count = sys.argv[1], int(sys.argv[2])
    with ExitStack() as context:
        before = measure.memory(os.getpid())
        began = time.process_time()
        server = KINDS[kind](count)
        server.start()
        if isinstance(server, Service):
            port = server.servers[0].address[1]
        else:
            port = server.address[1]
            if kind == "full":
                control = Control(Path(os.environ["BENCH_FOLDER"]), lambda: [server])
                control.start()
                context.callback(control.stop)
        said = {"port": port, "cpu": time.process_time() - began, "memory": measure.memory(os.getpid()) - before}
        print(json.dumps(said), flush=True)
        FileObjectThread(sys.stdin.fileno()).read()
        server.stop(0.0)


if __name__ == "__main__":
    main()
