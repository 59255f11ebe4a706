"""The other end of a conversation, spoken line by line."""

from __future__ import annotations

import re
import ssl
from typing import Any

from gevent import Timeout, sleep, socket
from gevent import ssl as gevent_ssl

from greensmtp.server import SMTPServer

#: Seconds that a reply may take.
PATIENCE = 10.0

_REPLY_LINE = re.compile(rb"\d{3}([ -]|$)")


class DialogueError(AssertionError):
    """The server did not say what the script has it say."""


class Peer:
    """A client that says just what it is told to, however wrong, and reads what comes back."""

    def __init__(self, sock: Any, *, patience: float = PATIENCE) -> None:
        self.socket = sock
        self.patience = patience
        self._buffer = b""

    def send(self, data: bytes | str, *, cut: int | None = None) -> None:
        """Send octets; with ``cut``, that many first, and the rest after the server has had time to take them."""
        octets = data.encode() if isinstance(data, str) else data
        with self._patience("sending"):
            if cut is not None:
                self.socket.sendall(octets[:cut])
                self.let_it_read()
                octets = octets[cut:]
            self.socket.sendall(octets)

    def let_it_read(self) -> None:
        """Switch to the server, in this process, until it has nothing left to read."""
        for _ in range(3):
            sleep(0)

    def line(self, *lines: str) -> None:
        """Send lines, each with its CRLF."""
        self.send("".join(f"{line}\r\n" for line in lines))

    def reply(self) -> str:
        """Read one reply, all its lines, joined by newlines, without CRLF.

        :raises DialogueError: the connection ended, or that is no reply.
        """
        lines = []
        while True:
            line = self._read_line()
            if not _REPLY_LINE.match(line):
                raise DialogueError(f"not a reply line: {line!r}")
            lines.append(line.decode("ascii"))
            if line[3:4] != b"-":
                return "\n".join(lines)

    def expect(self, *patterns: str) -> str:
        """Read one reply for each pattern, and compare; ``*`` in a pattern stands for anything.

        A pattern is the beginning of a reply: ``"250"``, ``"550 5.7.1 *denied"``.

        :raises DialogueError: it is another one.
        """
        got = ""
        for pattern in patterns:
            got = self.reply()
            wanted = ".*".join(map(re.escape, pattern.split("*")))
            if not re.match(wanted, got, re.DOTALL):
                raise DialogueError(f"expected {pattern!r}, got {got!r}")
        return got

    def expect_end(self) -> None:
        """The server has closed the connection, and said no more.

        :raises DialogueError: it has not, or it has.
        """
        rest = self.rest()
        if rest:
            raise DialogueError(f"expected the end, got {rest!r}")

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        pieces = [self._buffer]
        self._buffer = b""
        with self._patience("waiting for the end"):
            while True:
                try:
                    piece = self.socket.recv(65536)
                except ConnectionError:
                    piece = b""
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)

    def converse(self, script: str) -> None:
        """Play a dialogue: ``C:`` lines are sent, ``S:`` lines are patterns for one reply each (see ``expect``).

        Lines without either continue a body: they are sent as they are. ``S: END`` expects the end.
        """
        for number, raw in enumerate(script.strip("\n").splitlines(), 1):
            line = raw.strip()
            if not line:
                continue
            who, _, text = line.partition(":")
            text = text.removeprefix(" ")
            try:
                if who == "C":
                    self.line(text)
                elif who != "S":
                    raise ValueError(f"a line of a dialogue begins with C: or S:, not {line!r}")
                elif text == "END":
                    self.expect_end()
                else:
                    self.expect(text)
            except DialogueError as error:
                raise DialogueError(f"line {number} ({line}): {error}") from None

    def hello(self, name: str = "client.example") -> str:
        """Read the banner and say EHLO."""
        self.expect("220")
        self.line(f"EHLO {name}")
        return self.expect("250")

    def start_tls(self, context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> None:
        """Shake hands; without a context of yours, nothing is verified."""
        if context is None:
            context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with self._patience("shaking hands"):
            self.socket = context.wrap_socket(self.socket, server_hostname=server_hostname)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read_line(self) -> bytes:
        with self._patience("waiting for a reply"):
            while b"\r\n" not in self._buffer:
                try:
                    piece = self.socket.recv(65536)
                except ConnectionError as error:
                    raise DialogueError(f"the connection broke: {error}") from None
                if not piece:
                    raise DialogueError(f"the connection ended; unread: {self._buffer!r}")
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _patience(self, what: str) -> Timeout:
        return Timeout(self.patience, DialogueError(f"no patience left: {what} for {self.patience} s"))


def dial(server: SMTPServer, *, patience: float = PATIENCE) -> Peer:
    """Connect to a server: over its listener when it has started, else over a socket pair, without any network."""
    if not server.started:
        ours, theirs = socket.socketpair()
        server.adopt(theirs)
        return Peer(ours, patience=patience)
    address = server.address
    family = socket.AF_INET6 if ":" in address[0] and isinstance(address, tuple) else socket.AF_INET
    if not isinstance(address, tuple):
        family = socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.connect(address)
    return Peer(sock, patience=patience)
