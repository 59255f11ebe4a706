"""Servers that send exactly what a test scripts, right or wrong."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, socket, spawn
from gevent import sleep as switch
from gevent.server import StreamServer

from greensmtp import SMTPClient, SMTPServer, connect
from greensmtp.testing.fixtures import MakeServer
from tests.client.counter import Counter
from tests.client.inbox import Inbox

if TYPE_CHECKING:
    from tests.conftest import Cuts


class Script:
    """The server's side of one connection, scripted line by line."""

    def __init__(self, sock: Any, cut: int | None = None) -> None:
        """
        :param cut: after this many bytes of output, wait until the client has read them (unix sockets only).
        """
        self.socket = sock
        self._cut = cut
        self._buffer = b""
        #: Everything that has been read.
        self.heard = b""
        #: The bytes that the script has sent.
        self.said = bytearray()

    def say(self, *lines: str) -> None:
        """Send lines, each with its CRLF, in one write."""
        self.send("".join(f"{line}\r\n" for line in lines).encode())

    def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        said = len(self.said)
        if self._cut is not None and said < self._cut < said + len(data):
            at = self._cut - said
            self.socket.sendall(data[:at])
            wait_until_read(self.socket)
            self.socket.sendall(data[at:])
        else:
            self.socket.sendall(data)
        self.said += data

    def hear(self) -> str:
        """Return the client's next line; ``""`` at the end of the connection."""
        while b"\r\n" not in self._buffer:
            if not self._more():
                return ""
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line.decode()

    def expect(self, *lines: str) -> None:
        """Check that the next lines begin like these."""
        for line in lines:
            heard = self.hear()
            assert heard.startswith(line), (heard, line)

    def body(self) -> bytes:
        """Return all bytes up to CRLF.CRLF, unchanged."""
        while not (self._buffer.startswith(b".\r\n") or b"\r\n.\r\n" in self._buffer):
            assert self._more(), self._buffer
        if self._buffer.startswith(b".\r\n"):
            body, self._buffer = b"", self._buffer[3:]
        else:
            body, _, self._buffer = self._buffer.partition(b"\r\n.\r\n")
            body += b"\r\n"
        return body

    def exactly(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        while len(self._buffer) < size:
            assert self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def rest(self) -> bytes:
        """Return everything up to QUIT, or to the end of the connection."""
        while not self._buffer.endswith(b"QUIT\r\n") and self._more():
            pass
        data, self._buffer = self._buffer, b""
        return data

    def _more(self) -> bool:
        try:
            piece = self.socket.recv(65536)
        except OSError:
            return False
        self._buffer += piece
        self.heard += piece
        return bool(piece)

    def greet(self, *offers: str) -> None:
        """Send the banner, and answer EHLO."""
        self.say("220 mx.example.com ESMTP")
        self.expect("EHLO ")
        words = ["mx.example.com", *offers]
        self.say(*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}")


def wait_until_read(sock: Any) -> None:
    """Let other greenlets run until the other end of this unix socket has read everything."""
    while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        switch(0)


class Scripted:
    """A server on a free loopback port: each connection runs the next of its scripts (the last one, repeatedly).

    What a script raises is raised when the test is over.
    """

    def __init__(self, *scripts: Callable[[Script], Any]) -> None:
        self._scripts = list(scripts)
        self.errors: list[BaseException] = []
        self.connections = 0
        self._clients: list[SMTPClient] = []
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        address: Any = self._server.address
        self.port: int = address[1]

    def _serve(self, sock: Any, _address: Any) -> None:
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        try:
            with Timeout(20):
                script(Script(sock))
        except BaseException as error:
            self.errors.append(error)
        finally:
            sock.close()

    def connect(self, *where: Any, **options: Any) -> SMTPClient:
        """Return a client that is connected to it, with timeouts of five seconds."""
        options.setdefault("timeout", 5)
        client = connect("127.0.0.1", self.port, *where, **options)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """Stop, and raise the error of a script."""
        self._server.stop(timeout=1)
        for client in self._clients:
            client.close()
        for error in self.errors:
            raise error


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """``scripted(script, ...)`` starts a server; it is stopped at the end of the test."""
    servers: list[Scripted] = []

    def start(*scripts: Callable[[Script], Any]) -> Scripted:
        server = Scripted(*scripts)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


class Converse:
    """Run a script against a client over a pair of unix sockets."""

    def __init__(self, cuts: Cuts) -> None:
        self._cuts = cuts

    def __call__(
        self, script: Callable[[Script], Any], client: Callable[[SMTPClient], Any], cut: int | None = None
    ) -> bytes:
        """Run once, with the script's output cut in two at ``cut``; return that output."""
        ours, theirs = socket.socketpair()
        spoken = Script(theirs, cut)

        def serve() -> None:
            try:
                script(spoken)
            finally:
                theirs.close()

        serving = spawn(serve)
        try:
            with connect(stream=ours, timeout=20, server_hostname="mx.example.com", local_hostname="x.example") as mail:
                client(mail)
        finally:
            ours.close()
            serving.get(timeout=20)
        return bytes(spoken.said)

    def at_every_cut(
        self, script: Callable[[Script], Any], client: Callable[[SMTPClient], Any], start: int = 1, step: int = 1
    ) -> None:
        """Run once for every cut of the script's output."""
        for cut in self._cuts(self(script, client), start, step=step):
            self(script, client, cut)


@pytest.fixture
def converse(cuts: Cuts) -> Converse:
    """``converse(script, client)``, ``converse.at_every_cut(script, client)``."""
    return Converse(cuts)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Limit the time of every test of the client."""
    with Timeout(50):
        yield


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """Return two connected gevent sockets."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def server(smtp_server: MakeServer) -> SMTPServer:
    """Return a server without handlers; test files have others under this name."""
    return smtp_server()


@pytest.fixture
def counter(server: SMTPServer) -> Counter:
    """Count what the server sees."""
    return Counter(server)


@pytest.fixture
def inbox(smtp_server: MakeServer) -> Inbox:
    """Return an inbox whose server keeps bare newlines."""
    return Inbox(smtp_server(bare_newlines="keep"))
