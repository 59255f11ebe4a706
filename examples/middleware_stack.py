"""What a mail server that faces the internet stacks in front of its handlers.

    python examples/middleware_stack.py [port]

From the outside in: what is cheap and refuses most comes first. Then, elsewhere: ``swaks --server 127.0.0.1:9025 --to
you@localhost``. Port 0 is any free one. Needs ``pip install 'greensmtp[ratelimit]'``.
"""

import sys

import greensmtp
from greensmtp import Ack, Address, Middleware, Session, SMTPServer
from greensmtp.middleware import AccessList, ConnectionLimit, EarlyTalker, Logging, RateLimit, Tarpit

#: With several machines or processes: storage="redis://..." for each RateLimit.
STACK: list[Middleware] = [
    Logging(),  # outermost: it sees every reply as the client does
    AccessList(deny=["192.0.2.0/24", "2001:db8::/32"]),  # or deny_file="drop.txt", read again when it changes
    ConnectionLimit(per_address=20, per_network=100),
    RateLimit("60/minute", by="address", on="connections"),
    EarlyTalker(pause=1.0),  # behind the limits: those who wait here are not too many
    Tarpit(delay=1.0, maximum=20.0, free=1),  # guessing goes slowly
    RateLimit("100/minute; 1000/hour", by="network", on="messages"),
    RateLimit("500/minute", by="network", on="recipients"),
    RateLimit("1000000000/day", by="network", on="bytes"),
]


def make_server(port: int = 9025) -> SMTPServer:
    """The server, with its stack and a handler that takes mail for localhost."""
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
