"""The load generators: Postfix's smtp-source, and blocking sockets for loads that it does not support."""

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

#: Timeout of a load, in seconds.
TIMEOUT = 120.0
#: Seconds after which the loops below stop early: some peers send a reply in two pieces, and Nagle's algorithm stalls
#: each for 40 ms.
BUDGET = 2.5
#: Timeout of a reply, in seconds.
REPLY_TIMEOUT = 60.0

EHLO = b"EHLO client.example\r\n"
MAIL, RCPT, DATA = b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n", b"DATA\r\n"


def smtp_source(
    port: int,
    *,
    sessions: int,
    messages: int,
    size: int,
    kept: bool,
    recipients: int = 1,
    lmtp: bool = False,
    recipient: str | None = None,
) -> int:
    """Send messages over concurrent connections with smtp-source; return their number.

    :param kept: send many messages over each connection.
    :param recipient: the address to send to.
    :raises RuntimeError: not all of them were accepted.
    """
    command = [machine.find("smtp-source"), "-s", str(sessions), "-m", str(messages), "-l", str(size)]
    command += ["-r", str(recipients), *(["-d"] if kept else []), *(["-L"] if lmtp else [])]
    command += [*(["-t", recipient] if recipient else []), f"127.0.0.1:{port}"]
    try:
        ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {TIMEOUT:.0f} s") from error
    if ran.returncode:
        raise RuntimeError(ran.stdout.decode(errors="replace").strip()[-300:] or "smtp-source failed")
    return messages


def message(size: int) -> bytes:
    """Return a body of about ``size`` bytes, with the dot that ends it."""
    line = b"x" * 76 + b"\r\n"
    return b"Subject: a benchmark\r\n\r\n" + line * (size // len(line)) + b".\r\n"


#: Linux: connect chooses the port, since it knows which are free for this server. (``socket`` has no name for it.)
_BIND_ADDRESS_NO_PORT = 24

#: Clients that connect at once.
_GROUP = 100


class Client:
    """A blocking connection that sends bytes and checks replies."""

    def __init__(self, port: int, *, source: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        #: The bytes of the next reply read so far.
        self._buffer = b""
        self._socket = socket.socket()
        try:
            self._socket.settimeout(REPLY_TIMEOUT)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                self._socket.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                self._socket.bind((source, 0))
                # Close with a reset, so that thousands of connections leave no ports in TIME_WAIT.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.connect(("127.0.0.1", port))
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname="mx.example.com")
            self.send = self._socket.sendall
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for a reply."""
        return self._socket.fileno()

    def replies(self, *codes: str) -> None:
        """Read one reply for each code, and check the codes.

        :raises RuntimeError: a code differs, or the connection has ended.
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
                raise RuntimeError(f"expected {code}, got {line!r}")

    def ask(self, data: bytes, *codes: str) -> None:
        """Send data, and check the replies."""
        self.send(data)
        self.replies(*codes)

    def hello(self) -> None:
        """Read the banner, and send EHLO."""
        self.replies("220")
        self.ask(EHLO, "250")

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Start TLS, and send EHLO again."""
        self.ask(b"STARTTLS\r\n", "220")
        self._socket = context.wrap_socket(self._socket, server_hostname="mx.example.com")
        self.send = self._socket.sendall
        self.ask(EHLO, "250")

    def deliver(self, body: bytes, recipient: bytes = RCPT) -> None:
        """Send one message, one command at a time."""
        self.ask(MAIL, "250")
        self.ask(recipient, "250")
        self.ask(DATA, "354")
        self.ask(body, "250")

    def quit(self) -> None:
        """Send QUIT."""
        self.ask(b"QUIT\r\n", "221")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


@contextmanager
def clients(port: int, count: int, *, tls: ssl.SSLContext | None = None, far: bool = False) -> Iterator[list[Client]]:
    """Connect clients, and send EHLO.

    :param far: connect from several loopback addresses, since one has too few ports for thousands.
    """
    with ExitStack() as stack:
        made: list[Client] = []
        while len(made) < count:
            # In groups that fit into every server's listen queue.
            group = []
            for number in range(len(made), min(count, len(made) + _GROUP)):
                source = f"127.0.0.{2 + number // 5_000}" if far else None
                group.append(stack.enter_context(closing(Client(port, source=source, tls=tls))))
            _all(group, b"", "220")
            _all(group, EHLO, "250")
            made += group
        yield made


def unverified() -> ssl.SSLContext:
    """Return a context that accepts any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def in_step(those: list[Client], rounds: int, body: bytes) -> int:
    """Send a message on each connection, in rounds: all clients send a command, then all read the reply.

    Return the number of messages, as the functions below do: fewer if ``BUDGET`` is used up first.
    """
    return len(those) * _repeat(partial(_step_by_step, those, body), rounds)


def _step_by_step(those: list[Client], body: bytes) -> None:
    for data, code in ((MAIL, "250"), (RCPT, "250"), (DATA, "354"), (body, "250")):
        _all(those, data, code)


def pipelined(those: list[Client], rounds: int, body: bytes) -> int:
    """Send a message on each connection, pipelined (RFC 2920): a body and the next message's commands are one write."""
    envelope = MAIL + RCPT + DATA
    _all(those, envelope, "250", "250", "354")
    done = _repeat(partial(_all, those, body + envelope, "250", "250", "250", "354"), rounds - 1)
    _all(those, body, "250")
    return len(those) * (done + 1)


def _all(those: list[Client], data: bytes, *codes: str) -> None:
    """Let all clients send this, then check all replies."""
    for client in those:
        client.send(data)
    for client in those:
        client.replies(*codes)


def connecting_with_tls(port: int, context: ssl.SSLContext, count: int, body: bytes) -> int:
    """Connect repeatedly: EHLO, STARTTLS, EHLO, one message, QUIT."""

    def connect() -> None:
        with closing(Client(port)) as client:
            client.hello()
            client.start_tls(context)
            client.deliver(body)
            client.quit()

    return _repeat(connect, count)


def one_by_one(client: Client, count: int, body: bytes) -> int:
    """Send messages over one connection."""
    return _repeat(partial(client.deliver, body), count)


def _repeat(what: Callable[[], object], count: int) -> int:
    """Call a function ``count`` times, or until ``BUDGET`` is used up; return the number of calls."""
    until = time.perf_counter() + BUDGET
    for number in range(count):
        what()
        if time.perf_counter() > until:
            return number + 1
    return count


def latencies(client: Client, count: int, body: bytes) -> list[float]:
    """Send messages one after another; return the seconds that each took."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        client.deliver(body)
        taken.append(time.perf_counter() - began)
    return taken
