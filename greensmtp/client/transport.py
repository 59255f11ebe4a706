"""The client's side of a connection: send bytes, read replies, with a deadline for every wait; TLS.

Rules of this file:

- One greenlet at a time uses a transport, in the native thread and the process that made it. ``close`` alone may be
  called from elsewhere.
- Every wait runs between ``self._timer.set`` and ``self._timer.clear``. The timer throws DeadlineExpired into the
  greenlet.
- Any error closes the transport: after a partial command or reply there is no way back into step with the server.
  ``_fail`` does that, and translates what was raised into the public error.
- A timeout of the caller's own (``gevent.Timeout``) closes the transport too, but is raised unchanged.
- A reply may only follow a command. Before bytes are sent, the reader must be empty: an unsolicited reply would be
  taken for the reply to the next command. ``check_no_pending_reply`` also looks at the socket.
- ``message_sent`` is True from the moment when the kernel has taken the last byte of a message until its reply is read.
  An error in that window has ``safe_to_retry`` False, since the server may have accepted the message.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from select import POLLIN
from typing import Any
from weakref import WeakSet

from gevent import get_hub, getcurrent
from gevent import ssl as gevent_ssl
from gevent.socket import socket as Socket
from gevent.socket import wait_read

from greensmtp._native import native
from greensmtp.client.deadlines import DeadlineExpired, DeadlineTimer, in_use_error, is_callers_timeout
from greensmtp.errors import ClientError, Disconnected, PeerProtocolError, TLSFailed, TLSUnverified
from greensmtp.protocol.errors import ReplySyntaxError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import ReplyParser

#: Bytes read from the socket at once; enough for the replies to a group of commands.
RECV_BYTES = 16 * 1024
#: Bytes of a body that are passed to the socket at once; ``Timeouts.data`` applies to each such piece.
SEND_BYTES = 256 * 1024
#: Replies that are searched for the reason why the server closed the connection.
MAX_FINAL_REPLIES = 64
#: Seconds within which a server that announces the end of the connection closes it.
CLOSE_AFTER_REFUSAL_SECONDS = 0.1

#: ``close_reason`` of an inherited connection in a child process.
_FORKED = "a fork"

# The unpatched poll: in a monkey-patched process, gevent's would let other greenlets run.
poll = native("select", "poll")


class ClientTransport:
    """One connected socket, and the parser of the server's replies. Any error closes it."""

    __slots__ = (
        "__weakref__",
        "_hub",
        "_poll",
        "_reader",
        "_timer",
        "_watcher",
        "close_reason",
        "message_sent",
        "socket",
        "tls",
    )

    def __init__(self, socket: Socket) -> None:
        """
        :param socket: a connected gevent socket, or gevent SSLSocket; the transport closes it.
        """
        # The socket's own timeout, which its creator or the process may have set, would hide which wait took too long.
        socket.settimeout(None)
        self.socket: Any = socket
        self.tls = isinstance(socket, gevent_ssl.SSLSocket)
        self._hub = get_hub()
        self._timer = DeadlineTimer(self._hub)
        self._reader = ReplyParser()
        self._poll = poll()
        self._poll.register(socket.fileno(), POLLIN)
        self._watcher: Any = None if self.tls else self._hub.loop.io(socket.fileno(), 1)
        #: True if a whole message was sent, and its reply has not been read.
        self.message_sent = False
        #: Why the connection was closed; None while it is open. (A text: an error would keep its frames alive.)
        self.close_reason: str | None = None
        _transports.add(self)

    @property
    def closed(self) -> bool:
        """True if the connection cannot be used any more."""
        return self.close_reason is not None

    # Sending

    def send(self, data: bytes, seconds: float) -> None:
        """Send bytes.

        :param seconds: the timeout for each piece of up to 256 KiB.
        :raises Disconnected: the server is gone, or does not take the bytes in time.
        :raises PeerProtocolError: the server has sent an unsolicited reply.
        """
        self._check_open()
        timer = self._timer
        timer.set(seconds)
        try:
            if self._reader.pending:
                raise self._unsolicited()
            sent = self.socket.send(data[:SEND_BYTES] if len(data) > SEND_BYTES else data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], seconds)
        except BaseException as error:
            failure = self._fail(error, sending=True)
            if failure is error:
                raise
            raise failure from (error if isinstance(error, OSError) else None)
        finally:
            timer.clear()

    def _send_rest(self, view: memoryview, seconds: float) -> None:
        while view:
            left = SEND_BYTES
            while left > 0 and view:
                sent = self.socket.send(view[:left])
                view = view[sent:]
                left -= sent
            self._timer.clear()
            self._timer.set(seconds)

    # Receiving

    def read_reply(self, seconds: float) -> Reply:
        """Return the next reply.

        :param seconds: the timeout for the whole reply.
        :raises Disconnected: the server is gone, or timed out.
        :raises PeerProtocolError: what it sent is not a reply.
        """
        return self.send_and_receive(b"", 1, seconds, seconds)[0]

    def send_and_receive(
        self,
        data: bytes,
        count: int,
        seconds: float,
        last_seconds: float,
        *,
        ends_message: float | None = None,
        while_waiting: Callable[[], object] | None = None,
    ) -> list[Reply]:
        """Send bytes, and return the replies to them: ``count``, or fewer if the last one is 421.

        :param seconds: the timeout for sending, and for each reply but the last.
        :param last_seconds: the timeout for the last reply.
        :param ends_message: seconds for sending, where the bytes are the end of a message. Once they are sent,
            ``message_sent`` is True.
        :param while_waiting: called after the bytes are sent, while the server works.
        :raises Disconnected: the server is gone, or timed out; its ``replies`` are those that were read.
        :raises PeerProtocolError: what it sent is not a reply, or was sent before the command.
        """
        if self.close_reason is not None:
            self._check_open()
        reader, watcher, timer = self._reader, self._watcher, self._timer
        replies: list[Reply] = []
        timer.set(ends_message or seconds)
        try:
            if data:
                if reader.pending:
                    raise self._unsolicited()
                # Usually the kernel takes all of it at once.
                sent = self.socket.send(data[:SEND_BYTES] if len(data) > SEND_BYTES else data)
                if sent < len(data):
                    self._send_rest(memoryview(data)[sent:], ends_message or seconds)
                if ends_message:
                    # Until the kernel has taken the last byte, the server cannot have the whole message.
                    self.message_sent = True
                    timer.extend(seconds)
                if while_waiting is not None:
                    while_waiting()
            elif reader.pending:
                replies = reader.next_replies(count)
            left = count - len(replies)
            while left and not (replies and replies[-1].code == 421):
                if left == 1 or replies:
                    timer.extend(seconds if left > 1 else last_seconds)
                while True:
                    # On a plain socket, wait before recv, since usually nothing has arrived yet. With TLS, try recv
                    # first: the SSL object may hold bytes that the socket no longer has.
                    if watcher is not None:
                        self._hub.wait(watcher)
                    data_in = self.socket.recv(RECV_BYTES)
                    if not data_in:
                        raise Disconnected("closed")
                    reader.feed(data_in)
                    more = reader.next_replies(left)
                    if more:
                        break
                replies += more
                left -= len(more)
        except BaseException as error:
            failure = self._fail(error, sending=True)
            if isinstance(failure, Disconnected) and replies:
                failure.replies = tuple(replies)
                failure.reply = failure.reply or replies[-1]
            if failure is error:
                raise
            raise failure from (error if isinstance(error, OSError) else None)
        finally:
            timer.clear()
        return replies

    def check_no_pending_reply(self) -> None:
        """Check that the server has sent nothing unsolicited. Call this before a command, when all have been answered.

        :raises Disconnected: the server closed the connection, perhaps after a 421, which is the error's ``reply``.
        :raises PeerProtocolError: the server sent something else, which would be taken for the reply to the command.
        :raises RuntimeError: another greenlet is waiting for a reply; or this is not the native thread, or not the
            process, that made the connection.
        """
        if self.close_reason is not None:
            self._check_open()
        if self._timer.greenlet is not None or get_hub() is not self._hub:
            raise in_use_error(self._hub)
        if not self._reader.pending:
            if not self._poll.poll(0):
                return
            data = self._recv_now()
            if data is None:
                return
            if not data:
                raise self._fail(Disconnected("closed"))
            self._reader.feed(data)
        raise self._fail(self._unsolicited(idle=True))

    def _unsolicited(self, *, idle: bool = False) -> ClientError:
        """Return the error for bytes that arrived without a command."""
        try:
            reply = self._reader.next_reply()
        except ReplySyntaxError as error:
            return PeerProtocolError(str(error))
        # 421 may come at any time (RFC 5321 section 3.8). Some servers send 451 or 554 to an idle client before they
        # close the connection.
        if reply is not None and (reply.code == 421 or (idle and reply.code >= 400 and self._closes_now())):
            return Disconnected("closed", reply=reply)
        return PeerProtocolError(f"unsolicited reply: {'part of a line' if reply is None else reply}")

    def _closes_now(self) -> bool:
        """True if the server sends nothing else, and closes the connection now or within a moment."""
        if self._reader.pending:
            return False
        try:
            data = self._recv_now()
            if data is None:
                wait_read(self.socket.fileno(), CLOSE_AFTER_REFUSAL_SECONDS)
                data = self._recv_now()
            return data == b""
        except TimeoutError:
            return False
        except Disconnected:
            return True  # by a reset

    def _recv_now(self) -> bytes | None:
        """Return what has arrived, without waiting; None for nothing.

        (With TLS, a readable socket may have no data: session tickets are records of the handshake.)
        """
        self.socket.settimeout(0.0)
        try:
            data: bytes = self.socket.recv(RECV_BYTES)
            return data
        except (BlockingIOError, ssl.SSLWantReadError, TimeoutError):
            return None
        except OSError as error:
            raise self._fail(error) from error
        finally:
            self.socket.settimeout(None)

    # TLS

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None, seconds: float) -> None:
        """Do the TLS handshake.

        :raises TLSUnverified: the certificate does not verify in this context.
        :raises TLSFailed: the handshake failed otherwise, or timed out.
        :raises PeerProtocolError: plaintext arrived before the handshake (CVE-2011-0411).
        """
        self._check_open()
        if self._reader.pending:
            raise self._fail(PeerProtocolError("plaintext after the reply to STARTTLS"))
        self._close_watcher()
        self._timer.set(seconds)
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
        except OSError as error:
            if is_callers_timeout(error):
                self.close(error)
                raise
            raise self._fail(TLSFailed(f"the TLS handshake failed: {error}")) from error
        except BaseException as error:
            self.close(error)
            raise
        finally:
            self._timer.clear()
        self.tls = True
        self._reader = ReplyParser()

    def with_deadline(self, seconds: float, call: Callable[[], object]) -> bool:
        """Call a function that waits; return False if it timed out, after closing the transport."""
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
        # The text of an error that is not greensmtp's may have secrets in it, so only its type is kept.
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
        except Exception:  # that thread has destroyed its hub, so nothing can run there
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

        This is for a process or thread in which the connection's hub does not run. A greenlet that was waiting when
        the process was forked gets RuntimeError in the child.
        """
        if self.close_reason is not None:
            return
        self.close_reason = why
        try:
            os.close(self._detach())
            waiting = self._timer.greenlet
            if waiting is not None:
                self._hub.loop.run_callback(self._timer.interrupt, waiting, _forked())
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
            raise _forked()
        if self.close_reason is not None:
            error = Disconnected("closed")
            error.add_note(f"This connection was closed before, by {self.close_reason}")
            raise error

    def _fail(self, error: BaseException, *, sending: bool = False) -> BaseException:
        """Close the transport, and return the error to raise."""
        if self.close_reason == _FORKED:
            return _forked()
        if isinstance(error, DeadlineExpired):
            error = Disconnected("timeout")
        elif isinstance(error, ReplySyntaxError):
            error = PeerProtocolError(str(error))
        elif isinstance(error, OSError) and not isinstance(error, ClientError) and not is_callers_timeout(error):
            # A server may refuse in the middle of a body and close the connection: its reply says more than the reset.
            error = Disconnected("reset", reply=self._final_reply() if sending else None)
        if isinstance(error, (Disconnected, PeerProtocolError)):
            error.after_content = self.message_sent
            error.safe_to_retry = not self.message_sent
        self.close(error)
        return error

    def _final_reply(self) -> Reply | None:
        """Return the reply that explains why the server closed the connection, where there is one."""
        try:
            self.socket.settimeout(0.0)
            self._reader.feed(self.socket.recv(RECV_BYTES))
            replies = self._reader.next_replies(MAX_FINAL_REPLIES)
            return next((reply for reply in replies if reply.code >= 400), replies[-1] if replies else None)
        except (OSError, ReplySyntaxError):
            return None

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None


#: Every transport of this process.
_transports: WeakSet[ClientTransport] = WeakSet()


def _forked() -> RuntimeError:
    return RuntimeError("this connection belongs to the parent process: connect() in the child, or use a Pool")


def _abandon_in_child() -> None:
    # If the child kept them, it would hold the parent's connections open, and two processes would write to each.
    for transport in list(_transports):
        transport.abandon(_FORKED)


os.register_at_fork(after_in_child=_abandon_in_child)
