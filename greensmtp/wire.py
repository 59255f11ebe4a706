"""The client's end of the wire: octets out, replies in, a deadline for every wait, TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf
from select import POLLIN, poll
from time import monotonic
from typing import Any, TypeVar

from gevent import get_hub, getcurrent
from gevent import ssl as gevent_ssl

from greensmtp.errors import ClientError, Disconnected, PeerProtocolError, TLSFailed, TLSUnverified
from greensmtp.protocol.replies import Reply
from greensmtp.protocol.reply_reader import ReplyReader

T = TypeVar("T")

#: Octets taken off the socket at once: the replies to a batch of commands, and more.
PIECE = 16 * 1024
#: Octets of a body that are handed to the socket at once, and have ``Timeouts.data`` to go.
SEND_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the peer may take, in seconds; the defaults are those of RFC 5321 section 4.5.3.2."""

    #: Name look-up and TCP handshake, for all of a host's addresses together. (Not in RFC 5321.)
    connect: float = 60.0
    #: The TLS handshake. (Not in RFC 5321.)
    tls: float = 60.0
    #: The banner, once connected.
    banner: float = 300.0
    #: The reply to a command, as a whole, and to a group of them each.
    command: float = 300.0
    #: The reply to DATA.
    data_start: float = 120.0
    #: Each piece of the body, of up to 256 KiB.
    data: float = 180.0
    #: The reply to the whole message.
    final: float = 600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
                raise ValueError(f"timeouts: {field.name} is seconds, more than 0, not {seconds!r}")

    @classmethod
    def of(cls, timeout: float | Timeouts | None) -> Timeouts:
        """A number is for every wait alike; None stands for the defaults.

        :raises ValueError: it is not more than 0.
        """
        if timeout is None:
            return cls()
        if isinstance(timeout, Timeouts):
            return timeout
        return cls(**{field.name: timeout for field in fields(cls)})


class _Expired(BaseException):
    """Thrown, from the hub, into the greenlet that waits. Not an Exception: nothing on its way may swallow it."""


