"""The bytes of one connection over a gevent socket: lines and bodies in, replies out, timeouts.

The rules of this file:

- One greenlet reads and writes. Only ``check`` and ``expire`` are called from outside of it, and only in the hub, so
  the greenlet is waiting at that moment.
- Replies are gathered and sent in one piece, right before the greenlet waits for input. A pipelined batch of commands
  costs one ``recv`` and one ``send``.
- A plain socket is waited for before ``recv`` is tried. Each wait goes straight to the event loop.

How timeouts work: a wait has no timer. Before it, the transport sets ``timeout`` (seconds; 0.0 means that it waits for
nothing) and ``wait_started`` (0.0). Now and then the server's DeadlineMonitor calls ``check``, which notes the time of
its first look in ``wait_started`` and later compares. A wait that took too long ends with ``Expired``, thrown into the
greenlet, which becomes a ConnectionLost. So starting a timeout is two attribute assignments.

Invariants: ``timeout`` is not 0.0 only while the greenlet waits for the client. After ``write_failed``, nothing more is
sent, since part of a reply may be on the wire. ``close_error`` is set once the client is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gevent import get_hub, getcurrent
from gevent import ssl as gevent_ssl

from greensmtp.errors import ConnectionLost
from greensmtp.protocol.line_reader import ALWAYS_ALLOWED, LineReader
from greensmtp.server.limits import Limits
from greensmtp.session.ack_state import Expired

#: Bytes for one ``recv``: a batch of pipelined commands, a piece of a body.
COMMAND_PIECE: Final = 16 * 1024
BODY_PIECE: Final = 128 * 1024
#: Under TLS, bytes that are read from a fast client without waiting, before other connections get a turn.
TURN: Final = 128 * 1024

#: Command lines of one pipelined batch that are answered before other connections get a turn.
BATCH: Final = 50

#: Seconds until a line with a bare LF must end in CRLF. A client that ends its lines with LF never sends one.
CRLF_SECONDS: Final = 1.0


class LineTransport(LineReader):
    """One client's socket, used by one greenlet, without its end."""

    __slots__ = (
        "_batch",
        "_body_seen",
        "_command_timeout",
        "_data_timeout",
        "_hub",
        "_out",
        "_pending",
        "_received",
        "_recv",
        "_send_some",
        "_turn",
        "_waited",
        "_wake",
        "_watcher",
        "awaiting_command",
        "close_error",
        "greenlet",
        "in_body",
        "limits",
        "socket",
        "timeout",
        "wait_started",
        "write",
        "write_failed",
    )

    def __init__(self, socket: Any, limits: Limits, max_length: Callable[[str], int], line_limit: int) -> None:
        """
        :param max_length: as LineReader takes it.
        :param line_limit: as LineReader takes it.
        """
        super().__init__(max_length, line_limit)
        #: The greenlet that serves the connection; None before ``begin`` and after the end.
        self.greenlet: Any = None
        self._wake: Any = None
        self._hub = get_hub()
        #: Under TLS: returns how many decrypted bytes wait to be read.
        self._pending: Callable[[], int] | None = None
        self._use(socket)
        #: What is left of TURN and of BATCH.
        self._turn = TURN
        self._batch = BATCH
        self.limits = limits
        self._command_timeout = limits.command_timeout
        self._data_timeout = limits.data_timeout
        self._out: list[bytes] = []
        #: ``write(data)``: send the bytes before the next wait for input, in one piece with all others.
        self.write: Callable[[bytes], None] = self._out.append
        #: Seconds that the present wait may take; 0.0 while nothing is waited for.
        self.timeout = 0.0
        #: When the deadline monitor first saw this wait, on its clock; 0.0 before that.
        self.wait_started = 0.0
        #: True while it waits for a command, or for a TLS handshake.
        self.awaiting_command = False
        #: The error that ended the connection; None while it lasts.
        self.close_error: ConnectionLost | None = None
        #: True if nothing more can be sent: a reply or a handshake was cut short, or TLS has not begun.
        self.write_failed = False
        #: True while a body is read, whose rate is measured.
        self.in_body = False
        #: The monitor has seen this body; seconds spent waiting for it; its bytes so far.
        self._body_seen = False
        self._waited = 0.0
        self._received = 0

    def _use(self, socket: Any) -> None:
        """Read from and write to this socket from now on."""
        self.socket = socket
        self._watcher: Any = self._hub.loop.io(socket.fileno(), 1)
        if isinstance(socket, gevent_ssl.SSLSocket):
            self._pending = socket.pending
            native = socket
        else:
            # gevent's own recv and send wait where these raise BlockingIOError; here the wait comes first.
            native = getattr(socket, "_sock", socket)
        self._recv: Callable[[int], bytes] = native.recv
        self._send_some: Callable[[bytes], int] = native.send

    @property
    def encrypted(self) -> bool:
        """True if TLS is up."""
        return self._pending is not None

    def begin(self) -> None:
        """Let the current greenlet serve this connection."""
        self.greenlet = getcurrent()
        self._wake = self.greenlet.switch

    # Deadlines

    def check(self, now: float, elapsed: float) -> None:
        """Expire the present wait if it has taken too long. In the hub, while the greenlet waits for its client.

        :param now: the deadline monitor's clock, in seconds.
        :param elapsed: seconds since its last check.
        """
        if not self.wait_started:
            self.wait_started = now
        if now - self.wait_started > self.timeout:
            self.expire()
        elif self.in_body and not self.awaiting_command:
            # A slow sender is waiting in almost every check, so sampling here is accurate enough. The time until the
            # next BDAT command does not count, since the client has announced no bytes.
            self._waited = self._waited + elapsed if self._body_seen else 0.0
            self._body_seen = True
            limits = self.limits
            if self._waited > limits.data_rate_grace and self._received < self._waited * limits.min_data_rate:
                self.expire("slow")

    def expire(self, reason: str = "timeout") -> None:
        """End the present wait with ConnectionLost(reason). In the hub, while the greenlet waits."""
        self.timeout = 0.0
        if self.greenlet is not None:
            self.greenlet.throw(Expired(reason))

    # Out

    def flush(self, timeout: float) -> None:
        """Send the pending replies within ``timeout`` seconds.

        :raises ConnectionLost: the client is gone, or does not read them in time.
        """
        if not self._out:
            return
        self.wait_started = 0.0
        self.timeout = timeout
        try:
            self._send()
        except Expired as expired:
            raise self.fail(expired.reason) from None
        except OSError as error:
            raise self.fail("reset") from error
        finally:
            self.timeout = 0.0

    def _send(self) -> None:
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        try:
            try:
                sent = self._send_some(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self.socket.sendall(data[sent:])
        except BaseException:
            self.write_failed = True
            raise

    # In

    def read_line(self, max_length: int | None = None) -> bytes:
        """Return the next line without its CRLF. If none has come yet, send the pending replies and wait for one.

        All of the line must be there within ``command_timeout``.

        :param max_length: bytes that it may have, CRLF included; None: as many as its verb allows.
        :raises BadLine: it is too long or has a bare LF. It is skipped up to its CRLF.
        :raises ConnectionLost: the client is gone, or late.
        """
        if self._at < len(self._buffer):
            self._batch -= 1
            if self._batch < 0:
                self._give_way()
            line = self.next_line(max_length)
            if line is not None:
                return line
        self.wait_started = 0.0
        self.timeout = self._command_timeout
        if self.skipped and self.awaits_crlf:
            self.timeout = min(self.timeout, CRLF_SECONDS)
        self.awaiting_command = True
        try:
            while True:
                data = self._receive(COMMAND_PIECE)
                if (
                    len(data) <= ALWAYS_ALLOWED
                    and data.endswith(b"\r\n")
                    and data.find(b"\n") == len(data) - 1
                    and self._at == len(self._buffer)
                    and not self.skipped
                ):
                    # One short line, all of it, as a client that does not pipeline sends it: next_line would return
                    # the same. (This saves 1 % of the server's work for a message.)
                    return data[:-2]
                line = self.next_line(max_length, data)
                if line is not None:
                    return line
        finally:
            self.timeout = 0.0
            self.awaiting_command = False

    def _give_way(self) -> None:
        """Let other connections run."""
        self._batch = BATCH
        turn = self._hub.loop.run_callback(self._wake)
        try:
            self._hub.switch()
        finally:
            turn.stop()

    def read(self, size: int = BODY_PIECE) -> bytes:
        """Return up to ``size`` bytes of a body, at least one.

        :raises ConnectionLost: the client is gone, or late, or sends less than ``min_data_rate``.
        """
        if self._at < len(self._buffer):
            data = self.take(size)
        else:
            self.wait_started = 0.0
            self.timeout = self._data_timeout
            try:
                data = self._receive(size)
            finally:
                self.timeout = 0.0
        self._received += len(data)
        return data

    def begin_body(self) -> None:
        """Measure the rate of a body from now on, until ``in_body`` is False."""
        self.in_body = True
        self._body_seen = False
        self._received = 0

    def _receive(self, size: int) -> bytes:
        """Send the pending replies, wait for input, and return up to ``size`` bytes of it.

        :raises ConnectionLost: the client is gone, or late.
        """
        try:
            if self._out:
                self._send()
            # On a plain socket the wait comes before recv, since nearly always nothing has come yet. TLS returns one
            # record at a time, so within a body recv comes first; but now and then other connections must run,
            # however fast this client is.
            pending = self._pending
            if pending is None or ((self._turn <= 0 or size <= COMMAND_PIECE) and not pending()):
                self._turn = TURN
                # (``hub.wait`` makes a Waiter for each wait, to tell its own wake-up from any other. Here another
                # wake-up costs no more than a recv that finds nothing.)
                watcher = self._watcher
                watcher.start(self._wake)
                try:
                    self._hub.switch()
                finally:
                    watcher.stop()
            try:
                data: bytes = self._recv(size)
            except BlockingIOError:
                data = self.socket.recv(size)
            self._turn -= len(data)
            self._batch = BATCH
        except Expired as expired:
            raise self.fail(expired.reason) from None
        except OSError as error:
            raise self.fail("reset") from error
        if not data:
            raise self.fail("closed")
        return data

    def fail(self, reason: str) -> ConnectionLost:
        """Note that the client is lost, and return the error to raise."""
        self.in_body = False
        self.close_error = ConnectionLost(reason)
        return self.close_error
