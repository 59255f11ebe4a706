"""Handlers for a single connection.

    python examples/per_connection.py [port [idle seconds]]

A handler connected with ``session.on`` is called for that one connection, as long as it lasts. Here each connection
gets handlers that know the client's address, and print the mail and the end of the connection. Port 0 is any free port.
"""

import sys

import greensmtp
from greensmtp import Ack, MessageStream, Session, SMTPServer

#: Texts for some of the reasons of ``disconnect``.
ENDINGS = {
    "quit": "sent QUIT",
    "closed": "closed the connection",
    "reset": "reset the connection",
    "timeout": "timed out",
}


def make_server(port: int = 9025, idle: float = 60.0) -> SMTPServer:
    """Return the server, with the handler that connects handlers for each connection."""
    server = SMTPServer(("127.0.0.1", port), hostname="localhost", command_timeout=idle, data_timeout=idle)

    @server.on("connect")
    def follow(session: Session, ack: Ack) -> None:
        client = f"[{session.peer_host}]"

        @session.on("message")
        def show(session: Session, stream: MessageStream, ack: Ack) -> None:
            print(f"{client} from: {session.from_}", f"{client} to: {', '.join(session.to)}", sep="\n", flush=True)
            stream.pipe(sys.stdout.buffer)  # the body is written there, without a loop here
            ack.accept()

        @session.on("disconnect")
        def print_end(session: Session, reason: str) -> None:
            print(f"{client} {ENDINGS.get(reason, reason)}", flush=True)

        ack.accept()

    return server


def main(port: int = 9025, idle: float = 60.0) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    greensmtp.run(
        make_server(port, idle),
        started=lambda server: print("listening on {}:{}".format(*server.address), flush=True),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
