"""The floor: a straightforward gevent loop that accepts mail, without a framework, checks or bounds."""

from __future__ import annotations

from typing import Any

from gevent import ssl as gevent_ssl
from gevent.server import StreamServer

from benchmarks.servers import options

REPLIES = {
    b"HELO": b"250 floor\r\n",
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"NOOP": b"250 2.0.0 Ok\r\n",
}
GREETING = b"250-floor\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
GREETING_WITH_TLS = b"250-floor\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME\r\n"

COMMAND_PIECE = 16 * 1024
BODY_PIECE = 128 * 1024


class Floor:
    """Shared by the connections: the context for STARTTLS, if any."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.replies = REPLIES | {b"EHLO": GREETING if context is None else GREETING_WITH_TLS}

    def serve(self, socket: Any, peer: object) -> None:
        """Serve one connection: every batch of commands is one recv and one send."""
        replies = self.replies
        recv, send = socket.recv, socket.sendall
        try:
            send(b"220 floor ESMTP\r\n")
            buffer = b""
            while data := recv(COMMAND_PIECE):
                buffer += data
                out = []
                at = 0
                while (end := buffer.find(b"\r\n", at)) >= 0:
                    verb = buffer[at : at + 4].upper()
                    at = end + 2
                    if verb in replies:
                        out.append(replies[verb])
                    elif verb == b"DATA":
                        out.append(b"354 Go on\r\n")
                        send(b"".join(out))
                        tail = b"\r\n" + buffer[at:]
                        while (end := tail.find(b"\r\n.\r\n")) < 0:
                            data = recv(BODY_PIECE)
                            if not data:
                                return
                            tail = tail[-4:] + data
                        buffer = tail[end + 5 :]
                        at = 0
                        out = [b"250 2.0.0 Ok\r\n"]
                    elif verb == b"STAR":
                        send(b"220 2.0.0 Go on\r\n")
                        socket = self.context.wrap_socket(socket, server_side=True)
                        recv, send = socket.recv, socket.sendall
                    elif verb == b"QUIT":
                        out.append(b"221 2.0.0 Bye\r\n")
                        send(b"".join(out))
                        return
                if out:
                    send(b"".join(out))
                buffer = buffer[at:]
        finally:
            socket.close()


def main() -> None:
    """Serve."""
    given = options.parser(__doc__).parse_args()
    context: Any = None
    if given.tls is not None:
        context = gevent_ssl.SSLContext(gevent_ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.cert, given.key)
    at_once = {"ssl_context": context} if given.tls == "implicit" else {}
    floor = Floor(context if given.tls == "starttls" else None)
    StreamServer(("127.0.0.1", given.port), floor.serve, backlog=options.BACKLOG, **at_once).serve_forever()


if __name__ == "__main__":
    main()
