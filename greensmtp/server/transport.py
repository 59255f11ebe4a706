"""The transport of one connection: TLS, and the ways in which a connection ends.

The rules of this file:

- ``send_at_once`` and ``abandon`` are called from outside of the connection's greenlet, in the hub; all else in it.
- No byte that came before TLS is used after it (RFC 3207 section 5).
"""

from __future__ import annotations

import ssl
from socket import MSG_PEEK, SHUT_WR
from typing import Any

from gevent import ssl as gevent_ssl

from greensmtp.errors import ConnectionLost
from greensmtp.protocol.proxy_header import MAX_V2, ProxyHeader, ProxyHeaderParser
from greensmtp.protocol.proxy_tlv import ProxyHeaderError
from greensmtp.server.line_transport import COMMAND_PIECE, LineTransport
from greensmtp.session.ack_state import Expired

#: After the last reply to a client that may still be sending, input is read and dropped for so many seconds, and so
#: many bytes. Closing a socket with unread input sends a reset, which can destroy that reply on its way.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024

#: Bytes of the longest PROXY header: the fixed part, and what follows it.
MAX_HEADER = 16 + MAX_V2


class Transport(LineTransport):
    """One client's socket, used by one greenlet."""

    __slots__ = ()

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands. Bytes that came in the clear are dropped first, half a line too (RFC 3207 section 5).

        :raises ConnectionLost: the handshake failed, or took longer than ``tls_timeout``.
        """
        self.clear()
        self._close_watcher()
        self.write_failed = True
        self.wait_started = 0.0
        self.timeout = self.limits.tls_timeout
        self.awaiting_command = True  # stop() need not wait for this client
        try:
            # If the client is gone, this raises; the constructor below would leak the descriptor.
            self.socket.getpeername()
            # (Not context.wrap_socket: the standard library's context makes a standard socket, which blocks the hub.)
            self.socket = gevent_ssl.SSLSocket(
                sock=self.socket, server_side=True, do_handshake_on_connect=False, _context=context
            )
            self.socket.do_handshake()
            self._use(self.socket)
            self.write_failed = False
        except Expired as expired:
            raise self.fail(expired.reason) from None
        except OSError as error:
            raise self.fail("tls") from error
        finally:
            self.timeout = 0.0
            self.awaiting_command = False

    def read_proxy_header(self) -> ProxyHeader:
        """Read the header with which a proxy begins, and no byte beyond it, since a TLS handshake may follow.

        What has come is looked at first, and only as much as belongs to the header is taken from the socket.

        :raises ProxyHeaderError: it is malformed, or has not come as a whole within ``proxy_timeout``.
        :raises ConnectionLost: the proxy is gone and has sent nothing, or the server drops the connection.
        """
        native = getattr(self.socket, "_sock", self.socket)
        parser = ProxyHeaderParser()
        received = 0
        self.wait_started = 0.0
        self.timeout = self.limits.proxy_timeout  # for all of it
        self.awaiting_command = True  # stop() need not wait for this client
        try:
            while True:
                self._wait_until_readable()
                try:
                    data = native.recv(MAX_HEADER, MSG_PEEK)
                except BlockingIOError:
                    continue
                if not data:
                    raise ConnectionAbortedError
                header = parser.feed(data)
                received += len(data)
                self._drop(native, len(data) - len(parser.rest))
                if header is not None:
                    return header
        except Expired as expired:
            if expired.reason != "timeout":
                raise self.fail(expired.reason) from None
            raise ProxyHeaderError(
                f"no PROXY header within {self.limits.proxy_timeout:g} s, but {received} bytes; a host that is no "
                "proxy must not be in proxy_from"
            ) from None
        except OSError as error:
            if received:
                raise ProxyHeaderError(f"the connection ended after {received} bytes of a PROXY header") from error
            raise self.fail("closed") from error
        finally:
            self.timeout = 0.0
            self.awaiting_command = False

    def _wait_until_readable(self) -> None:
        self._watcher.start(self._wake)
        try:
            self._hub.switch()
        finally:
            self._watcher.stop()

    @staticmethod
    def _drop(native: Any, size: int) -> None:
        """Take bytes that have come from the socket."""
        while size:
            size -= len(native.recv(size))

    def send_at_once(self, reply: bytes) -> None:
        """Send the pending replies and a last one, as far as possible without waiting. In the hub."""
        if self.write_failed:
            return
        self.write_failed = True
        data = b"".join((*self._out, reply))
        self._out.clear()
        try:
            if self._pending is None:
                self._send_some(data)
            else:
                self.socket._sslobj.write(data)  # (the socket's own ``send`` waits)
                self._notify_close()
        except (OSError, AttributeError):
            pass  # the send buffer is full, or the client is gone
        try:
            # Whatever the handler still does, nothing may follow: a client would take a later reply for one that was
            # dropped here. (The TLS socket's own shutdown would drop TLS.)
            getattr(self.socket, "_sock", self.socket).shutdown(SHUT_WR)
        except OSError:
            pass  # the client is gone

    def close(self, *, linger: bool) -> None:
        """Send the pending replies, and close.

        :param linger: the client may still be sending; read for a while, so that the last reply reaches it.
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
            if self.close_error is not None:
                # A fresh one, without the traceback, whose frames refer to this object: that would be a cycle.
                self.close_error = ConnectionLost(self.close_error.reason)

    def abandon(self) -> None:
        """Close at once, while the greenlet is busy elsewhere. In the hub.

        If it comes back, it finds no more commands, and the next use raises ConnectionLost.
        """
        self.greenlet = self._wake = None
        self.write_failed = True
        self.clear()
        self._out[:] = [b""]  # ``_send`` is called before any wait, and raises, since the socket is closed
        self._close_watcher()
        self.socket.close()

    def _notify_close(self) -> None:
        """Send a TLS close_notify (RFC 8446 section 6.1) without waiting for the client's."""
        try:
            self.socket._sslobj.shutdown()
        except (OSError, AttributeError):
            pass  # sent, and the client's own has not come; or the client is gone

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
