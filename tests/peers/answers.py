"""A proxy between a delivery and its server: what if the answer is lost?"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer


class AnswerProxy:
    """Passes bytes on to a server, and its answers back unless it is told to hold them, or to cut one connection.

    With ``is_late``, the next request is discarded, and the answers that were held come in its place.
    """

    def __init__(self, port: int) -> None:
        self.holds = self.cuts = self.is_late = False
        self._held = b""
        self._port = port
        self.server = StreamServer(("127.0.0.1", 0), self._serve)
        self.server.start()

    def _serve(self, near: Any, address: Any) -> None:
        with socket.create_connection(("127.0.0.1", self._port), 30) as far:
            back = gevent.spawn(self._pump, far, near, True)
            self._pump(near, far, False)
            back.kill()

    def _pump(self, source: Any, target: Any, back: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if back and self.cuts:
                    self.cuts = False
                    target.shutdown(socket.SHUT_RDWR)
                    return
                if back and self.holds:
                    self._held += data
                elif not back and self.is_late:
                    source.sendall(self._held)
                    self._held = b""
                else:
                    target.sendall(data)
