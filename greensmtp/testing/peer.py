"""The other end of a conversation, spoken line by line."""

from __future__ import annotations

import re
import ssl
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any

from gevent import Timeout, idle, socket, with_timeout
from gevent import ssl as gevent_ssl

from greensmtp.server.server import SMTPServer

#: Seconds that a reply may take.
PATIENCE = 10.0

#: How much of the dialogue a DialogueError shows: entries, and octets of one that was sent.
_ENTRIES = 40
_OCTETS = 200

_REPLY_LINE = re.compile(rb"\d{3}([ -]|$)")


class DialogueError(AssertionError):
    """The server did not say what the script has it say. The text ends with the dialogue so far."""


class Peer:
    """A client that says just what it is told to, however wrong, and reads what comes back.

    ``dial`` makes one; so does ``Peer(socket)``, for a connected gevent socket of your own. It is a context manager
    that hangs up.

    :param timeout: seconds that any one thing may take, until DialogueError is raised.
    """

    def __init__(self, sock: Any, *, timeout: float = PATIENCE) -> None:
        #: The gevent socket; after ``start_tls``, the TLS one.
        self.socket = sock
        self.timeout = timeout
        self._buffer = b""
        self._said: deque[str] = deque(maxlen=_ENTRIES)

    @property
    def transcript(self) -> str:
        """The last of what has been said, a line each: ``C:`` ours, ``S:`` the server's."""
        return "\n".join(self._said)

    # Saying

    def send(self, data: bytes | str, *, cut: int | None = None) -> None:
        """Send octets; with ``cut``, that many first, and the rest after the server has had time to take them."""
        octets = data.encode() if isinstance(data, str) else data
        self._note(octets)
        with self._patience("sending"):
            if cut is not None:
                self.socket.sendall(octets[:cut])
                self.let_it_read()
                octets = octets[cut:]
            self.socket.sendall(octets)

    def line(self, *lines: str) -> None:
        """Send lines, each with its CRLF, all in one piece."""
        self.send("".join(f"{line}\r\n" for line in lines))

    def let_it_read(self) -> None:
        """Let a server in this thread's hub run until it has nothing left to read."""
        # Once is not enough: what runs when the loop is idle may come before what idling has just made ready.
        for _ in range(2):
            idle()

    # Hearing

    def reply(self) -> str:
        """Read one reply, all its lines, joined by newlines, without CRLF.

        :raises DialogueError: the connection ended, or that is no reply.
        """
        lines: list[str] = []
        while True:
            line = self._read_line()
            self._said.append(f"S: {line.decode('ascii', 'backslashreplace')}")
            if not _REPLY_LINE.match(line) or not line.isascii():
                raise self._failure(f"not a reply line: {line!r}")
            if lines and line[:3].decode() != lines[0][:3]:
                raise self._failure(f"the code changes within a reply: {line!r}")
            lines.append(line.decode())
            if line[3:4] != b"-":
                return "\n".join(lines)

    def expect(self, *patterns: str) -> str:
        """Read one reply for each pattern, and compare; give the last one.

        A pattern is the beginning of a reply: ``"250"``, ``"550 5.7.1 *denied"``. ``*`` in it stands for anything,
        newlines too.

        :raises DialogueError: it is another one.
        """
        got = ""
        for pattern in patterns:
            got = self.reply()
            wanted = ".*".join(map(re.escape, pattern.split("*")))
            if not re.match(wanted, got, re.DOTALL):
                raise self._failure(f"expected {pattern!r}, got {got!r}")
        return got

    def expect_nothing(self, seconds: float = 0.05) -> None:
        """The server says nothing for so long, and does not hang up.

        :raises DialogueError: it does.
        """
        if not self._buffer:
            piece = with_timeout(seconds, self.socket.recv, 65536, timeout_value=None)
            if piece == b"":
                raise self._failure("expected nothing, but the connection ended")
            self._buffer = piece or b""
        if self._buffer:
            raise self._failure(f"expected nothing, got {self._buffer!r}")

    def expect_end(self) -> None:
        """The server has closed the connection, and said no more.

        :raises DialogueError: it has not, or it has.
        """
        rest = self.rest()
        if rest:
            raise self._failure(f"expected the end, got {rest!r}")

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

    # Both

    def converse(self, script: str) -> None:
        """Play a dialogue: ``C:`` lines are sent, ``S:`` lines are patterns for one reply each (see ``expect``).

        Indentation and empty lines do not matter; the text begins behind the colon and one space, so ``C:`` alone
        sends an empty line. ``S: END`` expects the end.

        :raises DialogueError: the server says something else; the text names the line.
        :raises ValueError: a line begins with neither.
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

    def hello(self, name: str = "client.example", *, verb: str = "EHLO") -> str:
        """Read the banner and greet; give the reply to that."""
        self.expect("220")
        self.line(f"{verb} {name}")
        return self.expect("250")

    def envelope(self, sender: str = "sender@example.org", to: str | Iterable[str] = "recipient@example.com") -> None:
        """Say MAIL and RCPT, and expect 250 to each. An address may be followed by parameters: ``"a@b> SIZE=9"``."""
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
        """Send a message, after ``hello``; give the reply at its end, whatever it is (in LMTP: the first of them).

        The body goes out octet for octet, but for the dots, which are stuffed, and a last CRLF, where it has none.

        :raises DialogueError: it was refused before its end.
        """
        self.envelope(sender, to)
        self.line("DATA")
        self.expect("354")
        octets = body.encode() if isinstance(body, str) else body
        if octets and not octets.endswith(b"\r\n"):
            octets += b"\r\n"
        self.send((b"\r\n" + octets).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
        return self.reply()

    def start_tls(self, context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> None:
        """Shake hands; without a context of yours, nothing is verified.

        :raises DialogueError: the server has said something in the clear that has not been read.
        """
        if self._buffer:
            raise self._failure(f"in the clear, before TLS: {self._buffer!r}")
        if context is None:
            context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with self._patience("shaking hands"):
            # (Not context.wrap_socket: a context of the standard library's makes a socket that blocks the hub.)
            self.socket = gevent_ssl.SSLSocket(sock=self.socket, server_hostname=server_hostname, _context=context)
        self._said.append("-- TLS --")

    # The end

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def half_close(self) -> None:
        """Say that nothing more will come, and go on listening."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the connection off: over TCP, the server gets a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Peer {self._said[-1] if self._said else 'silent'!r}>"

    def _read_line(self) -> bytes:
        with self._patience("waiting for a reply"):
            while b"\r\n" not in self._buffer:
                try:
                    piece = self.socket.recv(65536)
                except ConnectionError as error:
                    raise self._failure(f"the connection broke: {error}") from None
                if not piece:
                    raise self._failure(f"the connection ended; unread: {self._buffer!r}")
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _note(self, octets: bytes) -> None:
        shown = octets[:_OCTETS].decode("utf-8", "backslashreplace")
        if len(octets) > _OCTETS:
            shown += f"... ({len(octets)} octets)"
        self._said.extend(f"C: {line}" for line in shown.removesuffix("\r\n").split("\r\n"))

    def _failure(self, what: str) -> DialogueError:
        return DialogueError(f"{what}\n\nThe dialogue so far:\n{self.transcript}")

    def _patience(self, what: str) -> Timeout:
        return Timeout(self.timeout, _Impatience(self, f"no timeout left: {what} for {self.timeout} s"))


class _Impatience(DialogueError):
    """Shows the dialogue as it stands when timeout ends, not when waiting began."""

    def __init__(self, peer: Peer, what: str) -> None:
        super().__init__(what)
        self._peer = peer

    def __str__(self) -> str:
        return f"{self.args[0]}\n\nThe dialogue so far:\n{self._peer.transcript}"


def dial(server: SMTPServer, *, source: tuple[str, int] | None = None, timeout: float = PATIENCE) -> Peer:
    """Connect to a server: over its listener when it has started, else over a socket pair, without any network.

    :param source: the address that the session is to see as its peer's, whatever it is: ``("192.0.2.1", 4711)``;
        over a socket pair, too.
    """
    if source is not None or not server.started:
        ours, theirs = socket.socketpair()
        server.adopt(theirs, source or "")
        return Peer(ours, timeout=timeout)
    address = server.address
    if not isinstance(address, tuple):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    with Timeout(timeout, DialogueError(f"no timeout left: connecting to {address!r} for {timeout} s")):
        sock.connect(address)
    return Peer(sock, timeout=timeout)
