"""The client's end of the wire: octets out, replies in, a deadline for every wait, TLS."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from select import POLLIN
from typing import Any
from weakref import WeakSet

from gevent import get_hub, getcurrent
from gevent import ssl as gevent_ssl
from gevent.socket import wait_read

from greensmtp._native import native
from greensmtp.client.deadlines import Alarm, Expired, in_use, is_foreign
from greensmtp.errors import ClientError, Disconnected, PeerProtocolError, TLSFailed, TLSUnverified
from greensmtp.protocol.errors import ReplySyntaxError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import ReplyParser

#: Octets taken off the socket at once: the replies to a batch of commands, and more.
PIECE = 16 * 1024
#: Octets of a body that are handed to the socket at once, and have ``Timeouts.data`` to go.
SEND_PIECE = 256 * 1024
#: Replies that are looked at for the reason why a peer has hung up on us.
MAX_LAST_WORDS = 64
#: Seconds in which a peer that says good-bye hangs up, too.
GOODBYE_CLOSES_WITHIN = 0.1

#: What has close_reason a connection in a child process, which has inherited it.
_FORKED = "a fork"

# gevent's poll, in a patched process, would let other greenlets run where nothing is waited for.
poll = native("select", "poll")


class ClientTransport:
    """One connected socket, used by one greenlet at a time. Whatever goes wrong closes it: there is no way back into
    step with a peer that was cut off in the middle of something."""

    __slots__ = (
        "__weakref__",
        "_alarm",
        "_hub",
        "_poll",
        "_reader",
        "_watcher",
        "close_reason",
        "message_sent",
        "socket",
        "tls",
    )

    def __init__(self, socket: Any) -> None:
        """
        :param socket: a connected gevent socket, or gevent SSLSocket; from now on it is ours to close.
        """
        # No time-outs of the socket's own, which its maker or the process may have set: ours tell a program more.
        socket.settimeout(None)
        self.socket = socket
        self.tls = isinstance(socket, gevent_ssl.SSLSocket)
        self._hub = get_hub()
        self._alarm = Alarm(self._hub)
        self._reader = ReplyParser()
        self._poll = poll()
        self._poll.register(socket.fileno(), POLLIN)
        self._watcher: Any = None if self.tls else self._hub.loop.io(socket.fileno(), 1)
        #: A whole message has gone out, and its reply has not come.
        self.message_sent = False
        #: What has ended the connection. (Its text: the error itself would hold on to all that its frames hold.)
        self.close_reason: str | None = None
        _wires.add(self)

    @property
    def closed(self) -> bool:
        """It cannot be used any more."""
        return self.close_reason is not None

    # Out

    def send(self, data: bytes, seconds: float) -> None:
        """Send octets: each piece, of up to 256 KiB, within so many seconds.

        :raises Disconnected: the peer is gone, or does not take them in time.
        :raises PeerProtocolError: it has said something unasked.
        """
        self._check_open()
        alarm = self._alarm
        alarm.set(seconds)
        try:
            if self._reader.pending:
                raise self._unasked()
            sent = self.socket.send(data[:SEND_PIECE] if len(data) > SEND_PIECE else data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], seconds)
        except BaseException as error:
            failure = self._fail(error, sending=True)
            if failure is error:
                raise
            raise failure from (error if isinstance(error, OSError) else None)
        finally:
            alarm.clear()

    def _send_rest(self, view: memoryview, seconds: float) -> None:
        while view:
            left = SEND_PIECE
            while left > 0 and view:
                sent = self.socket.send(view[:left])
                view = view[sent:]
                left -= sent
            self._alarm.clear()
            self._alarm.set(seconds)

    # In

    def reply(self, seconds: float) -> Reply:
        """The next reply, all of which must have come within so many seconds.

        :raises Disconnected: the peer is gone, or late.
        :raises PeerProtocolError: what came is no reply.
        """
        return self.exchange(b"", 1, seconds, seconds)[0]

    def exchange(
        self,
        data: bytes,
        count: int,
        seconds: float,
        last_seconds: float,
        *,
        ends_message: float | None = None,
        while_waiting: Callable[[], object] | None = None,
    ) -> list[Reply]:
        """Send octets, and read so many replies; fewer where one of them is a 421, behind which nothing comes.

        :param seconds: for the octets, and for each reply; ``last_seconds`` for the last of them.
        :param ends_message: the octets are the end of a message, and have so many seconds to go, without which the
            peer cannot have it (see ``message_sent``).
        :param while_waiting: work to be done while the peer does its own.
        :raises Disconnected: the peer is gone, or late; its ``replies`` are those that came.
        :raises PeerProtocolError: what came is no reply, or came before the octets went.
        """
        if self.close_reason is not None:
            self._check_open()
        reader, watcher, alarm = self._reader, self._watcher, self._alarm
        replies: list[Reply] = []
        alarm.set(ends_message or seconds)
        try:
            if data:
                if reader.pending:
                    raise self._unasked()
                # Nearly always all of it goes at once.
                sent = self.socket.send(data[:SEND_PIECE] if len(data) > SEND_PIECE else data)
                if sent < len(data):
                    self._send_rest(memoryview(data)[sent:], ends_message or seconds)
                if ends_message:
                    # Not before: what the kernel has not taken to its last octet, the peer cannot take for whole.
                    self.message_sent = True
                    alarm.extend(seconds)
                if while_waiting is not None:
                    while_waiting()
            elif reader.pending:
                replies = reader.next_replies(count)
            left = count - len(replies)
            while left and not (replies and replies[-1].code == 421):
                if left == 1 or replies:
                    alarm.extend(seconds if left > 1 else last_seconds)
                while True:
                    # A plain socket is waited for before it is tried, since nearly always there is nothing yet; TLS
                    # may hold what the socket no longer has, and is tried first.
                    if watcher is not None:
                        self._hub.wait(watcher)
                    octets = self.socket.recv(PIECE)
                    if not octets:
                        raise Disconnected("closed")
                    reader.feed(octets)
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
            alarm.clear()
        return replies

    def check_silence(self) -> None:
        """Nothing has been said that was not asked for. To be called before a command, when all have been answered.

        :raises Disconnected: the peer has hung up, perhaps with a 421, which is the error's ``reply``.
        :raises PeerProtocolError: it has said something else: it would pass for the reply to the command.
        :raises RuntimeError: another greenlet waits for a reply, which would pass for a reply unasked; or this is not
            the native thread, or not the process, that has made the connection.
        """
        if self.close_reason is not None:
            self._check_open()
        if self._alarm.greenlet is not None or get_hub() is not self._hub:
            raise in_use(self._hub)
        if not self._reader.pending:
            if not self._poll.poll(0):
                return
            data = self._recv_now()
            if data is None:
                return
            if not data:
                raise self._fail(Disconnected("closed"))
            self._reader.feed(data)
        raise self._fail(self._unasked(idle=True))

    def _unasked(self, *, idle: bool = False) -> ClientError:
        try:
            reply = self._reader.next_reply()
        except ReplySyntaxError as error:
            return PeerProtocolError(str(error))
        # 421 is the one reply that may come at any time (RFC 5321 section 3.8). But there are servers that say 451 or
        # 554 to an idle client before they hang up.
        if reply is not None and (reply.code == 421 or (idle and reply.code >= 400 and self._hangs_up())):
            return Disconnected("closed", reply=reply)
        return PeerProtocolError(f"a reply that nothing was said to: {'half a line' if reply is None else reply}")

    def _hangs_up(self) -> bool:
        """The peer says nothing else, and closes the connection, now or in a moment."""
        if self._reader.pending:
            return False
        try:
            data = self._recv_now()
            if data is None:
                wait_read(self.socket.fileno(), GOODBYE_CLOSES_WITHIN)
                data = self._recv_now()
            return data == b""
        except TimeoutError:
            return False
        except Disconnected:
            return True  # with a reset

    def _recv_now(self) -> bytes | None:
        """What has come; None: nothing. (In TLS, records that are the handshake's own make a socket readable.)"""
        self.socket.settimeout(0.0)
        try:
            data: bytes = self.socket.recv(PIECE)
            return data
        except (BlockingIOError, ssl.SSLWantReadError, TimeoutError):
            return None
        except OSError as error:
            raise self._fail(error) from error
        finally:
            self.socket.settimeout(None)

    # TLS

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None, seconds: float) -> None:
        """Shake hands.

        :raises TLSUnverified: the certificate is not good enough for this context.
        :raises TLSFailed: the handshake failed otherwise, or took too long.
        :raises PeerProtocolError: text stands before the handshake (CVE-2011-0411).
        """
        self._check_open()
        if self._reader.pending:
            raise self._fail(PeerProtocolError("text behind the reply to STARTTLS, in the clear"))
        self._close_watcher()
        self._alarm.set(seconds)
        try:
            # (The constructor rather than context.wrap_socket: a context of the standard library's would make a
            # socket of the standard library's, which blocks the hub.)
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
        except Expired:
            raise self._fail(TLSFailed(f"the TLS handshake took more than {seconds:g} s")) from None
        except OSError as error:
            if is_foreign(error):
                self.close(error)
                raise
            raise self._fail(TLSFailed(f"the TLS handshake failed: {error}")) from error
        except BaseException as error:
            self.close(error)
            raise
        finally:
            self._alarm.clear()
        self.tls = True
        self._reader = ReplyParser()

    def with_deadline(self, seconds: float, call: Callable[[], object]) -> bool:
        """Call something that waits, for so long at most; False: it took longer, and the wire has been closed."""
        self._alarm.set(seconds)
        try:
            call()
        except Expired as error:
            self.close(error)
            return False
        except BaseException as error:
            self.close(error)
            raise
        finally:
            self._alarm.clear()
        return True

    # The end

    def close(self, why: BaseException | None = None) -> None:
        """Hang up; closing twice is fine. A greenlet that waits for the peer gets Disconnected.

        In another native thread than the connection's own, this only asks that thread to do so.
        """
        if self.close_reason is not None:
            return
        if get_hub() is not self._hub:
            self._close_elsewhere()
            return
        # (What is not ours may say what it should not.)
        self.close_reason = (
            str(why) if isinstance(why, ClientError) else "close()" if why is None else type(why).__name__
        )
        waiting = self._alarm.greenlet
        if waiting is not None and waiting is not getcurrent():
            self._hub.loop.run_callback(self._alarm.interrupt, waiting)
        elif self.tls:
            self._say_close_notify()
        self._alarm.close()
        self._close_watcher()
        self.socket.close()

    def _close_elsewhere(self) -> None:
        loop = self._hub.loop
        try:
            loop.run_callback_threadsafe(self.close)
        except Exception:  # that thread has destroyed its hub: nothing can run there any more
            self.abandon("close()")

    def _say_close_notify(self) -> None:
        """RFC 8446 section 6.1. What the kernel does not take at once is not sent, and no answer is waited for."""
        try:
            self.socket.settimeout(0.0)
            self.socket.unwrap()
        except (OSError, ValueError):
            pass

    def abandon(self, why: str) -> None:
        """Close the descriptor, and say nothing to the peer. For a process or a thread in which the connection's hub
        does not run; a greenlet that has been copied into this process while it waited gets RuntimeError."""
        if self.close_reason is not None:
            return
        self.close_reason = why
        try:
            os.close(self._detach())
            waiting = self._alarm.greenlet
            if waiting is not None:
                self._hub.loop.run_callback(self._alarm.interrupt, waiting, _forked())
            self._alarm.close()
            self._close_watcher()
        except Exception:  # the hub has been destroyed, and its watchers with it
            pass

    def _detach(self) -> int:
        try:
            return int(self.socket.detach())
        except Exception:  # the hub has been destroyed; gevent's socket wants it to cancel its watchers
            return int(self.socket._sock.detach())

    def _check_open(self) -> None:
        if self.close_reason == _FORKED:
            raise _forked()
        if self.close_reason is not None:
            error = Disconnected("closed")
            error.add_note(f"This connection ended before, with {self.close_reason}")
            raise error

    def _fail(self, error: BaseException, *, sending: bool = False) -> BaseException:
        """Close, and give what is to be raised."""
        if self.close_reason == _FORKED:
            return _forked()
        if isinstance(error, Expired):
            error = Disconnected("timeout")
        elif isinstance(error, ReplySyntaxError):
            error = PeerProtocolError(str(error))
        elif isinstance(error, OSError) and not isinstance(error, ClientError) and not is_foreign(error):
            # A server that refuses in the middle of a body may say so and hang up: its reply says more than the reset.
            error = Disconnected("reset", reply=self._last_words() if sending else None)
        if isinstance(error, (Disconnected, PeerProtocolError)):
            error.after_content = self.message_sent
            error.safe_to_retry = not self.message_sent
        self.close(error)
        return error

    def _last_words(self) -> Reply | None:
        try:
            self.socket.settimeout(0.0)
            self._reader.feed(self.socket.recv(PIECE))
            replies = self._reader.next_replies(MAX_LAST_WORDS)
            return next((reply for reply in replies if reply.code >= 400), replies[-1] if replies else None)
        except (OSError, ReplySyntaxError):
            return None

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None


#: Every connection of this process.
_wires: WeakSet[ClientTransport] = WeakSet()


def _forked() -> RuntimeError:
    return RuntimeError("this connection belongs to the process that was forked: connect() in the child, or use a Pool")


def _let_go_in_child() -> None:
    # A child that kept them would hold the parent's connections open, and two processes would speak on each.
    for wire in list(_wires):
        wire.abandon(_FORKED)


os.register_at_fork(after_in_child=_let_go_in_child)
