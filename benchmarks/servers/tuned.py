"""The strictest yardstick: the bare loop, tuned.

It waits for readable before ``recv``, with one watcher per connection, and sends with ``send`` instead of ``sendall``.
"""

from __future__ import annotations

from typing import Any

from gevent import get_hub
from gevent.server import StreamServer

from benchmarks.servers import options
from benchmarks.servers.bare import BODY_PIECE, COMMAND_PIECE, GREETING, REPLIES

READABLE = 1


def serve(socket: Any, peer: object) -> None:
    """Serve one connection: every batch of commands is one wait, one recv and one send."""
    hub = get_hub()
    watcher = hub.loop.io(socket.fileno(), READABLE)
    wait, recv, send = hub.wait, socket.recv, socket.send
    replies = REPLIES | {b"EHLO": GREETING}
    try:
        send(b"220 floor ESMTP\r\n")
        buffer = b""
        while True:
            wait(watcher)
            data = recv(COMMAND_PIECE)
            if not data:
                return
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
                        wait(watcher)
                        data = recv(BODY_PIECE)
                        if not data:
                            return
                        tail = tail[-4:] + data
                    buffer = tail[end + 5 :]
                    at = 0
                    out = [b"250 2.0.0 Ok\r\n"]
                elif verb == b"QUIT":
                    out.append(b"221 2.0.0 Bye\r\n")
                    send(b"".join(out))
                    return
            if out:
                send(b"".join(out))
            buffer = buffer[at:]
    finally:
        watcher.stop()
        watcher.close()
        socket.close()


def main() -> None:
    """Serve."""
    given = options.parser(__doc__).parse_args()
    StreamServer(("127.0.0.1", given.port), serve, backlog=options.BACKLOG).serve_forever()


if __name__ == "__main__":
    main()
