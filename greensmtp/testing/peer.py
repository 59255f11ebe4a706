"""A scripted SMTP client for tests."""

from __future__ import annotations

import re
import ssl
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any

from gevent import Timeout, idle, socket, with_timeout
from gevent import ssl as gevent_ssl

#: Seconds that any one operation may take.
TIMEOUT = 10.0

#: How much of the dialogue a DialogueError shows: lines, and bytes of each sent piece.
_MAX_LINES = 40
_MAX_BYTES = 200

#: Maximum length of a reply, in bytes: a server may send one without an end.
_MAX_REPLY = 1024 * 1024

_REPLY_LINE = re.compile(rb"\d{3}([ -]|$)")


class DialogueError(AssertionError):
    """The server's reply differs from the script. The text ends with the dialogue so far."""


class Peer:
    """A client that sends exactly what a test asks for, valid or not, and reads the replies.

    ``dial`` returns one; ``Peer(socket)`` uses a connected gevent socket. As a context manager, it closes it.

    :param timeout: seconds that any one operation may take before DialogueError is raised.
    """

    def __init__(self, sock: Any, *, timeout: float = TIMEOUT) -> None:
        #: The gevent socket; after ``start_tls``, the TLS one.
        self.socket = sock
        self.timeout = timeout
        self._buffer = b""
        self._said: deque[str] = deque(maxlen=_MAX_LINES)

    @property
    def transcript(self) -> str:
        """The latest lines of the dialogue: ``C:`` is the client, ``S:`` the server."""
        return "\n".join(self._said)

    # Sending

    def send(self, data: bytes | str, *, cut: int | None = None) -> None:
        """Send data; with ``cut``, send that many bytes first, and the rest after the server has read them."""
        data = data.encode() if isinstance(data, str) else data
        self._note(data)
        with self._timeout("sending"):
            if cut is not None:
                self.socket.sendall(data[:cut])
                self.let_it_read()
                data = data[cut:]
            self.socket.sendall(data)

    def line(self, *lines: str) -> None:
        """Send lines, each with CRLF, in one piece."""
        self.send("".join(f"{line}\r\n" for line in lines))

    def let_it_read(self) -> None:
        """Let a server in this thread's hub run until it has nothing left to read."""
        # Twice, because this greenlet may continue before greenlets that have just become ready.
        for _ in range(2):
            idle()

    # Receiving

    def reply(self) -> str:
        """Read one reply, and return its lines, joined by newlines, without CRLF.

        :raises DialogueError: the connection ended, or this is not a reply.
        """
        lines: list[str] = []
        size = 0
        with self._timeout("waiting for a reply"):
            while not lines or lines[-1][3:4] == "-":
                line = self._read_line(_MAX_REPLY - size)
                size += len(line) + 2
                self._said.append(f"S: {line.decode('ascii', 'backslashreplace')}")
                if not _REPLY_LINE.match(line) or not line.isascii():
                    raise self._failure(f"not a reply line: {line!r}")
                if lines and line[:3].decode() != lines[0][:3]:
                    raise self._failure(f"the code changes within a reply: {line!r}")
                lines.append(line.decode())
        return "\n".join(lines)

    def expect(self, *patterns: str) -> str:
        """Read one reply for each pattern, compare them, and return the last reply.

        A pattern is the beginning of a reply: ``"250"``, ``"550 5.7.1 *denied"``. ``*`` matches anything, including
        newlines.

        :raises DialogueError: a reply does not match.
        """
        got = ""
        for pattern in patterns:
            got = self.reply()
            wanted = ".*".join(map(re.escape, pattern.split("*")))
            if not re.match(wanted, got, re.DOTALL):
                raise self._failure(f"expected {pattern!r}; got {got!r}")
        return got

    def expect_nothing(self, seconds: float = 0.05) -> None:
        """Expect the server to send nothing for some time, and to keep the connection open.

        :raises DialogueError: it sends something, or closes the connection.
        """
        if not self._buffer:
            piece = with_timeout(seconds, self.socket.recv, 65536, timeout_value=None)
            if piece == b"":
                raise self._failure("expected nothing, but the connection ended")
            self._buffer = piece or b""
        if self._buffer:
            raise self._failure(f"expected nothing; got {self._buffer!r}")

    def expect_end(self) -> None:
        """Expect the server to close the connection without sending more.

        :raises DialogueError: it sends more, or does not close the connection in time.
        """
        rest = self.rest()
        if rest:
            raise self._failure(f"expected the end; got {rest!r}")

    def rest(self) -> bytes:
        """Read and return everything up to the end of the connection."""
        pieces = [self._buffer]
        self._buffer = b""
        with self._timeout("waiting for the end of the connection"):
            while True:
                try:
                    piece = self.socket.recv(65536)
                except ConnectionError:
                    piece = b""
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)

    # Both

    def converse(self, script: str) -> None:
        """Play a dialogue: send ``C:`` lines; compare one reply with the pattern of each ``S:`` line (see ``expect``).

        Indentation and empty lines are ignored. The text starts after the colon and one space, so ``C:`` alone sends an
        empty line. ``S: END`` expects the connection to end.

        :raises DialogueError: a reply does not match; the text names the line.
        :raises ValueError: a line begins with neither ``C:`` nor ``S:``.
        """
        for number, raw in enumerate(script.strip("\n").splitlines(), 1):
            line = raw.strip()
            if not line:
                continue
            side, _, text = line.partition(":")
            text = text.removeprefix(" ")
            try:
                if side == "C":
                    self.line(text)
                elif side != "S":
                    raise ValueError(f"expected a line that begins with C: or S:; got {line!r}")
                elif text == "END":
                    self.expect_end()
                else:
                    self.expect(text)
            except DialogueError as error:
                raise DialogueError(f"line {number} ({line}): {error}") from None

    def hello(self, name: str = "client.example", *, verb: str = "EHLO") -> str:
        """Read the banner, send EHLO, and return the reply."""
        self.expect("220")
        self.line(f"{verb} {name}")
        return self.expect("250")

    def envelope(self, sender: str = "sender@example.org", to: str | Iterable[str] = "recipient@example.com") -> None:
        """Send MAIL and RCPT, and expect 250 for each. Parameters may follow an address: ``"a@b> SIZE=9"``."""
        recipients = [to] if isinstance(to, str) else list(to)
        for command in (f"MAIL FROM:<{sender}", *(f"RCPT TO:<{recipient}" for recipient in recipients)):
            self.line(command if ">" in command else f"{command}>")
            self.expect("250")

    def deliver(
        self,
        body: bytes | str = b"Subject: a test\r\n\r\nHello.\r\n",
        *,
        sender: str = "sender@example.org",
        to: str | Iterable[str] = "recipient@example.com",
    ) -> str:
        """Send a message, after ``hello``, and return the final reply; in LMTP, the first of the final replies.

        The body is sent unchanged, except for dot-stuffing, and a final CRLF if it has none.

        :raises DialogueError: a command was rejected before the body.
        """
        self.envelope(sender, to)
        self.line("DATA")
        self.expect("354")
        data = body.encode() if isinstance(body, str) else body
        if data and not data.endswith(b"\r\n"):
            data += b"\r\n"
        self.send((b"\r\n" + data).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
        return self.reply()

    def start_tls(self, context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> None:
        """Perform the TLS handshake; without a context, nothing is verified.

        :raises DialogueError: the server has sent something in the clear that has not been read.
        """
        if self._buffer:
            raise self._failure(f"in the clear, before TLS: {self._buffer!r}")
        if context is None:
            context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with self._timeout("shaking hands"):
            # Not context.wrap_socket: with the standard library's context, the socket would block the hub.
            self.socket = gevent_ssl.SSLSocket(sock=self.socket, server_hostname=server_hostname, _context=context)
        self._said.append("-- TLS --")

    # The end

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def half_close(self) -> None:
        """Shut down the sending side, and keep receiving."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close the connection abruptly; over TCP, the server gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Peer {self._said[-1] if self._said else 'silent'!r}>"

    def _read_line(self, most: int) -> bytes:
        """Read a line, and return it without CRLF.

        :param most: its maximum length in bytes.
        """
        while (end := self._buffer.find(b"\r\n")) < 0 and len(self._buffer) <= most:
            try:
                piece = self.socket.recv(65536)
            except ConnectionError as error:
                raise self._failure(f"the connection broke: {error}") from None
            if not piece:
                raise self._failure(f"the connection ended; unread: {self._buffer!r}")
            self._buffer += piece
        if not 0 <= end <= most:
            raise self._failure(f"a reply of more than {_MAX_REPLY} bytes; its last line begins {self._buffer[:80]!r}")
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    def _note(self, data: bytes) -> None:
        shown = data[:_MAX_BYTES].decode("utf-8", "backslashreplace")
        if len(data) > _MAX_BYTES:
            shown += f"... ({len(data)} bytes)"
        self._said.extend(f"C: {line}" for line in shown.removesuffix("\r\n").split("\r\n"))

    def _failure(self, what: str) -> DialogueError:
        return DialogueError(f"{what}\n\nThe dialogue so far:\n{self.transcript}")

    def _timeout(self, what: str) -> Timeout:
        return Timeout(self.timeout, _TimedOut(self, f"timed out after {self.timeout} s: {what}"))


class _TimedOut(DialogueError):
    """Shows the dialogue up to the time-out, rather than up to the start of the wait."""

    def __init__(self, peer: Peer, what: str) -> None:
        super().__init__(what)
        self._peer = peer

    def __str__(self) -> str:
        return f"{self.args[0]}\n\nThe dialogue so far:\n{self._peer.transcript}"
