"""A buffered byte stream over a gevent socket: lines in, replies out, deadlines, the step up to TLS."""

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

#: Octets taken off the socket at once: a batch of pipelined commands, and a good piece of a body.
COMMAND_PIECE = 16 * 1024
BODY_PIECE = 128 * 1024
#: Octets that a peer who brings them as fast as they are taken may have on end, under TLS.
TURN = 128 * 1024

#: Command lines of one pipelined batch that a client may have answered before other connections have their turn.
BATCH = 50

#: Seconds in which a line with a bare LF in it must come to its CRLF. A client that ends its lines so never sends one.
CRLF_SECONDS = 1.0

#: After the last reply of ours to a peer that may still be sending, its octets are taken for this long, and up to
#: this many: a close with unread input would be a reset, which can destroy the reply on its way.
LINGER_SECONDS = 2.0
LINGER_OCTETS = 1024 * 1024


class Connection(LineReader):
    """One peer's socket, used by one greenlet.

    It has no timer: before each wait it notes how many seconds that may take (``timeout``), and that nobody has
    looked yet (``wait_started``); the server's sweep looks at all connections now and then, and calls ``expire`` on
    those that are late. So a time-out costs the assignment of two numbers. ``expire`` runs in the hub, hence while the
    greenlet waits, and what it throws arrives exactly there.
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
        #: Who speaks here; None before ``begin``, and when the connection is over.
        self.greenlet: Any = None
        self._wake: Any = None
        self._hub = get_hub()
        #: TLS: octets that have been decrypted, and not taken.
        self._pending: Callable[[], int] | None = None
        self._use(socket)
        #: Octets that may come before others have their turn.
        self._turn = TURN
        #: Command lines that may be taken before others have their turn.
        self._batch = BATCH
        self.limits = limits
        self._command_timeout = limits.command_timeout
        self._data_timeout = limits.data_timeout
        self._out: list[bytes] = []
        #: ``write(octets)``: owe them to the peer; they go out before the next wait for input, all in one piece.
        self.write: Callable[[bytes], None] = self._out.append
        #: Seconds that what it waits for may take; 0.0: it waits for nothing.
        self.timeout = 0.0
        #: When the sweep first saw it wait for that, on its clock; 0.0: it has not.
        self.wait_started = 0.0
        #: The greenlet waits for a command, of which nothing needs to have come yet.
        self.awaiting_command = False
        #: What was raised when the peer was lost.
        self.lost: ConnectionLost | None = None
        #: Nothing more can be said: a reply has been cut short, or a handshake.
        self.mute = False
        #: A body is on its way, whose rate is measured.
        self.in_body = False
        #: A sweep has seen that it is on its way; seconds that it has been waited for, octets that have come.
        self._swept = False
        self._waited = 0.0
        self._received = 0

    def _use(self, socket: Any) -> None:
        """Speak over this socket from here on."""
        self.socket = socket
        self._watcher: Any = self._hub.loop.io(socket.fileno(), 1)
        if isinstance(socket, gevent_ssl.SSLSocket):
            self._pending = socket.pending
            native = socket
        else:
            # gevent's methods try what these do, and wait where it cannot be done; here it will have been waited for.
            native = getattr(socket, "_sock", socket)
        self._recv: Callable[[int], bytes] = native.recv
        self._send_some: Callable[[bytes], int] = native.send

    @property
    def encrypted(self) -> bool:
        """TLS is up."""
        return self._pending is not None

    def begin(self) -> None:
        """This connection belongs to the current greenlet."""
        self.greenlet = getcurrent()
        self._wake = self.greenlet.switch

    # Deadlines

    def look(self, now: float, elapsed: float) -> None:
        """The server's sweep comes by: has it waited for too long? Only in the hub, while it waits.

        :param now: on the sweep's clock.
        :param elapsed: seconds since the last sweep.
        """
        if not self.wait_started:
            self.wait_started = now
        if now - self.wait_started > self.timeout:
            self.expire()
        elif self.in_body and not self.awaiting_command:
            # A slow sender is waiting in almost every sweep, so sampling there is accurate enough. The time until the
            # next BDAT command is the client's to think: it has announced no octets.
            self._waited = self._waited + elapsed if self._swept else 0.0
            self._swept = True
            limits = self.limits
            if self._waited > limits.data_rate_grace and self._received < self._waited * limits.min_data_rate:
                self.expire("slow")

    def expire(self, reason: str = "timeout") -> None:
        """Time is up, or the server shuts down. Only in the hub, while it waits."""
        self.timeout = 0.0
        if self.greenlet is not None:
            self.greenlet.throw(Expired(reason))

    # Out

    def flush(self, timeout: float) -> None:
        """Send what is owed, within ``timeout`` seconds.

        :raises ConnectionLost: the peer is gone, or does not take it in time.
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
        """Send what is owed, and the last reply, as far as that can be done without waiting. For the hub."""
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
            # Nothing may follow it, whatever the handler does. (The TLS socket's own would forget TLS.)
            getattr(self.socket, "_sock", self.socket).shutdown(SHUT_WR)
        except (OSError, AttributeError):
            pass  # its buffer is full, or the client is gone

    # In

    def read_line(self, max_length: int | None = None) -> bytes:
        """The next line, without its CRLF. Where none has come yet, what is owed is sent, and waited for a line, all
        of which must be there within ``command_timeout``.

        :param max_length: bytes that it may have, CRLF included; None: as many as its verb allows.
        :raises BadLine: it is too long, or has a bare LF. It is skipped, up to its CRLF.
        :raises ConnectionLost: the peer is gone, or late.
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
        """Let the other connections run."""
        self._batch = BATCH
        turn = self._hub.loop.run_callback(self._wake)
        try:
            self._hub.switch()
        finally:
            turn.stop()

    def read(self, size: int = BODY_PIECE) -> bytes:
        """Octets of a body, up to ``size``, at least one.

        :raises ConnectionLost: the peer is gone, or late, or brings less than ``min_data_rate``.
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
        """Send what is owed, and this, at once: the receiver may take its time before it reads.

        :raises ConnectionLost: the peer is gone, or does not take it in time.
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
        """Send what is owed, wait for input, and return up to ``size`` bytes of it.

        :raises ConnectionLost: the client is gone, or late.
        """
        try:
            if self._out:
                self._send()
            # A plain socket is waited for before it is tried, since nearly always there is nothing yet. TLS hands out
            # one record at a time, so within a body the next one is tried first; but now and then the others must
            # have their turn, however fast this peer is.
            pending = self._pending
            if pending is None or ((self._turn <= 0 or size <= COMMAND_PIECE) and not pending()):
                self._turn = TURN
                # (``hub.wait`` makes a Waiter for each wait, which tells the wake-up that it was made for from any
                # other. Here any other costs no more than a try that finds nothing.)
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
        """Shake hands. Every octet that came in the clear is dropped, half a line too (RFC 3207 section 5).

        :raises ConnectionLost: the handshake failed, or took longer than ``tls_timeout``.
        """
        self.clear()
        self._close_watcher()
        self.mute = True
        self.wait_started = 0.0
        self.timeout = self.limits.tls_timeout
        self.awaiting_command = True  # a shutdown does not wait for this peer
        try:
            # (The constructor rather than context.wrap_socket: a context of the standard library's would make a
            # socket of the standard library's, which blocks the hub.)
            self.socket.getpeername()  # raises, where the constructor would leave a descriptor behind: the peer is gone
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
        """Send what is owed, and close.

        :param linger: the peer may still be sending: see to it that it can read our last reply.
        """
        try:
            self.flush(LINGER_SECONDS)
            if self._pending is not None:
                self._notify_close()
            if linger:
                self._linger()
        except (ConnectionLost, OSError):
            pass  # there is nobody left to tell
        finally:
            self.greenlet = self._wake = None
            self._close_watcher()
            self.socket.close()
            if self.lost is not None:
                # One that was never raised: a traceback knows this connection, by its frames, and would be a cycle.
                self.lost = ConnectionLost(self.lost.reason)

    def abandon(self) -> None:
        """Close at once, while the greenlet is elsewhere and may not come back."""
        self.greenlet = self._wake = None
        self.mute = True
        self._close_watcher()
        self.socket.close()

    def _notify_close(self) -> None:
        """Tell a TLS client that nothing follows (RFC 8446 section 6.1), and do not wait for its answer."""
        try:
            self.socket._sslobj.shutdown()
        except (OSError, AttributeError):
            pass  # sent, and the client's own has not come yet; or the client is gone

    def _linger(self) -> None:
        self.socket.shutdown(SHUT_WR)
        self.wait_started = 0.0
        self.timeout = LINGER_SECONDS
        taken = 0
        while taken < LINGER_OCTETS:
            taken += len(self._receive(COMMAND_PIECE))

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
