"""The seed's first example: take mail for localhost alone, and print it.

Run it, then: ``swaks --server 127.0.0.1:9025 --to you@localhost``.
"""

import sys

from greensmtp import Ack, Address, MessageStream, Session, SMTPServer


def make_server(port: int = 9025) -> SMTPServer:
    """The server, with its handlers."""
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
        sys.stdout.buffer.flush()

    return server


if __name__ == "__main__":
    make_server(*map(int, sys.argv[1:])).serve_forever()
