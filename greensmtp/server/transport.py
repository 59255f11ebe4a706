"""The server's end of a connection: lines and bodies in, replies out, over a gevent socket, with timeouts and TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from socket import SHUT_WR
from typing import Any

from gevent import get_hub, getcurrent
from gevent import ssl as gevent_ssl

from greensmtp.errors import ConnectionLost
from greensmtp.protocol.line_reader import LineReader
from greensmtp.server.limits import Limits
from greensmtp.session.ack import Expired

#: Bytes in one recv: a batch of pipelined commands, and a large piece of a body.
COMMAND_PIECE = 16 * 1024
BODY_PIECE = 128 * 1024
#: Bytes that a fast client may send under TLS before other connections run.
TURN = 128 * 1024

#: Command lines of one pipelined batch that are handled before other connections run.
BATCH = 50

#: Seconds in which the CRLF of a line with a bare LF must come. A client that ends its lines with LF never sends one.
CRLF_SECONDS = 1.0

#: How long, and how many bytes, a closing connection reads after its last reply. Closing a socket with unread input
#: sends a reset, which can destroy that reply on its way.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024


class Connection(LineReader):
    """One client's socket, used by one greenlet; LineReader holds its input.

    It has no timer. Before each wait it sets how many seconds that may take (``timeout``), and that no sweep has seen
    it (``wait_started``). The server's sweep checks all connections now and then, and calls ``expire`` on those that
    have timed out. So timeouts are cheap: starting one is two attribute assignments. ``expire`` runs in the hub, so the
    greenlet is waiting, and the exception arrives exactly there.
    """

    __slots__ = (
        "_batch",
        "_command_timeout",
        "_data_timeout",
        "_hub",
        "_out",
        "_pending",
        "_received",
        "_recv",
        "_send_some",
        "_swept",
        "_turn",
        "_waited",
        "_wake",
        "_watcher",
        "awaiting_command",
        "greenlet",
        "in_body",
        "limits",
        "lost",
        "mute",
        "socket",
        "timeout",
        "wait_started",
        "write",
    )

    def __init__(self, socket: Any, limits: Limits, max_length: Callable[[str], int], line_limit: int) -> None:
        """
        :param max_length, line_limit: as LineReader takes them.
        """
        super().__init__(max_length, line_limit)
        #: The greenlet that uses this connection; None before ``begin``, and when the connection is over.
        self.greenlet: Any = None
        self._wake: Any = None
        self._hub = get_hub()
        #: TLS: returns the number of bytes that have been decrypted and not read.
        self._pending: Callable[[], int] | None = None
        self._use(socket)
        #: Bytes that may come before other connections run.
        self._turn = TURN
        #: Command lines that may be read before other connections run.
        self._batch = BATCH
        self.limits = limits
        self._command_timeout = limits.command_timeout
        self._data_timeout = limits.data_timeout
        self._out: list[bytes] = []
        #: ``write(data)``: keep bytes for the client; all are sent in one piece before the next wait for input.
        self.write: Callable[[bytes], None] = self._out.append
        #: Seconds that the current wait may take; 0.0 while it does not wait.
        self.timeout = 0.0
        #: When a sweep first saw this wait, on the sweep's clock; 0.0 if none has.
        self.wait_started = 0.0
        #: The greenlet waits for a command.
        self.awaiting_command = False
        #: The error with which the connection was lost.
        self.lost: ConnectionLost | None = None
        #: Nothing more can be sent: a reply or a handshake was cut short.
        self.mute = False
        #: A body is being received, and its rate is measured.
        self.in_body = False
        #: Of that body: a sweep has seen it; seconds that were spent waiting for it; bytes that have come.
        self._swept = False
        self._waited = 0.0
        self._received = 0

    def _use(self, socket: Any) -> None:
        """Use this socket from here on."""
        self.socket = socket
        self._watcher: Any = self._hub.loop.io(socket.fileno(), 1)
        if isinstance(socket, gevent_ssl.SSLSocket):
            self._pending = socket.pending
            native = socket
        else:
            # gevent's methods try these and wait if that fails. Here the wait comes first.
            native = getattr(socket, "_sock", socket)
        self._recv: Callable[[int], bytes] = native.recv
        self._send_some: Callable[[bytes], int] = native.send

    @property
    def encrypted(self) -> bool:
        """True if TLS is active."""
        return self._pending is not None

    def begin(self) -> None:
        """Make the current greenlet the one that uses this connection."""
        self.greenlet = getcurrent()
        self._wake = self.greenlet.switch

    # Deadlines

    def look(self, now: float, elapsed: float) -> None:
        """Check for a timeout and for the data rate, in a sweep of the server. Call it in the hub, during a wait.

        :param now: on the sweep's clock.
        :param elapsed: seconds since the last sweep.
        """
        if not self.wait_started:
            self.wait_started = now
        if now - self.wait_started > self.timeout:
            self.expire()
        elif self.in_body and not self.awaiting_command:
            # A slow sender is waiting in almost every sweep, so sampling there is accurate enough. The time until the
            # next BDAT command does not count: no bytes have been announced.
            self._waited = self._waited + elapsed if self._swept else 0.0
            self._swept = True
            limits = self.limits
            if self._waited > limits.data_rate_grace and self._received < self._waited * limits.min_data_rate:
                self.expire("slow")

    def expire(self, reason: str = "timeout") -> None:
        """End the wait with ConnectionLost. Call it in the hub, during a wait."""
        self.timeout = 0.0
        if self.greenlet is not None:
            self.greenlet.throw(Expired(reason))

    # Out

    def flush(self, timeout: float) -> None:
        """Send what was written, within ``timeout`` seconds.

        :raises ConnectionLost: the client is gone, or does not read it in time.
        """
        if not self._out:
            return
        self.wait_started = 0.0
        self.timeout = timeout
        try:
            self._send()
        except Expired as expired:
            raise self._fail(expired.reason) from None
        except OSError as error:
            raise self._fail("reset") from error
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
            self.mute = True
            raise

    def say_at_once(self, reply: bytes) -> None:
        """Send what was written and a last reply, as far as that works without waiting. Call it in the hub."""
        if self.mute:
            return
        self.mute = True
        data = b"".join((*self._out, reply))
        self._out.clear()
        try:
            if self._pending is None:
                self._send_some(data)
            else:
                self.socket._sslobj.write(data)  # (the socket's own ``send`` waits)
                self._notify_close()
            # Nothing may follow, whatever the handler does. (The TLS socket's own shutdown would drop TLS.)
            getattr(self.socket, "_sock", self.socket).shutdown(SHUT_WR)
        except (OSError, AttributeError):
            pass  # the send buffer is full, or the client is gone

    # In

    def read_line(self, max_length: int | None = None) -> bytes:
        """Return the next line without its CRLF. If none has come, send what was written and wait for one.

        The whole line must come within ``command_timeout``.

        :param max_length: bytes that it may have, CRLF included; None: as many as its verb allows.
        :raises BadLine: the line is too long or has a bare LF; it is dropped up to its CRLF.
        :raises ConnectionLost: the client is gone or has timed out.
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
                line = self.next_line(max_length, self._receive(COMMAND_PIECE))
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
        """Return the next bytes of a body, at least one and up to ``size``.

        :raises ConnectionLost: the client is gone, has timed out, or sends less than ``min_data_rate``.
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

    def ask_for_body(self, reply: bytes) -> None:
        """Send what was written and the 354 at once, since the receiver may wait before it reads.

        :raises ConnectionLost: the client is gone, or does not read it in time.
        """
        self._out.append(reply)
        self.flush(self._command_timeout)
        self.begin_body()

    def begin_body(self) -> None:
        """Measure the rate of a body from here on, until ``in_body`` is false."""
        self.in_body = True
        self._swept = False
        self._received = 0

    def _receive(self, size: int) -> bytes:
        """Send what was written, wait for input, and return up to ``size`` bytes of it.

        :raises ConnectionLost: the client is gone or has timed out.
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
            raise self._fail(expired.reason) from None
        except OSError as error:
            raise self._fail("reset") from error
        if not data:
            raise self._fail("closed")
        return data

    def _fail(self, reason: str) -> ConnectionLost:
        self.in_body = False
        self.lost = ConnectionLost(reason)
        return self.lost

    # TLS, and the end

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake. All bytes that came in the clear are dropped (RFC 3207 section 5).

        :raises ConnectionLost: the handshake failed, or took longer than ``tls_timeout``.
        """
        self.clear()
        self._close_watcher()
        self.mute = True
        self.wait_started = 0.0
        self.timeout = self.limits.tls_timeout
        self.awaiting_command = True  # a shutdown does not wait for this client
        try:
            # (The constructor rather than context.wrap_socket: a context of the standard library's would make a
            # socket of the standard library's, which blocks the hub.)
            self.socket.getpeername()  # raises if the client is gone, where the constructor would leak a descriptor
            self.socket = gevent_ssl.SSLSocket(
                sock=self.socket, server_side=True, do_handshake_on_connect=False, _context=context
            )
            self.socket.do_handshake()
            self._use(self.socket)
            self.mute = False
        except Expired as expired:
            raise self._fail(expired.reason) from None
        except OSError as error:
            raise self._fail("tls") from error
        finally:
            self.timeout = 0.0
            self.awaiting_command = False

    def close(self, *, linger: bool) -> None:
        """Send what was written, and close.

        :param linger: the client may still be sending: make sure that it can read the last reply.
        """
        try:
            self.flush(LINGER_SECONDS)
            if self._pending is not None:
                self._notify_close()
            if linger:
                self._linger()
        except (ConnectionLost, OSError):
            pass  # the client is gone
        finally:
            self.greenlet = self._wake = None
            self._close_watcher()
            self.socket.close()
            if self.lost is not None:
                # A copy that was never raised: the frames of a traceback refer to this connection, which is a cycle.
                self.lost = ConnectionLost(self.lost.reason)

    def abandon(self) -> None:
        """Close at once, while the greenlet is busy elsewhere and may never return."""
        self.greenlet = self._wake = None
        self.mute = True
        self._close_watcher()
        self.socket.close()

    def _notify_close(self) -> None:
        """Send close_notify (RFC 8446 section 6.1), without waiting for the client's."""
        try:
            self.socket._sslobj.shutdown()
        except (OSError, AttributeError):
            pass  # sent, and the client's own has not come yet; or the client is gone

    def _linger(self) -> None:
        self.socket.shutdown(SHUT_WR)
        self.wait_started = 0.0
        self.timeout = LINGER_SECONDS
        taken = 0
        while taken < LINGER_BYTES:
            taken += len(self._receive(COMMAND_PIECE))

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
