"""The client's side of a connection: send bytes, and read replies, with a deadline for every wait.

Rules of this file:

- Any error closes the transport, since after a partial command or reply the client cannot get back into step with the
  server. ``_fail`` closes it, and converts the exception to the public error.
- A timeout of the caller's own (``gevent.Timeout``) closes the transport too, but is raised unchanged.
- A reply may only follow a command. Before bytes are sent, the reader must be empty: an unsolicited reply would be
  mistaken for the reply to the next command. ``check_no_pending_reply`` also looks at the socket.
- ``message_sent`` is True from the moment when the kernel has taken the last byte of a message until its reply is read.
  An error in that window has ``safe_to_retry`` False, since the server may have accepted the message.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from select import POLLIN

from gevent import get_hub
from gevent.socket import socket as Socket
from gevent.socket import wait_read

from greensmtp._native import native
from greensmtp.client.deadlines import DeadlineExpired, in_use_error, is_callers_timeout
from greensmtp.client.endpoint import ClientEndpoint
from greensmtp.errors import ClientError, Disconnected, PeerProtocolError
from greensmtp.protocol.errors import ReplySyntaxError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import ReplyParser

#: Bytes read from the socket at once; enough for the replies to a group of commands.
RECV_BYTES = 16 * 1024
#: Bytes of a body that are passed to the socket at once; ``Timeouts.data`` applies to each such piece.
SEND_BYTES = 256 * 1024
#: Maximum number of replies that are searched for the reason why the server closed the connection.
MAX_FINAL_REPLIES = 64
#: Seconds within which a server closes the connection after announcing it.
CLOSE_AFTER_REFUSAL_SECONDS = 0.1

# The unpatched poll: in a monkey-patched process, gevent's would let other greenlets run.
poll = native("select", "poll")


class ClientTransport(ClientEndpoint):
    """One connected socket, and the parser of the server's replies. Any error closes it."""

    __slots__ = ("_poll", "_reader", "approved", "message_sent")

    def __init__(self, socket: Socket) -> None:
        """
        :param socket: a connected gevent socket, or gevent SSLSocket; the transport closes it.
        """
        super().__init__(socket)
        self._reader = ReplyParser()
        self._poll = poll()
        self._poll.register(socket.fileno(), POLLIN)
        #: True if a whole message was sent, and its reply has not been read.
        self.message_sent = False
        #: True if a handler of ``secure`` has accepted the peer.
        self.approved = False

    @property
    def verified(self) -> bool:
        """True if TLS is up, and the server was verified: by certificate and name, or by a handler of ``secure``."""
        context = self.socket.context if self.tls else None
        return context is not None and (
            self.approved or (context.verify_mode == ssl.CERT_REQUIRED and bool(context.check_hostname))
        )

    @property
    def has_unread_bytes(self) -> bool:
        """True if the server has sent more than the replies that were read."""
        return self._reader.pending

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None, seconds: float) -> None:
        """Do the TLS handshake. See ``ClientEndpoint.start_tls``.

        :raises PeerProtocolError: plaintext arrived before the handshake (CVE-2011-0411).
        """
        if self._reader.pending:
            raise self._fail(PeerProtocolError("plaintext after the reply to STARTTLS"))
        super().start_tls(context, server_hostname, seconds)
        self._reader = ReplyParser()

    def send(self, data: bytes, seconds: float) -> None:
        """Send bytes without reading a reply now. See ``send_and_receive``."""
        self.send_and_receive(data, 0, seconds, seconds)

    def read_reply(self, seconds: float) -> Reply:
        """Return the next reply. See ``send_and_receive``.

        :param seconds: the timeout for the whole reply.
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
        followed_by: bytes = b"",
        while_waiting: Callable[[], object] | None = None,
    ) -> list[Reply]:
        """Send bytes, and return the replies to them: ``count``, or fewer if the last one is 421.

        :param seconds: the timeout for sending each piece of up to 256 KiB, and for each reply but the last.
        :param last_seconds: the timeout for the last reply.
        :param ends_message: the timeout for sending if the bytes end a message. Once they are sent,
            ``message_sent`` is True.
        :param followed_by: commands that are sent in the same write, behind the end of a message. Their replies are
            left to the next call.
        :param while_waiting: called after the bytes are sent, while the server works.
        :raises Disconnected: the connection is lost, or timed out; ``replies`` has those that were read.
        :raises PeerProtocolError: the server sent something that is not a reply, or sent it before the command.
        """
        if self.close_reason is not None:
            self._check_open()
        reader, watcher, timer = self._reader, self._watcher, self._timer
        if not data and 0 < count <= len(reader.ready):
            return reader.next_replies(count)  # they came with earlier ones
        replies: list[Reply] = []
        first_seconds = seconds if count > 1 else last_seconds
        timer.set(first_seconds)
        try:
            if data:
                if reader.pending:
                    raise self._unsolicited()
                whole = data + followed_by if followed_by else data
                sent = 0
                if watcher is not None:
                    # Usually the kernel takes all of it at once. gevent's own socket would try no faster.
                    try:
                        sent = self.socket._sock.send(whole)
                    except BlockingIOError:
                        pass
                if sent < len(data):
                    self._send_rest(memoryview(data)[sent:], ends_message or seconds)
                if ends_message:
                    # Until the kernel has taken the last byte, the server cannot have the whole message.
                    self.message_sent = True
                if sent < len(whole):
                    self._send_rest(memoryview(whole)[max(sent, len(data)) :], seconds)
                    timer.extend(first_seconds)
                if while_waiting is not None:
                    while_waiting()
            elif reader.pending:
                replies = reader.next_replies(count)
            while (left := count - len(replies)) > 0:
                if replies:
                    if replies[-1].code == 421:
                        break
                    timer.extend(seconds if left > 1 else last_seconds)
                more: Sequence[Reply] = ()
                while not more:
                    # On a plain socket, wait before recv, since usually nothing has arrived yet. With TLS, try recv
                    # first: the SSL object may hold bytes that the socket no longer has.
                    if watcher is None:
                        received = self.socket.recv(RECV_BYTES)
                    else:
                        self._hub.wait(watcher)
                        try:
                            received = self.socket._sock.recv(RECV_BYTES)
                        except BlockingIOError:  # the socket was not readable after all
                            continue
                    if not received:
                        raise Disconnected("closed")
                    more = reader.read(received, left)
                replies += more
        except BaseException as error:
            failure = self._fail(error, find_reason=True)
            if isinstance(failure, Disconnected) and replies:
                failure.replies = tuple(replies)
                failure.reply = failure.reply or replies[-1]
            if failure is error:
                raise
            raise failure from (error if isinstance(error, OSError) else None)
        finally:
            timer.greenlet = None  # as ``clear`` does, without a call
        return replies

    def _send_rest(self, view: memoryview, seconds: float) -> None:
        """Send what the kernel has not taken at once, with a deadline for each piece."""
        while view:
            self._timer.extend(seconds)
            left = SEND_BYTES
            while left > 0 and view:
                sent = self.socket.send(view[:left])
                view = view[sent:]
                left -= sent

    # Unsolicited replies

    def check_no_pending_reply(self) -> None:
        """Check that the server has sent nothing unsolicited. Call it before a command, when all replies are read.

        :raises Disconnected: the server closed the connection, perhaps after a 421, which is the error's ``reply``.
        :raises PeerProtocolError: the server sent something else, which would be mistaken for the next reply.
        :raises RuntimeError: another greenlet is waiting for a reply; or this is not the native thread or the process
            of the connection.
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
        self._timer.set(CLOSE_AFTER_REFUSAL_SECONDS)
        try:
            data = self._recv_now()
            if data is None:
                wait_read(self.socket.fileno())
                data = self._recv_now()
            return data == b""
        except DeadlineExpired:
            return False
        except BaseException as error:
            failure = self._fail(error)
            if isinstance(failure, Disconnected):
                return True  # by a reset
            raise
        finally:
            self._timer.clear()

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

    # Errors

    def _fail(self, error: BaseException, *, find_reason: bool = False) -> BaseException:
        """Close the transport, and return the error to raise.

        :param find_reason: search for a reply that says why the server closed the connection.
        """
        if isinstance(error, DeadlineExpired):
            error = Disconnected("timeout")
        elif isinstance(error, ReplySyntaxError):
            error = PeerProtocolError(str(error))
        elif isinstance(error, OSError) and not isinstance(error, ClientError) and not is_callers_timeout(error):
            # A server may refuse in the middle of a body and close the connection: its reply is better than the reset.
            error = Disconnected("reset", reply=self._final_reply() if find_reason else None)
        if isinstance(error, (Disconnected, PeerProtocolError)):
            error.after_content = self.message_sent
            error.safe_to_retry = not self.message_sent
        return super()._fail(error)

    def _final_reply(self) -> Reply | None:
        """Return the reply that explains why the server closed the connection, if there is one."""
        try:
            self.socket.settimeout(0.0)
            self._reader.feed(self.socket.recv(RECV_BYTES))
            replies = self._reader.next_replies(MAX_FINAL_REPLIES)
            return next((reply for reply in replies if reply.code >= 400), replies[-1] if replies else None)
        except (OSError, ReplySyntaxError):
            return None
