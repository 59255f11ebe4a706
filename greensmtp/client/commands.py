"""One method for each SMTP and LMTP command, which sends that command and nothing else."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, Unpack, overload

from greensmtp.client import dial
from greensmtp.client.chunks import send_chunks
from greensmtp.client.connection import ClientConnection
from greensmtp.client.envelope_lines import MailExt, RcptExt, parse_ext
from greensmtp.client.envelope_options import MailKeywords, RcptKeywords, mail_parameters, merged, rcpt_parameters
from greensmtp.client.exchange import NO_EXTENSIONS, first_refusal_or_last
from greensmtp.client.message_writer import BodyWriter, ChunkWriter, pieces
from greensmtp.client.pipeline import Pipeline
from greensmtp.client.sources import Readable
from greensmtp.errors import NotOffered, ProtocolError
from greensmtp.protocol import command_builder, esmtp, hosts, verb_arguments, xclient
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.xclient import Missing

#: The verbs that ``command`` refuses: their replies change the state, so they have methods of their own.
_OWN_METHOD = frozenset(
    {"DATA", "BDAT", "STARTTLS", "AUTH", "QUIT", "HELO", "EHLO", "LHLO", "MAIL", "RCPT", "RSET", "XCLIENT"}
)

#: Bytes in the longest line of a command (RFC 5321 section 4.5.3.1.4).
_MAX_LINE = 512


class ForwardedClient(TypedDict, total=False):
    """What XCLIENT and XFORWARD tell about a client. ``Missing`` says that something is not known."""

    name: str | Missing | None
    addr: str | Missing | None
    port: int | Missing | None
    proto: str | Missing | None
    helo: str | Missing | None


class XClientAttributes(ForwardedClient, total=False):
    """The keywords of ``xclient``."""

    login: str | Missing | None
    destaddr: str | Missing | None
    destport: int | Missing | None


class XForwardAttributes(ForwardedClient, total=False):
    """The keywords of ``xforward``."""

    ident: str | Missing | None
    source: str | Missing | None


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
            offers = NO_EXTENSIONS if verb == "HELO" else esmtp.parse_offers(reply, self._ignored)
            exchange.on_hello(reply, line, offers)
            exchange.lmtp = exchange.lmtp or verb == "LHLO"
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

    def from_(
        self, address: str, ext: Ext = None, *, relayed: MailExt = None, **options: Unpack[MailKeywords]
    ) -> Reply:
        """Send MAIL: ``from_("jo@example.com", size=1000, ret="HDRS")``.

        The keywords are checked against what the server offers. Where their extension is missing, ``size``, ``auth``,
        ``ret``, ``envid`` and ``priority`` are left out, as a relay does; the others raise NotOffered.

        :param address: ``""`` is the null reverse-path. A domain beyond ASCII is sent as A-labels if the local part is
            ASCII.
        :param ext: more parameters, as a str or a mapping, such as private ones. They are sent as they are.
        :param relayed: the parameters of a received session, ``session.from_ext``. Like the keywords, they are checked
            against what the server offers.
        :param options: ``size``, ``body``, ``smtputf8``, ``auth``, ``ret``, ``envid``, ``require_tls``, ``priority``,
            ``deliver_by``, ``hold_for``, ``hold_until``: see ``MailOptions``.
        :raises NotOffered: a parameter needs an extension that the server does not offer; nothing is sent.
        :raises TLSRefused, TLSUnverified: ``require_tls`` was given, and there is no TLS with a server that was
            verified (RFC 8689).
        """
        given = merged(parse_ext(relayed), mail_parameters(options))
        return self._exchange.execute(self._exchange.mail(address, ext, given))

    def to(self, address: str, ext: Ext = None, *, relayed: RcptExt = None, **options: Unpack[RcptKeywords]) -> Reply:
        """Send RCPT: ``to("jo@example.com", notify="NEVER")``.

        :param ext: more parameters; see ``from_``.
        :param relayed: those of a received session, such as ``address.parameters``; see ``from_``.
        :param options: ``notify`` and ``orcpt``, which are left out without DSN, and ``valid_since``: see
            ``RcptOptions``.
        :raises NotOffered: ``valid_since`` was given, and the server does not offer RRVS.
        """
        given = merged(parse_ext(relayed), rcpt_parameters(options))
        return self._exchange.execute(self._exchange.rcpt(address, ext, given))

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

    def body(self, *, chunked: bool | None = None) -> BodyWriter | ChunkWriter:
        """Return a context manager that writes the message: ``with mail.body() as body: body.write(...)``.

        It stands for ``data()`` and ``message()``, or for ``bdat()``. Little is kept in memory, however large the
        message is. ``body.reply`` is the reply, or the refusal of DATA or of a chunk, after which nothing is sent.

        :param chunked: send chunks by BDAT, unchanged; None: if the server offers CHUNKING.
        :raises NotOffered: ``chunked`` is True, and the server does not offer CHUNKING.
        """
        if chunked or (chunked is None and "CHUNKING" in self.extensions):
            self._need("CHUNKING", "body() was called with chunked=True")
            self._exchange.check_ready()
            self._transport.check_no_pending_reply()
            return ChunkWriter(self._exchange)
        self.data()
        return self.message()

    def bdat(self, data: bytes, *, last: bool = False) -> Reply:
        """Send a chunk unchanged, by BDAT (RFC 3030). (LMTP: see ``message``.)

        :param last: the chunk ends the message.
        :raises NotOffered: the server does not offer CHUNKING, so it would take the bytes for commands.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"expected a chunk of bytes; got {type(data).__name__}")
        self._need("CHUNKING", "bdat() was called")
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

    def vrfy(self, name: str) -> Reply:
        """Send VRFY for a user or a mailbox.

        :raises NotOffered: the name is beyond ASCII, and the server does not offer SMTPUTF8.
        """
        return self._exchange.execute(self._exchange.lookup("VRFY", name))

    def expn(self, name: str) -> Reply:
        """Send EXPN for a mailing list; each line of the reply is a member. See ``vrfy``."""
        return self._exchange.execute(self._exchange.lookup("EXPN", name))

    def noop(self, text: str | None = None) -> Reply:
        """Send NOOP. The server ignores the text."""
        return self._ask("NOOP", text)

    def help(self, topic: str | None = None) -> Reply:
        """Send HELP. The topic may be a verb."""
        return self._ask("HELP", topic)

    def etrn(self, node: str) -> Reply:
        """Send ETRN (RFC 1985): ask the server to send the mail that it holds for a domain.

        :param node: ``"example.com"``; ``"@example.com"``, with all domains below; ``"#queue"``.
        :raises ProtocolError: it is none of these.
        :raises NotOffered: the server does not offer ETRN.
        """
        self._need("ETRN", "etrn() was called")
        verb_arguments.parse_etrn(node)
        return self._ask("ETRN", node)

    def xclient(self, **attributes: Unpack[XClientAttributes]) -> Reply:
        """Send XCLIENT (Postfix's XCLIENT_README): speak for another client, whom the server's rules then hold for.

        The reply is 220 if the server accepts it. That is the banner of another session: ``hello``, ``extensions`` and
        ``authenticated`` are cleared. Send EHLO again; ``send`` does so itself.

        :param attributes: ``name``, ``addr``, ``port``, ``proto``, ``helo``, ``login``, ``destaddr``, ``destport``. The
            value may be ``Missing.UNAVAILABLE`` or ``Missing.TEMPORARILY``, of ``greensmtp.protocol.xclient``.
        :raises ProtocolError: a value is malformed.
        :raises NotOffered: the server does not offer XCLIENT, or one of these attributes.
        """
        reply = self._ask("XCLIENT", self._attributes("XCLIENT", attributes))
        if reply.is_positive:
            self.greeting = reply
            self._begun = self.authenticated = False
            self._is_xclient = True
            self._exchange.forget_session()
        return reply

    def xforward(self, **attributes: Unpack[XForwardAttributes]) -> Reply:
        """Send XFORWARD (Postfix's XFORWARD_README): tell for the log where the next message comes from.

        :param attributes: ``name``, ``addr``, ``port``, ``proto``, ``helo``, ``ident``, ``source``; see ``xclient``.
        :raises ProtocolError, NotOffered: as ``xclient``.
        """
        return self._ask("XFORWARD", self._attributes("XFORWARD", attributes))

    def _attributes(self, verb: str, attributes: Mapping[str, Any]) -> str:
        self._need(verb, f"{verb.lower()}() was called")
        given = {
            name.upper(): value if isinstance(value, Missing) else str(value)
            for name, value in attributes.items()
            if value is not None
        }
        text = xclient.format(verb, given)
        known = self.extensions[verb].upper().split()
        for name in given:
            if name not in known:
                raise NotOffered(f"{verb} {name}", f"{verb.lower()}({name.lower()}=...) was called")
        if len(f"{verb} {text}\r\n") > _MAX_LINE:
            raise ProtocolError(f"{verb} has more than {_MAX_LINE} bytes: pass the attributes in several calls")
        return text

    def _need(self, extension: str, why: str) -> None:
        if extension not in self.extensions:
            raise NotOffered(extension, why)

    def command(self, line: str) -> Reply:
        """Send any other command that has one reply: ``command("XADR jo@example.com")``.

        :raises ProtocolError: the line is empty, or the command has its own method.
        """
        words = command_builder.check(line, "a command").split(None, 1)
        if not words:
            raise ProtocolError(f"expected a command, like 'XADR jo@example.com'; got {line!r}")
        if words[0].upper() in _OWN_METHOD:
            raise ProtocolError(f"{words[0].upper()} has its own method; call that")
        return self._ask(line)
