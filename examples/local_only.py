"""A server that accepts mail for localhost only, and prints it.

    python examples/local_only.py [port]

Then, in another terminal: ``swaks --server 127.0.0.1:9025 --to you@localhost``. Port 0 is any free port.
"""

import sys

import greensmtp
from greensmtp import Ack, Address, MessageStream, Session, SMTPServer


def make_server(port: int = 9025) -> SMTPServer:
    """Return the server, with its handlers."""
    server = SMTPServer(("127.0.0.1", port), hostname="localhost")

    @server.on("to")
    def local_only(session: Session, address: Address, ack: Ack) -> None:
        if address.domain == "localhost":
            ack.accept()
        else:
            ack.reject(550, "5.7.1 relaying denied")

    @server.on("message")
    def show(session: Session, stream: MessageStream, ack: Ack) -> None:
        print(f"from: {session.from_}", f"to: {', '.join(session.to)}", sep="\n", flush=True)
        ack.accept()
        for chunk in stream:
            sys.stdout.buffer.write(chunk)
        sys.stdout.flush()

    return server


def main(port: int = 9025) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    greensmtp.run(
        make_server(port),
        started=lambda server: print("listening on {}:{}".format(*server.address), flush=True),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