class _Alarm:
    """A deadline that costs the assignment of a number.

    Its one timer is not moved with the deadline: when it rings too early it is set again, and when nothing is
    waited for it stays silent. So a timer is started once in a time-out, not once in a wait.
    """

    __slots__ = ("_deadline", "_due", "_greenlet", "_loop", "_timer")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._deadline = inf
        self._due = inf
        self._greenlet: Any = None
        self._timer: Any = None

    def set(self, seconds: float) -> None:
        """The current greenlet is going to wait, for so long at most.

        :raises RuntimeError: another one is waiting.
        """
        if self._greenlet is not None:
            raise RuntimeError("this connection is in use by another greenlet: use one for each, or a Pool")
        self._greenlet = getcurrent()
        self._deadline = deadline = monotonic() + seconds
        if deadline < self._due:
            self._start(seconds)

    def extend(self, seconds: float) -> None:
        """Something came; the next may take so long again."""
        self._deadline = deadline = monotonic() + seconds
        if deadline < self._due:
            self._start(seconds)

    def clear(self) -> None:
        """The wait is over."""
        self._greenlet = None

    def waiting(self) -> Any:
        """The greenlet that waits, unless it is the current one."""
        return None if self._greenlet is getcurrent() else self._greenlet

    def interrupt(self, greenlet: Any) -> None:
        """End its wait, if it still waits. Only in the hub."""
        if self._greenlet is greenlet:
            greenlet.throw(Disconnected("shutdown"))

    def close(self) -> None:
        """It will not be needed any more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _start(self, seconds: float) -> None:
        self.close()
        self._due = monotonic() + seconds
        # Without a reference: a connection that nobody waits for must not keep the loop alive.
        self._timer = self._loop.timer(seconds, ref=False)
        # A loop's clock stands still while greenlets run.
        self._timer.start(self._ring, update=True)

    def _ring(self) -> None:
        self._due = inf
        greenlet = self._greenlet
        if greenlet is None:
            return
        left = self._deadline - monotonic()
        if left > 0:
            self._start(left)
        else:
            greenlet.throw(_Expired())


class Wire:
    """One connected socket, used by one greenlet at a time. Whatever goes wrong closes it: there is no way back into
    step with a peer that was cut off in the middle of something."""

    __slots__ = ("_alarm", "_hub", "_poll", "_reader", "_watcher", "committed", "error", "socket", "tls")

    def __init__(self, socket: Any) -> None:
        """
        :param socket: a connected gevent socket, or gevent SSLSocket; from now on it is ours to close.
        """
        self.socket = socket
        self.tls = isinstance(socket, gevent_ssl.SSLSocket)
        self._hub = get_hub()
        self._alarm = _Alarm(self._hub.loop)
        self._reader = ReplyReader()
        self._poll = poll()
        self._poll.register(socket.fileno(), POLLIN)
        self._watcher: Any = None if self.tls else self._hub.loop.io(socket.fileno(), 1)
        #: The end of a message may have gone out, and its reply has not come.
        self.committed = False
        #: What has ended the connection.
        self.error: BaseException | None = None

    @property
    def closed(self) -> bool:
        """It cannot be used any more."""
        return self.error is not None

    # Out

    def send(self, data: bytes, seconds: float) -> None:
        """Send octets: each piece, of up to 256 KiB, within so many seconds.

        :raises Disconnected: the peer is gone, or does not take them in time.
        """
        self._check_open()
        alarm = self._alarm
        alarm.set(seconds)
        try:
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

    def exchange(self, data: bytes, count: int, seconds: float, last_seconds: float) -> list[Reply]:
        """Send octets, and read so many replies; fewer where one of them is a 421, behind which nothing comes.

        :param seconds: for the octets, and for each reply; ``last_seconds`` for the last of them.
        :raises Disconnected: the peer is gone, or late; its ``reply`` is the last one that came, if one did.
        :raises PeerProtocolError: what came is no reply.
        """
        self._check_open()
        reader, watcher, alarm = self._reader, self._watcher, self._alarm
        replies: list[Reply] = []
        alarm.set(seconds)
        try:
            if data:
                # Nearly always all of it goes at once.
                sent = self.socket.send(data[:SEND_PIECE] if len(data) > SEND_PIECE else data)
                if sent < len(data):
                    self._send_rest(memoryview(data)[sent:], seconds)
            elif reader.pending:
                replies += reader.next_replies(count)
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
            if isinstance(failure, Disconnected) and failure.reply is None and replies:
                failure.reply = replies[-1]
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
        """
        self._check_open()
        if not self._reader.pending:
            if not self._poll.poll(0):
                return
            data = self._recv_now()
            if data is None:
                return
            if not data:
                raise self._fail(Disconnected("closed"))
            self._reader.feed(data)
        raise self._fail(self._unasked())

    def _unasked(self) -> ClientError:
        try:
            reply = self._reader.next_reply()
        except PeerProtocolError as error:
            return error
        # 421 is the one reply that may come at any time (RFC 5321 section 3.8).
        if reply is not None and reply.code == 421:
            return Disconnected("closed", reply=reply)
        return PeerProtocolError(f"a reply that nothing was said to: {'half a line' if reply is None else reply}")

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
        except _Expired:
            raise self._fail(TLSFailed(f"the TLS handshake took more than {seconds:g} s")) from None
        except OSError as error:
            raise self._fail(TLSFailed(f"the TLS handshake failed: {error}")) from error
        except BaseException as error:
            self.close(error)
            raise
        finally:
            self._alarm.clear()
        self.tls = True
        self._reader = ReplyReader()

    def timed(self, seconds: float, call: Callable[[], T]) -> T:
        """Call something that waits, for so long at most.

        :raises TimeoutError: it took longer; the wire has been closed.
        """
        self._alarm.set(seconds)
        try:
            return call()
        except BaseException as error:
            self.close(error)
            if isinstance(error, _Expired):
                raise TimeoutError(f"more than {seconds:g} s") from None
            raise
        finally:
            self._alarm.clear()

    # The end

    def close(self, error: BaseException | None = None) -> None:
        """Hang up; closing twice is fine. A greenlet that waits for the peer gets Disconnected."""
        if self.error is None:
            self.error = Disconnected("closed") if error is None else error
            waiting = self._alarm.waiting()
            if waiting is not None:
                self._hub.loop.run_callback(self._alarm.interrupt, waiting)
            self._alarm.close()
            self._close_watcher()
            self.socket.close()

    def _check_open(self) -> None:
        if self.error is not None:
            raise Disconnected("closed") from self.error

    def _fail(self, error: BaseException, *, sending: bool = False) -> BaseException:
        """Close, and give what is to be raised."""
        if isinstance(error, _Expired):
            error = Disconnected("timeout")
        elif isinstance(error, OSError) and not isinstance(error, ClientError):
            # Who refuses in the middle of a body may say so and hang up: the refusal is worth more than the reset.
            error = Disconnected("reset", reply=self._last_words() if sending else None)
        if isinstance(error, (Disconnected, PeerProtocolError)):
            error.after_content = self.committed
            error.may_retry = not self.committed
        self.close(error)
        return error

    def _last_words(self) -> Reply | None:
        try:
            self.socket.settimeout(0.0)
            self._reader.feed(self.socket.recv(PIECE))
            return self._reader.next_reply()
        except (OSError, ClientError):
            return None

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
