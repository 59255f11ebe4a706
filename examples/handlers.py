"""Useful signal handlers of about ten lines each, to be copied.

    python examples/handlers.py [port]

Handlers are called in the order in which they are connected. One that refuses raises Reject, and later handlers are not
called. One that does not refuse returns, and the last handler accepts.
"""

import email
import itertools
import sys
import time
from email.message import Message

import greensmtp
from greensmtp import Ack, Address, MessageStream, Reject, Session, SMTPServer, in_thread_pool
from greensmtp.predicates import authenticated, inside
from greensmtp.protocol.command import HelloCommand

#: Our domains; clients that may send to other domains; the largest message in bytes, by the sender's domain and by
#: default.
LOCAL = {"localhost", "example.com"}
TRUSTED = inside("10.0.0.0/8", "192.168.0.0/16", "unix") | authenticated
LARGEST = {"example.org": 10_000_000}
LARGE = 1_000_000


# EHLO: refuse clients that give this server's own name.
def no_impostors(session: Session, greeting: HelloCommand, ack: Ack) -> None:
    if greeting.hostname.lower() == session.server.hostname.lower():
        raise Reject(550, "5.7.1 that is the name of this server")
    ack.accept()


# Size by sender: the announced size at MAIL, and the real size at the end of the message.
def announced_size(session: Session, address: Address, ack: Ack) -> None:
    if int(address.parameters.get("SIZE") or 0) > LARGEST.get(address.domain, LARGE):
        raise Reject(552, "5.3.4 too large for your domain")
    ack.accept()


def true_size(session: Session, ack: Ack) -> None:
    assert session.message is not None
    assert session.from_ is not None
    if session.message.size > LARGEST.get(session.from_.domain, LARGE):
        raise Reject(552, "5.3.4 too large for your domain")


# Greylisting: an unknown combination of client, sender and recipient must try again later. Spam programs seldom do.
class Greylist:
    def __init__(self, delay: float = 60.0, most: int = 100_000) -> None:
        self.delay, self.most = delay, most
        self.first: dict[tuple[str | None, str, str], float] = {}

    def __call__(self, session: Session, address: Address, ack: Ack) -> None:
        if len(self.first) >= self.most:
            self.first.pop(next(iter(self.first)))  # the oldest
        first = self.first.setdefault((session.peer_host, str(session.from_), str(address)), time.monotonic())
        if time.monotonic() - first < self.delay and not TRUSTED(session):
            raise Reject(450, "4.7.1 greylisted, try again in a minute")


# Relaying: any client may send to our domains, trusted clients to all domains.
def local_only(session: Session, address: Address, ack: Ack) -> None:
    if address.domain not in LOCAL and not TRUSTED(session):
        raise Reject(550, "5.7.1 relaying denied")
    ack.accept()


# Keep the whole message in memory, or in a temporary file if it is large, for the handlers of ``received``.
def spool(session: Session, stream: MessageStream, ack: Ack) -> None:
    session.notes["message"] = file = stream.spool(max_memory=100_000)
    stream.at_end(file.close)
    ack.accept()


# Reject by header or by attachment. Parsing takes time, so it runs in the thread pool.
def by_content(session: Session, ack: Ack) -> None:
    message: Message = in_thread_pool(email.message_from_binary_file, session.notes["message"])
    if "From" not in message:
        raise Reject(554, "5.6.0 the message has no From field")
    for part in message.walk():
        if (part.get_filename() or "").lower().endswith((".exe", ".scr")):
            raise Reject(554, "5.7.1 programs are not accepted by mail")


# Accept the message, with a queue ID to find it by.
class Queue:
    def __init__(self) -> None:
        self.numbers = itertools.count(int(time.time() * 1000))

    def __call__(self, session: Session, ack: Ack) -> None:
        name = f"{next(self.numbers):X}"
        print(f"{name}: from=<{session.from_}> to={','.join(session.to)}", flush=True)
        ack.accept(250, f"2.0.0 Ok: queued as {name}")


def make_server(port: int = 9025, delay: float = 60.0) -> SMTPServer:
    """Return a server with all of these handlers."""
    server = SMTPServer(("127.0.0.1", port), hostname="mx.example.com")
    server.on("greeting", no_impostors)
    server.on("from", announced_size)
    server.on("to", Greylist(delay))
    server.on("to", local_only)
    server.on("message", spool)
    server.on("received", true_size)
    server.on("received", by_content)
    server.on("received", Queue())
    return server


def main(port: int = 9025, delay: float = 60.0) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    greensmtp.run(
        make_server(port, delay),
        started=lambda server: print("listening on {}:{}".format(*server.address), flush=True),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
