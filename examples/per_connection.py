"""Follow each connection by its client's address: what the second server example of node's smtp-protocol does.

    python examples/per_connection.py [port [idle seconds]]

Whatever is connected with ``session.on`` hears that one connection, as long as it lasts. Here every connection gets
handlers that know who is there: they print its mail, and tell how it ended. Port 0 is any free one.
"""

import sys

import greensmtp
from greensmtp import Ack, MessageStream, Session, SMTPServer

#: Some of the reasons that ``disconnect`` gives, in words.
ENDINGS = {
    "quit": "said good-bye",
    "closed": "hung up",
    "reset": "broke the connection off",
    "timeout": "fell asleep",
}


def make_server(port: int = 9025, idle: float = 60.0) -> SMTPServer:
    """The server, with the handler that gives every connection its own."""
    server = SMTPServer(("127.0.0.1", port), hostname="localhost", command_timeout=idle, data_timeout=idle)

    @server.on("connect")
    def follow(session: Session, ack: Ack) -> None:
        who = f"[{session.peer_host}]"

        @session.on("message")
        def show(session: Session, stream: MessageStream, ack: Ack) -> None:
            print(f"{who} from: {session.from_}", f"{who} to: {', '.join(session.to)}", sep="\n", flush=True)
            stream.pipe(sys.stdout.buffer)  # it all goes there, though nobody here reads
            ack.accept()

        @session.on("disconnect")
        def tell(session: Session, reason: str) -> None:
            print(f"{who} {ENDINGS.get(reason, reason)}", flush=True)

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
