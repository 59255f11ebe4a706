"""A middleware stack for a mail server on the internet.

    python examples/middleware_stack.py [port]

Middleware that is cheap, or refuses most, is outermost. Then, in another terminal:
``swaks --server 127.0.0.1:9025 --to you@localhost``. Port 0 is any free port. Needs
``pip install 'greensmtp[ratelimit]'``.
"""

import sys

import greensmtp
from greensmtp import Ack, Address, Middleware, Session, SMTPServer
from greensmtp.middleware import AccessList, ConnectionLimit, EarlyTalker, Logging, RateLimit, Tarpit

#: With several machines or processes, pass storage="redis://..." to each RateLimit.
STACK: list[Middleware] = [
    Logging(),  # outermost: it sees the replies that clients get
    AccessList(deny=["192.0.2.0/24", "2001:db8::/32"]),  # or deny_file="drop.txt", read again when it changes
    ConnectionLimit(per_address=20, per_network=100),
    RateLimit("60/minute", by="address", on="connections"),
    EarlyTalker(pause=1.0),  # inside the limits, which bound how many clients wait here
    Tarpit(delay=1.0, maximum=20.0, free=1),  # slows down guessing
    RateLimit("100/minute; 1000/hour", by="network", on="messages"),
    RateLimit("500/minute", by="network", on="recipients"),
    RateLimit("1000000000/day", by="network", on="bytes"),
]


def make_server(port: int = 9025) -> SMTPServer:
    """Return the server, with its stack and a handler that accepts mail for localhost."""
    server = SMTPServer(("127.0.0.1", port), hostname="localhost", middleware=STACK)

    @server.on("to")
    def local_only(session: Session, address: Address, ack: Ack) -> None:
        if address.domain == "localhost":
            ack.accept()
        else:
            ack.reject(550, "5.7.1 relaying denied")

    server.on("message", lambda session, stream, ack: ack.accept())
    return server


def main(port: int = 9025) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    greensmtp.run(
        make_server(port),
        started=lambda server: print("listening on {}:{}".format(*server.address), flush=True),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
