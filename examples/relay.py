"""A relay: clients inside, or with a password, send through it; the next hop's replies are theirs.

    python examples/relay.py [port] [next hop]

Nothing is queued: 250 means that the next hop has the message. Port 0 is any free port.
"""

import sys

import greensmtp
from greensmtp import Ack, Address, Session, SMTPServer
from greensmtp.delivery import Deliveries, Forward
from greensmtp.middleware import Auth, Logging
from greensmtp.predicates import inside

is_inside = inside("127.0.0.0/8", "10.0.0.0/8")


def make_server(port: int = 9025, next_hop: str = "smtp://127.0.0.1:2525") -> SMTPServer:
    """Return the server, which is no open relay."""
    server = SMTPServer(
        ("127.0.0.1", port),
        hostname="relay.example.com",
        middleware=[Logging(), Auth({"jo": "secret"}, required=False)],
    )

    @server.on("from")
    def known_clients_only(session: Session, address: Address, ack: Ack) -> None:
        if session.identity is None and not is_inside(session):
            ack.reject(530, "5.7.0 Authentication required")

    Deliveries([Forward(next_hop, starttls="opportunistic")]).attach(server)
    return server


def main(port: str = "9025", next_hop: str = "smtp://127.0.0.1:2525") -> None:
    """Serve until Ctrl-C or SIGTERM."""
    greensmtp.run(
        make_server(int(port), next_hop),
        started=lambda server: print("listening on {}:{}".format(*server.address), flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
