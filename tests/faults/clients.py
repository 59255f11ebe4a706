"""Clients in greenlets: one conversation at a time, and senders that go on until they are told to stop."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from gevent import Greenlet, joinall, killall, sleep, socket, spawn
from gevent import ssl as gevent_ssl

from tests.faults.ledger import Ledger

#: Seconds that a client waits for a reply. A reply that takes so long counts as a hang.
PATIENCE = 60.0


class Closed(Exception):
    """The server has closed the connection."""


class Client:
    """One connection. Replies are read whole, and returned as they came."""

    def __init__(self, port: int, *, source: str | None = None, tls: bool = False, timeout: float = PATIENCE) -> None:
        where = None if source is None else (source, 0)
        self.socket: Any = socket.create_connection(("127.0.0.1", port), timeout, where)
        self._buffer = b""
        if tls:
            context = gevent_ssl.SSLContext(gevent_ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, gevent_ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)

    def reply(self) -> bytes:
        """Return the next reply, with all of its lines.

        :raises Closed: the connection ended.
        """
        lines = b""
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                try:
                    piece = self.socket.recv(65536)
                except TimeoutError:
                    raise
                except OSError as error:
                    raise Closed(str(error)) from error
                if not piece:
                    raise Closed("end of file")
                self._buffer += piece
                continue
            lines, self._buffer = lines + line + end, rest
            if line[3:4] != b"-":
                return lines

    def ask(self, data: bytes) -> bytes:
        """Send a line or a body, and return the reply."""
        self.send(data + b"\r\n")
        return self.reply()

    def send(self, data: bytes) -> None:
        """Send bytes.

        :raises Closed: the connection has ended, and what the server last said cannot be read either.
        """
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise
        except OSError as error:
            try:
                self._buffer += self.socket.recv(65536)  # a 421 may have come before the end
            except OSError:
                pass
            if b"\r\n" not in self._buffer:
                raise Closed(str(error)) from error

    def hello(self) -> bytes:
        """Read the banner and say EHLO; return the first reply that is no success."""
        banner = self.reply()
        return banner if not banner.startswith(b"220") else self.ask(b"EHLO client.example")

    def deliver(self, body: bytes) -> bytes:
        """Send one message; return the final reply, or the first one that refuses."""
        for command in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.com>"):
            reply = self.ask(command)
            if not reply.startswith(b"250"):
                return reply
        reply = self.ask(b"DATA")
        return self.ask(body + b".") if reply.startswith(b"354") else reply

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def deliver(port: int, body: bytes, **options: Any) -> bytes:
    """Connect and send one message; return the last reply."""
    with Client(port, **options) as client:
        reply = client.hello()
        return client.deliver(body) if reply.startswith(b"250") else reply


class Sender:
    """Sends numbered messages over one connection after another, and notes everything in the ledger."""

    def __init__(self, port: int, ledger: Ledger, *, slow: float = 0.0, per_connection: int = 20) -> None:
        self._port = port
        self._ledger = ledger
        #: Seconds of pauses within each body.
        self._slow = slow
        self._per_connection = per_connection
        self.stopped = False
        self._random = random.Random(id(self))

    def run(self) -> None:
        """Send until ``stopped``."""
        events = self._ledger.events
        while not self.stopped:
            try:
                client = Client(self._port)
            except (ConnectionRefusedError, ConnectionResetError):  # a listen queue that goes is reset
                events["refused"] += 1
                sleep(0.01)
                continue
            except OSError as error:
                self._ledger.surprise(f"connect: {error}")
                sleep(0.01)
                continue
            with client:
                self._converse(client)

    def _converse(self, client: Client) -> None:
        events = self._ledger.events
        try:
            reply = client.hello()
        except Closed:
            events["closed before a transaction"] += 1
            return
        if reply.startswith(b"421"):
            events["421 at the door"] += 1
            return
        for _ in range(self._per_connection):
            if self.stopped or not self._transact(client):
                break

    def _transact(self, client: Client) -> bool:
        """Send one message; return True if the connection may go on."""
        ledger, number = self._ledger, self._ledger.next_number()
        begun = asked = False
        try:
            reply = client.ask(b"MAIL FROM:<a@example.org>")
            begun = reply.startswith(b"250")
            if begun:
                reply = client.ask(b"RCPT TO:<b@example.com>")
            if reply.startswith(b"250"):
                reply = client.ask(b"DATA")
            if reply.startswith(b"354"):
                body = ledger.message(number)
                if self._slow:
                    client.send(body[: len(body) // 2])
                    sleep(self._slow)
                    body = body[len(body) // 2 :]
                asked = True
                reply = client.ask(body + b".")
        except Closed:
            ledger.unknown.append(number)
            ledger.events["cut in a transaction" if begun else "closed before a transaction"] += 1
            if asked:
                ledger.events["outcome unknown"] += 1
            return False
        except TimeoutError:
            ledger.unknown.append(number)
            ledger.surprise("no reply in time")
            return False
        if asked and reply.startswith(b"250"):
            ledger.acknowledge(number, reply)
            return True
        ledger.unknown.append(number)
        code = reply[:3].decode()
        ledger.events[f"{code} {'in a transaction' if begun else 'at MAIL'}"] += 1
        return code != "421" and not client.ask(b"RSET").startswith(b"421")


@contextmanager
def senders(port: int, ledger: Ledger, count: int, *, slow: int = 0, seconds: float = 0.5) -> Iterator[list[Sender]]:
    """Keep clients sending during the block, and let each finish its message at the end.

    :param slow: how many of them pause for ``seconds`` in each body.
    """
    made = [Sender(port, ledger, slow=seconds if number < slow else 0.0) for number in range(count)]
    running: list[Greenlet[Any, Any]] = [spawn(each.run) for each in made]
    try:
        yield made
    finally:
        for each in made:
            each.stopped = True
        joinall(running, timeout=PATIENCE)
        killall(running)
    for greenlet in running:
        if greenlet.exception is not None and not isinstance(greenlet.exception, Closed):
            ledger.surprise(f"a client failed: {greenlet.exception!r}")


def wait_for(condition: Any, seconds: float = PATIENCE, what: str = "") -> float:
    """Wait until a condition is true; return the seconds that it took.

    :raises AssertionError: it took longer than ``seconds``.
    """
    began = monotonic()
    while not condition():
        if monotonic() - began > seconds:
            raise AssertionError(f"waited {seconds:g} s for {what or condition}")
        sleep(0.005)
    return monotonic() - began
