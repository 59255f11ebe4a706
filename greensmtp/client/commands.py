"""One method for each SMTP and LMTP command, which sends that command and nothing else."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import overload

from greensmtp.client import dial
from greensmtp.client.chunks import send_chunks
from greensmtp.client.connection import ClientConnection
from greensmtp.client.exchange import NO_EXTENSIONS, first_refusal_or_last
from greensmtp.client.message_writer import BodyWriter, pieces
from greensmtp.client.pipeline import Pipeline
from greensmtp.client.sources import Readable
from greensmtp.errors import NotOffered, ProtocolError
from greensmtp.protocol import command_builder, esmtp, hosts
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.reply import Reply

#: The verbs that ``command`` refuses: their replies change the state, so they have methods of their own.
_OWN_METHOD = frozenset({"DATA", "BDAT", "STARTTLS", "AUTH", "QUIT", "HELO", "EHLO", "LHLO", "MAIL", "RCPT", "RSET"})


class ClientCommands(ClientConnection):
    """The low-level calls of ``SMTPClient``."""

    # HELO and TLS

    def helo(self, name: str | None = None) -> Reply:
        """Send HELO. ``name`` is ``local_hostname`` by default."""
        return self._send_hello("HELO", name)

    def ehlo(self, name: str | None = None) -> Reply:
        """Send EHLO. Afterwards ``extensions`` has what the server offers."""
        return self._send_hello("EHLO", name)

    def lhlo(self, name: str | None = None) -> Reply:
        """Send LHLO, LMTP's EHLO (RFC 2033 section 4.1)."""
        return self._send_hello("LHLO", name)

    def _send_hello(self, verb: str, name: str | None) -> Reply:
        line = command_builder.line(verb, dial.hello_name(self.local_hostname if name is None else name, verb))
        exchange = self._exchange
        reply = exchange.send(line, self.timeouts.command)
        if reply.is_positive:
            exchange.hello = reply
            exchange.hello_line = line
            exchange.extensions = NO_EXTENSIONS if verb == "HELO" else esmtp.parse_offers(reply, self._ignored)
            exchange.lmtp = exchange.lmtp or verb == "LHLO"
            exchange.forget_transaction()
        return reply

    def starttls(self, ssl_context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> Reply:
        """Send STARTTLS, and do the handshake if the reply is 220.

        That clears ``hello``, ``extensions`` and ``authenticated`` (RFC 3207 section 4.2): send EHLO again.

        :param ssl_context: that of ``connect`` by default.
        :param server_hostname: the name that the certificate must be for; the host connected to by default.
        :raises TLSUnverified: the certificate does not verify, or a handler of ``secure`` rejects the peer.
        :raises TLSFailed: the handshake failed.
        :raises ProtocolError: TLS is up already.
        """
        if self.tls:
            raise ProtocolError("expected a connection without TLS; TLS is up already")
        if server_hostname:
            server_hostname = hosts.fit_for_tls(server_hostname)
        context = self._checked_context(ssl_context, server_hostname)
        reply = self._ask("STARTTLS")
        if reply.code == 220:
            self._ssl_context = context
            self._server_hostname = server_hostname or self._server_hostname
            self._begun = self.authenticated = False
            self._exchange.forget_hello()
            self._upgrade_to_tls(context)
        elif not reply.code >= 400:
            raise self._exchange.protocol_error(f"unexpected reply to STARTTLS: {reply}")
        return reply

    # A transaction

    def from_(self, address: str, ext: Ext = None) -> Reply:
        """Send MAIL: ``from_("jo@example.com", {"SIZE": 1000})``.

        :param address: ``""`` is the null reverse-path.
        :param ext: parameters, as a str or a mapping.
        """
        return self._exchange.execute(self._exchange.mail(address, ext))

    def to(self, address: str, ext: Ext = None) -> Reply:
        """Send RCPT: ``to("jo@example.com", "NOTIFY=NEVER")``."""
        return self._exchange.execute(self._exchange.rcpt(address, ext))

    def data(self) -> Reply:
        """Send DATA. If the reply is 354, call ``message`` next."""
        return self._exchange.execute(self._exchange.data())

    @overload
    def message(self, source: None = ...) -> BodyWriter: ...
    @overload
    def message(self, source: bytes | bytearray | memoryview | Readable | Iterable[bytes]) -> Reply: ...

    def message(
        self, source: bytes | bytearray | memoryview | Readable | Iterable[bytes] | None = None
    ) -> Reply | BodyWriter:
        """Send the message after ``data()``, and return the reply; without a source, return a context manager.

        Dots are stuffed, bare CRs and LFs become CRLF, and no empty line is added. If ``data()`` was refused, nothing
        is sent, and the refusal is the reply. (LMTP: ``replies`` has all replies; the first refusal among them, else
        the last one, is returned.)

        :raises ProtocolError: ``data()`` has not been called, or another message is being written.
        """
        reply = self._exchange.data_reply
        if reply is None:
            raise ProtocolError("call data() first: a message is sent after its 354")
        writer = BodyWriter(self._exchange, None if reply.code == 354 else reply)
        if source is None:
            return writer
        with writer:
            if writer.reply is None:
                for piece in pieces(source):
                    writer.write(piece)
        assert writer.reply is not None
        return writer.reply

    def bdat(self, data: bytes, *, last: bool = False) -> Reply:
        """Send a chunk unchanged, by BDAT (RFC 3030). (LMTP: see ``message``.)

        :param last: the chunk ends the message.
        :raises NotOffered: the server does not offer CHUNKING, so it would take the bytes for commands.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"expected a chunk of bytes; got {type(data).__name__}")
        if "CHUNKING" not in self.extensions:
            raise NotOffered("CHUNKING", "bdat() was called")
        self._exchange.check_ready()
        self._transport.check_no_pending_reply()
        return first_refusal_or_last(send_chunks(self._exchange, [bytes(data)], last=last))

    def reset(self) -> Reply:
        """Send RSET."""
        return self._exchange.execute(self._exchange.reset())

    def pipeline(self) -> Pipeline:
        """Return a group of commands for one write: ``with mail.pipeline() as batch: batch.from_(...)``."""
        return Pipeline(self._exchange)

    # Other commands

    def verify(self, username: str) -> Reply:
        """Send VRFY."""
        return self._ask("VRFY", username)

    def noop(self) -> Reply:
        """Send NOOP."""
        return self._ask("NOOP")

    def help(self, topic: str | None = None) -> Reply:
        """Send HELP."""
        return self._ask("HELP", topic)

    def command(self, line: str) -> Reply:
        """Send any other command that has one reply: ``command("XCLIENT NAME=spike.example")``.

        :raises ProtocolError: the line is empty, or the command has its own method.
        """
        words = command_builder.check(line, "a command").split(None, 1)
        if not words:
            raise ProtocolError(f"expected a command, like 'XCLIENT NAME=spike.example'; got {line!r}")
        if words[0].upper() in _OWN_METHOD:
            raise ProtocolError(f"{words[0].upper()} has its own method; call that")
        return self._ask(line)
