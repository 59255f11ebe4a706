"""The load: postfix's smtp-source, and blocking sockets of our own for what it cannot do."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from benchmarks import machine

#: Seconds that any load may take.
PATIENCE = 120.0
#: Seconds after which our own loops have seen enough: some peers stall for 40 ms at a time, by sending a reply in two
#: pieces with Nagle's algorithm between them.
BUDGET = 2.5
#: Seconds until a reply must be there.
REPLY_PATIENCE = 60.0

EHLO = b"EHLO client.example\r\n"
MAIL, RCPT, DATA = b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n", b"DATA\r\n"


def smtp_source(port: int, *, sessions: int, messages: int, size: int, kept: bool, recipients: int = 1) -> int:
    """Send so many messages over so many connections at once; ``kept``: each connection for many messages.

    :raises RuntimeError: not all of them were taken.
    """
    command = [machine.find("smtp-source"), "-s", str(sessions), "-m", str(messages), "-l", str(size)]
    command += ["-r", str(recipients), *(["-d"] if kept else []), f"127.0.0.1:{port}"]
    try:
        ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {PATIENCE:.0f} s") from error
    if ran.returncode:
        raise RuntimeError(ran.stdout.decode(errors="replace").strip()[-300:] or "smtp-source failed")
    return messages


def message(size: int) -> bytes:
    """About so many octets, and their end."""
    line = b"x" * 76 + b"\r\n"
    return b"Subject: a benchmark\r\n\r\n" + line * (size // len(line)) + b".\r\n"


#: Linux: the port is chosen by connect, which knows what is free towards this server. (``socket`` has no name for it.)
_BIND_ADDRESS_NO_PORT = 24

#: Clients that come at once.
_GROUP = 100


class Client:
    """A connection that says what it is told to."""

    def __init__(self, port: int, *, source: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        #: What has been read of the next reply.
        self._buffer = b""
        self._socket = socket.socket()
        try:
            self._socket.settimeout(REPLY_PATIENCE)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                self._socket.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                self._socket.bind((source, 0))
                # Thousands that hang up are not to leave thousands of ports in TIME_WAIT: a reset leaves none.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.connect(("127.0.0.1", port))
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname="mx.example.com")
            self.send = self._socket.sendall
        except BaseException:
            self._socket.close()
            raise

    def replies(self, *codes: str) -> None:
        """Read as many replies, and see that they have these codes.

        :raises RuntimeError: they have not, or the connection has ended.
        """
        for code in codes:
            more = True
            while more:
                while (end := self._buffer.find(b"\r\n")) < 0:
                    piece = self._socket.recv(65536)
                    if not piece:
                        raise RuntimeError(f"the connection ended before {code}")
                    self._buffer += piece
                line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
                more = line[3:4] == b"-"
            if not line.startswith(code.encode()):
                raise RuntimeError(f"{code} awaited: {line!r}")

    def ask(self, octets: bytes, *codes: str) -> None:
        """Send, and read as many replies."""
        self.send(octets)
        self.replies(*codes)

    def hello(self) -> None:
        """Hear the banner, and greet."""
        self.replies("220")
        self.ask(EHLO, "250")

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Up to TLS, and greet again."""
        self.ask(b"STARTTLS\r\n", "220")
        self._socket = context.wrap_socket(self._socket, server_hostname="mx.example.com")
        self.send = self._socket.sendall
        self.ask(EHLO, "250")

    def deliver(self, body: bytes, recipient: bytes = RCPT) -> None:
        """One message, one command at a time."""
        self.ask(MAIL, "250")
        self.ask(recipient, "250")
        self.ask(DATA, "354")
        self.ask(body, "250")

    def quit(self) -> None:
        """Say goodbye."""
        self.ask(b"QUIT\r\n", "221")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextmanager
def clients(port: int, count: int, *, tls: ssl.SSLContext | None = None, far: bool = False) -> Iterator[list[Client]]:
    """So many, greeted; ``far``: from several loopback addresses, since one has too few ports for thousands."""
    with ExitStack() as stack:
        made: list[Client] = []
        while len(made) < count:
            # In groups, which no server's backlog is too small for: one makes every client wait for its banner.
            group = []
            for number in range(len(made), min(count, len(made) + _GROUP)):
                source = f"127.0.0.{2 + number // 5_000}" if far else None
                group.append(stack.enter_context(closing(Client(port, source=source, tls=tls))))
            _all(group, b"", "220")
            _all(group, EHLO, "250")
            made += group
        yield made


def unverified() -> ssl.SSLContext:
    """A context for a peer that nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def in_step(those: list[Client], rounds: int, body: bytes) -> int:
    """A message on each connection, so many times: every client says one thing, then every client hears one.

    Gives the number of messages, as do those below: fewer where ``BUDGET`` is spent first.
    """
    return len(those) * _repeat(partial(_step_by_step, those, body), rounds)


def _step_by_step(those: list[Client], body: bytes) -> None:
    for octets, code in ((MAIL, "250"), (RCPT, "250"), (DATA, "354"), (body, "250")):
        _all(those, octets, code)


def pipelined(those: list[Client], rounds: int, body: bytes) -> int:
    """The same in groups (RFC 2920 section 3.1): the end of a message and the next one's commands go out at once."""
    envelope = MAIL + RCPT + DATA
    _all(those, envelope, "250", "250", "354")
    done = _repeat(partial(_all, those, body + envelope, "250", "250", "250", "354"), rounds - 1)
    _all(those, body, "250")
    return len(those) * (done + 1)


def _all(those: list[Client], octets: bytes, *codes: str) -> None:
    """Every one says this, then every one hears these replies."""
    for client in those:
        client.send(octets)
    for client in those:
        client.replies(*codes)


def connecting_with_tls(port: int, context: ssl.SSLContext, count: int, body: bytes) -> int:
    """Connections that say EHLO, STARTTLS, EHLO, one message, QUIT."""

    def connect() -> None:
        with closing(Client(port)) as client:
            client.hello()
            client.start_tls(context)
            client.deliver(body)
            client.quit()

    return _repeat(connect, count)


def one_by_one(client: Client, count: int, body: bytes) -> int:
    """Messages over one connection."""
    return _repeat(partial(client.deliver, body), count)


def _repeat(what: Callable[[], object], count: int) -> int:
    """So many times, or until ``BUDGET`` is spent; how many times that was."""
    until = time.perf_counter() + BUDGET
    for number in range(count):
        what()
        if time.perf_counter() > until:
            return number + 1
    return count


def latencies(client: Client, count: int, body: bytes) -> list[float]:
    """Seconds for each of so many messages, one after another."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        client.deliver(body)
        taken.append(time.perf_counter() - began)
    return taken
