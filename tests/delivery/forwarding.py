"""What tests of Forward share: messages, and next hops that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

from greensmtp import SMTPServer
from greensmtp.testing import Peer

MODES = pytest.mark.parametrize("mode", ["lock-step", "after-body"])

BODY = b"Subject: Tea\r\n\r\n.At four.\r\n"


def url(server: SMTPServer, scheme: str = "smtp") -> str:
    return f"{scheme}://127.0.0.1:{server.address[1]}"


def send(peer: Peer, *recipients: str, body: bytes = BODY, end: str = "250") -> str:
    """Send a message after EHLO; return the final reply."""
    peer.line("MAIL FROM:<ann@example.net>", *(f"RCPT TO:<{each}>" for each in recipients or ("bob@example.org",)))
    peer.expect("250", *["250"] * max(1, len(recipients)))
    peer.line("DATA")
    peer.expect("354")
    peer.send(body.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    return peer.expect(end)


class Script:
    """A server that answers verbs from a table: a reply; ``close``; ``hang``; ``garbage``; ``drip``, a byte at a time.

    ``by_line`` is another table: what stands in the line. ``in_body`` is called behind 354, and then it closes.
    """

    EHLO = "250-hop.example\r\n250 PIPELINING\r\n"

    def __init__(self, **does: str) -> None:
        self.does = does
        self.by_line: dict[bytes, str] = {}
        self.in_body: Callable[[Any], object] | None = None
        self.ended = 0
        #: The command that is answered.
        self.line = b""
        self.server = StreamServer(("127.0.0.1", 0), self._serve)
        self.server.start()

    def _do(self, connection: Any, what: str, usual: str) -> bool:
        does = next((does for text, does in self.by_line.items() if text in self.line), self.does.get(what, usual))
        if does == "hang":
            gevent.sleep(60)
        if does in ("close", "hang"):
            connection.shutdown(socket.SHUT_RDWR)
            return False
        if does == "drip":
            for _ in range(600):
                connection.sendall(b"2")
                gevent.sleep(0.1)
        text = {"garbage": "what?"}.get(does, does)
        connection.sendall((text if text.endswith("\n") else f"{text}\r\n").encode())
        return True

    def _serve(self, connection: Any, address: Any) -> None:
        try:
            self._talk(connection)
        except OSError:
            pass

    def _talk(self, connection: Any) -> None:
        self.line = b""
        lines = connection.makefile("rb")
        if not self._do(connection, "banner", "220 hop.example ESMTP"):
            return
        while line := lines.readline():
            self.line = line
            verb = line.split()[0].upper().decode()
            usual = {"EHLO": self.EHLO, "DATA": "354 go", "QUIT": "221 2.0.0 bye"}.get(verb, "250 2.0.0 ok")
            if not self._do(connection, verb, usual) or verb == "QUIT":
                return
            if verb == "DATA" and self.does.get("DATA", "354").startswith("354"):
                if self.in_body is not None:
                    self.in_body(connection)
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                if self.does.get("body") == "close":
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                while (line := lines.readline()) != b".\r\n":
                    if not line:
                        return
                self.ended += 1
                if not self._do(connection, "end", "250 2.0.0 ok"):
                    return
                if self.does.get("after") == "close":
                    connection.shutdown(socket.SHUT_RDWR)
                    return
