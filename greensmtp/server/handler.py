"""One connection from its first byte to its last: ACCEPT, TLS, banner, commands, farewell, DISCONNECT.

The rules of this file:

- A connection has one greenlet, which runs ``run``. Everything here happens in it; what is done to a connection from
  outside stands in supervised.py.
- ``run`` raises nothing. However the connection ends, its place is freed, DISCONNECT is handled once, and the socket is
  closed.
- Before DISCONNECT is handled, the connection holds nothing that another one could need.
- No cycle is left to the garbage collector: a session may be kept by a handler, and refers to this object.

How it is built: one object for each connection, whose class is four layers, one job a file:

================= ======================================================
supervised.py     Supervised: timeouts and the end, from outside
replier.py        Replier: what becomes of a reply
command_loop.py   CommandLoop: one command after the other
handler.py        ConnectionHandler: the life of the connection, and what its session needs of it
================= ======================================================

``continuations.py`` has what follows the reply to QUIT, STARTTLS, DATA and BDAT; ``chunks.py`` what comes between two
chunks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from gevent import GreenletExit, getcurrent

from greensmtp._log import logger
from greensmtp.chain.chain import Proceed, before_banner
from greensmtp.errors import ConnectionLost, MalformedAnswer
from greensmtp.protocol import canned
from greensmtp.protocol.command import ACCEPT, CONNECT, DISCONNECT, ChunkCommand, Command
from greensmtp.protocol.line_reader import BadLine
from greensmtp.protocol.reply import Reply
from greensmtp.server.body import ChunkedBody, DataBody
from greensmtp.server.chunks import ChunkSequence
from greensmtp.server.command_loop import CommandLoop
from greensmtp.server.registry import Registry
from greensmtp.server.routes import Routes
from greensmtp.server.supervised import FAREWELLS
from greensmtp.server.transport import Transport
from greensmtp.session import ServerInfo
from greensmtp.session.ack_state import ENDINGS
from greensmtp.session.session import ServedSession

#: Seconds to send the last reply to a client that may not be reading.
_FAREWELL_TIMEOUT = 2.0

_ACCEPT, _CONNECT, _STARTTLS = Command(ACCEPT), Command(CONNECT), Command("STARTTLS")

_WRONG_GREENLET = "a message is received in the connection's own greenlet only: call proceed() there for DATA and BDAT"


class ConnectionHandler(CommandLoop):
    """One connection's greenlet, and the connection beneath its session.

    :param server: handed to the session.
    :param registry: the server's account of its connections.
    :param peer: the client's address as the socket gives it.
    :param address: what the client is counted by: see ``client_key``.
    :param tls_first: TLS begins before the banner (RFC 8314).
    """

    __slots__ = ("_tls_first",)

    def __init__(
        self,
        server: ServerInfo,
        routes: Routes,
        registry: Registry[Any],
        socket: Any,
        peer: Any,
        *,
        address: str,
        tls_first: bool,
    ) -> None:
        transport = Transport(socket, routes.limits, routes.line_length, routes.line_limit)
        super().__init__(routes, registry, transport, address)
        self.session = ServedSession(server, self, peer, routes.dispatcher.emitters)
        self._tls_first = tls_first
        # Under implicit TLS nothing can be said before the handshake.
        transport.write_failed = tls_first and not transport.encrypted

    def run(self) -> None:
        """Serve the connection to its end."""
        transport = self.transport
        self.registry.begin()
        transport.begin()
        self.greenlet = getcurrent()
        reason, linger = "error", False
        try:
            if self._open():
                if self.greet():
                    self.handle_commands()
                # After QUIT the client closes. Other clients have been told to go, and may be sending.
                reason, linger = self.closing, self.closing != "quit"
            else:
                reason = "refused"
        except ConnectionLost as lost:
            reason = lost.reason
            linger = self._say_farewell(reason)
            if reason == "refused":
                reason = self.closing
            logger.debug("%s: connection lost: %s", self.session.id, reason)
        except GreenletExit:
            reason = self.dismissed or "shutdown"
            linger, self.dismissed = bool(self.dismissed), ""
        except KeyboardInterrupt:
            raise
        except BaseException:  # Expired too: a handler had another greenlet wait for this client
            logger.exception("%s: serving the connection failed; connection closed", self.session.id)
        finally:
            if not self.has_left:  # else DISCONNECT is being handled elsewhere
                self.current = None
            try:
                if linger:
                    self.registry.let_linger(self)
                transport.close(linger=linger)
            finally:  # also if the greenlet is killed while it lingers
                self.leave(reason)
                if self.greenlet is None:
                    del self.session  # it refers to this object, and a handler may keep it: no cycle

    def leave(self, reason: str) -> None:
        """Free what the connection holds and have DISCONNECT handled, once."""
        if self.has_left:
            return
        self.has_left = True
        self.registry.begin_leaving(self)  # first, so that no handler that hangs holds the place
        self.greenlet = getcurrent()
        try:
            self.handle_disconnect(reason)
        finally:
            self.greenlet = self.current = self.identity_before = None
            if self.session._receivers:
                self.session._disconnect_receivers()
            self.registry.remove(self)

    def handle_disconnect(self, reason: str) -> None:
        """Have DISCONNECT handled."""
        session, command = self.session, _disconnect(reason)
        try:
            self.begin_command(command)
            session.reset()
            self.routes.disconnect(session, command)
        except ENDINGS:
            raise
        except BaseException:
            logger.exception("%s: handling DISCONNECT failed", session.id)

    def _say_farewell(self, reason: str) -> bool:
        """Send the last reply to a client that is dropped; return True if it may still be reading."""
        if self.transport.write_failed:
            return False
        farewell = FAREWELLS.get(reason)
        if farewell is None:
            return reason == "refused"  # it has been sent already
        self.transport.write(farewell.encode())
        try:
            self.transport.flush(_FAREWELL_TIMEOUT)
        except ConnectionLost:
            return False
        return True

    # The beginning

    def _open(self) -> bool:
        """Handle ACCEPT, then begin TLS if it comes first; return True if the client may stay."""
        if not self.admit():
            return False
        if self.transport.encrypted:  # the socket was given to adopt() so
            self._note_tls()
        elif self._tls_first:
            self.start_tls()
        return True

    def admit(self) -> bool:
        """Handle ACCEPT, before TLS; return True if the client may stay. A refusal is sent unless TLS comes first."""
        reply = canned.OK
        if self.routes.accept is not None:
            reply = self.settle(self._handle(_ACCEPT, self.routes.accept))
        self.registry.has_arrived(self)
        if reply.code < 300:
            reply = self.take_place()  # a middleware that answered by itself has taken none
            if reply.code < 300:
                return True
        self.registry.take_place_back(self)
        if not self.transport.write_failed:
            self.transport.write(before_banner(reply).encode())
        return False

    def greet(self) -> bool:
        """Handle CONNECT and write the banner; return True if it was a 220."""
        reply = self._handle(_CONNECT, self.routes.connect)
        if reply.code != 220 and reply.code < 400:
            logger.error("%s: %r is no reply to a connection; replying 421", self.session.id, reply)
            reply = canned.SHUTTING_DOWN
        reply = self.settle(reply)
        reply = before_banner(reply)
        self.transport.write(reply.encode())
        return reply.code == 220

    def _handle(self, command: Command, handle: Proceed) -> Reply:
        """Have ACCEPT or CONNECT handled, and return its reply."""
        self.begin_command(command)
        try:
            return handle(self.session, command)
        except BaseException as error:
            return self.error_reply(error, command.verb)

    def start_tls(self) -> None:
        """Shake hands.

        :raises ConnectionLost: the handshake failed or timed out.
        """
        self.transport.start_tls(self.routes.tls_context())
        self._note_tls()

    def _note_tls(self) -> None:
        self.begin_command(_STARTTLS)
        self.session.tls = True
        self.session._emitters["tls"].emit(self.session)

    # The connection beneath the session

    @property
    def socket(self) -> Any:
        """The gevent socket."""
        return self.transport.socket

    @property
    def close_error(self) -> ConnectionLost | None:
        """The error that ended the connection; None while it lasts."""
        return self.transport.close_error

    def take_place(self) -> Reply:
        """Take one of the ``max_connections``; return a refusal if there is none."""
        if self.has_place or self.registry.give_place(self):
            return canned.OK
        return canned.TOO_MANY_CONNECTIONS

    def flush(self) -> None:
        """Send the pending replies."""
        self.transport.flush(self.routes.limits.command_timeout)

    def challenge(self, reply: Reply) -> bytes:
        """Send a reply, and return the line that answers it."""
        transport = self.transport
        if transport.greenlet is not getcurrent():
            if transport.greenlet is None:
                raise ConnectionLost("closed" if transport.close_error is None else transport.close_error.reason)
            raise RuntimeError(
                "session.challenge() waits for the client, so call it in the connection's own greenlet, in which "
                "handlers and middleware are called"
            )
        transport.write(reply.encode())
        try:
            return transport.read_line(self.routes.limits.max_auth_line_length)
        except BadLine as bad:
            raise MalformedAnswer(bad.reply) from None

    def data_body(self) -> DataBody:
        """Return the body that follows DATA.

        :raises RuntimeError: this is not the connection's own greenlet, or the command has been answered.
        """
        if self.transport.greenlet is not getcurrent():
            raise RuntimeError(_WRONG_GREENLET)
        return DataBody(self.transport)

    def chunked_body(self, command: ChunkCommand) -> ChunkedBody:
        """Return the body that begins with this BDAT.

        :raises RuntimeError: this is not the connection's own greenlet, or the command has been answered.
        """
        if self.transport.greenlet is not getcurrent():
            raise RuntimeError(_WRONG_GREENLET)
        # Whatever a middleware has made of the command, the client sends as many bytes as it has announced.
        as_sent = self.current if isinstance(self.current, ChunkCommand) else command
        return ChunkedBody(self.transport, as_sent, ChunkSequence(self, command).next_chunk)


@lru_cache(16)
def _disconnect(reason: str) -> Command:
    return Command(DISCONNECT, reason)
