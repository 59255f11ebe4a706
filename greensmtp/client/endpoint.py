"""One connected socket: its deadline, TLS, and all ways to close it.

- One greenlet at a time uses it, in the native thread and the process that created it. Only ``close`` may be called
  from elsewhere.
- Every wait runs between ``self._timer.set`` and ``self._timer.clear``. The timer throws DeadlineExpired into the
  greenlet.
- A child process must not use the connections of its parent, and must not hold them open. So it closes their
  descriptors right after the fork (``_abandon_in_child``).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from gevent import get_hub, getcurrent
from gevent import ssl as gevent_ssl
from gevent.socket import socket as Socket

from greensmtp.client.deadlines import DeadlineExpired, DeadlineTimer, is_callers_timeout
from greensmtp.client.thread_end import endpoints_of_this_thread
from greensmtp.errors import ClientError, Disconnected, TLSFailed, TLSUnverified

#: ``close_reason`` of an inherited connection in a child process.
_FORKED = "a fork"


class ClientEndpoint:
    """The base of ``ClientTransport``."""

    __slots__ = ("__weakref__", "_hub", "_timer", "_watcher", "close_reason", "socket", "tls")

    def __init__(self, socket: Socket) -> None:
        # The socket's own timeout, which its creator or the process may have set, would hide which wait took too long.
        socket.settimeout(None)
        self.socket: Any = socket
        self.tls = isinstance(socket, gevent_ssl.SSLSocket)
        self._hub = get_hub()
        self._timer = DeadlineTimer(self._hub)
        #: Waits until a plain socket is readable; None with TLS.
        self._watcher: Any = None if self.tls else self._hub.loop.io(socket.fileno(), 1)
        #: Why the connection was closed; None while it is open. (A text: an error would keep its frames alive.)
        self.close_reason: str | None = None
        _endpoints.add(self)
        endpoints_of_this_thread().add(self)

    @property
    def closed(self) -> bool:
        """True if the connection cannot be used any more."""
        return self.close_reason is not None

    def with_deadline(self, seconds: float, call: Callable[[], object]) -> bool:
        """Call a function that waits; return False if it timed out. A timeout or an error closes the connection."""
        self._timer.set(seconds)
        try:
            call()
        except DeadlineExpired as error:
            self.close(error)
            return False
        except BaseException as error:
            self.close(error)
            raise
        finally:
            self._timer.clear()
        return True

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None, seconds: float) -> None:
        """Do the TLS handshake.

        :raises TLSUnverified: the certificate does not verify in this context.
        :raises TLSFailed: the handshake failed otherwise, or timed out.
        """
        self._check_open()
        self._timer.set(seconds)
        self._close_watcher()
        try:
            # Not context.wrap_socket: the standard library's context would make the standard library's SSLSocket, which
            # blocks the hub.
            self.socket = gevent_ssl.SSLSocket(
                sock=self.socket,
                server_side=False,
                do_handshake_on_connect=False,
                server_hostname=server_hostname,
                _context=context,
            )
            self.socket.do_handshake()
        except ssl.SSLCertVerificationError as error:
            text = f"the certificate of {server_hostname or 'the peer'} does not verify: {error.verify_message}"
            raise self._fail(TLSUnverified(text)) from error
        except DeadlineExpired:
            raise self._fail(TLSFailed(f"the TLS handshake timed out after {seconds:g} s")) from None
        except BaseException as error:
            if not isinstance(error, OSError) or is_callers_timeout(error):
                self.close(error)
                raise
            if getattr(error, "reason", None) == "WRONG_VERSION_NUMBER":  # what OpenSSL makes of a plain text
                text = "the server does not speak TLS at this port from the first byte: use STARTTLS, without tls=True"
                raise self._fail(TLSFailed(f"the TLS handshake failed: {text} (smtp://, not smtps://)")) from error
            raise self._fail(TLSFailed(f"the TLS handshake failed: {error}")) from error
        finally:
            self._timer.clear()
        self.tls = True

    # Closing

    def close(self, why: BaseException | None = None) -> None:
        """Close the connection. Closing twice is harmless. A greenlet that waits for the server gets Disconnected.

        In a native thread other than the connection's own, this only asks that thread to close it.

        :param why: the error that ended the connection.
        """
        if self.close_reason is not None:
            return
        if get_hub() is not self._hub:
            self._close_in_own_thread()
            return
        # The text of a foreign error may contain secrets, so only its type is kept.
        self.close_reason = (
            str(why) if isinstance(why, ClientError) else "close()" if why is None else type(why).__name__
        )
        waiting = self._timer.greenlet
        if waiting is not None and waiting is not getcurrent():
            self._hub.loop.run_callback(self._timer.interrupt, waiting)
        elif self.tls:
            self._send_close_notify()
        self._timer.close()
        self._close_watcher()
        self.socket.close()

    def _close_in_own_thread(self) -> None:
        loop = self._hub.loop
        try:
            loop.run_callback_threadsafe(self.close)
        except Exception:  # that thread has destroyed its hub, so no callback can run there
            self.abandon("close()")

    def _send_close_notify(self) -> None:
        """Send close_notify (RFC 8446 section 6.1), if the kernel takes it at once; do not wait for the answer."""
        try:
            self.socket.settimeout(0.0)
            self.socket.unwrap()
        except (OSError, ValueError):
            pass

    def abandon(self, why: str) -> None:
        """Close the descriptor without sending anything.

        Call this in a process or thread in which the connection's hub does not run. A greenlet that was waiting when
        the process was forked gets RuntimeError in the child.
        """
        if self.close_reason is not None:
            return
        self.close_reason = why
        try:
            os.close(self._detach())
            waiting = self._timer.greenlet
            if waiting is not None:
                self._hub.loop.run_callback(self._timer.interrupt, waiting, forked_error())
            self._timer.close()
            self._close_watcher()
        except Exception:  # the hub has been destroyed, and its watchers with it
            pass

    def _detach(self) -> int:
        try:
            return int(self.socket.detach())
        except Exception:  # the hub has been destroyed; gevent's socket needs it to cancel its watchers
            return int(self.socket._sock.detach())

    def _check_open(self) -> None:
        if self.close_reason == _FORKED:
            raise forked_error()
        if self.close_reason is not None:
            error = Disconnected("closed")
            error.add_note(f"This connection was closed before, by {self.close_reason}")
            raise error

    def _fail(self, error: BaseException) -> BaseException:
        """Close the connection, and return the error to raise."""
        if self.close_reason == _FORKED:
            return forked_error()
        self.close(error)
        return error

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None


#: Every connection of this process.
_endpoints: WeakSet[ClientEndpoint] = WeakSet()


def forked_error() -> RuntimeError:
    """Return the error for a connection of the parent process."""
    return RuntimeError("this connection belongs to the parent process: connect() in the child, or use a Pool")


def _abandon_in_child() -> None:
    # If the child kept them, it would hold the parent's connections open, and two processes would write to each.
    for endpoint in list(_endpoints):
        endpoint.abandon(_FORKED)


os.register_at_fork(after_in_child=_abandon_in_child)
