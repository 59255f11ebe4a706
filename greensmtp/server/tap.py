"""Taps on the bytes of one open connection, for an operator who looks.

A tap replaces two functions of the transport, and the connection does not notice. Without one, nothing is there that
costs anything. STARTTLS removes it, with the socket: put it on again at the next command, before which no byte is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greensmtp.server.line_transport import LineTransport


class Tap:
    """Sees what one connection receives and sends, in the clear under TLS too.

    :param received: called with the number of bytes of each piece.
    :param sent: called with each batch of replies, before it is sent.
    """

    def __init__(self, received: Callable[[int], None], sent: Callable[[bytes], None]) -> None:
        self._received = received
        self._sent = sent
        self._put: tuple[Any, Any] | None = None
        self._before: tuple[Any, Any] = (None, None)

    def put_on(self, transport: LineTransport) -> None:
        """Tap a connection, unless this tap is on it."""
        if self._put is not None and transport._send_some is self._put[1]:
            return
        native_recv, native_send = self._before = (transport._recv, transport._send_some)
        waiting_recv = transport.socket.recv
        received, sent = self._received, self._sent

        def recv(size: int) -> bytes:
            try:
                data: bytes = native_recv(size)
            except BlockingIOError:
                data = waiting_recv(size)
            received(len(data))
            return data

        def send(data: bytes) -> int:
            sent(data)
            return native_send(data)

        self._put = transport._recv, transport._send_some = recv, send

    def take_off(self, transport: LineTransport) -> None:
        """Remove this tap from a connection if it is still on it."""
        if self._put is not None and transport._send_some is self._put[1]:
            transport._recv, transport._send_some = self._before
        self._put = None
        self._before = (None, None)
