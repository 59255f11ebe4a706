"""The client: one method for each command and the reply that comes back, and ``send`` for a whole message."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, overload

from greensmtp.client import dial, signals
from greensmtp.client import tls as client_tls
from greensmtp.client.auth import check_credential, log_in
from greensmtp.client.deadlines import Timeouts
from greensmtp.client.exchange import NO_EXTENSIONS, CommandExchange, verdict
from greensmtp.client.message import PreparedMessage, Sendable, SendResult
from greensmtp.client.message_writer import BodyWriter, pieces
from greensmtp.client.pipeline import Pipeline
from greensmtp.client.signals import ClientSignals
from greensmtp.client.sources import Readable
from greensmtp.client.transaction import transact
from greensmtp.client.transport import ClientTransport
from greensmtp.errors import (
    AuthenticationFailed,
    CannotConnect,
    ClientError,
    Disconnected,
    HelloRefused,
    NotOffered,
    ProtocolError,
    TLSFailed,
    TLSRefused,
    TLSUnverified,
)
from greensmtp.protocol import command_builder, esmtp, hosts
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl import client as sasl

logger = logging.getLogger("greensmtp")

#: Whether ``send`` steps up to TLS: or fails; or does without; or takes any certificate and does without; or does not
#: try.
StartTLS = Literal["require", "offered", "opportunistic", "never"]

Handler = TypeVar("Handler", bound=Callable[..., Any])

#: What has a method of its own, because something follows its reply.
_NOT_PLAIN = frozenset({"DATA", "BDAT", "STARTTLS", "AUTH", "QUIT", "HELO", "EHLO", "LHLO", "MAIL", "RCPT", "RSET"})

#: Seconds that the polite QUIT at the end of a ``with`` block may take.
GOODBYE_SECONDS = 5.0


class SMTPClient:
    """One connection, used by one greenlet at a time. ``connect`` makes one.

    Each command is a method that returns the Reply; 4xx and 5xx are replies like any other. What raises is a
    ClientError: the connection is gone then, or the peer cannot be trusted any more and has been hung up on. A
    ProtocolError about an argument (a CR or LF in it, no mailbox) is raised before an octet is written.

    A context manager: leaving the block says QUIT.
    """

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        path: str | None = None,
        stream: Any = None,
        tls: bool | ssl.SSLContext = False,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float | Timeouts | None = None,
        source_address: tuple[str, int] | None = None,
        local_hostname: str | None = None,
        on_secure: Callable[..., Any] | None = None,
        starttls: StartTLS | None = None,
        lmtp: bool = False,
        ignore: str | Iterable[str] = (),
    ) -> None:
        """See ``connect``."""
        self.timeouts = Timeouts.of(timeout)
        if isinstance(tls, ssl.SSLContext):
            ssl_context = ssl_context or tls
        check_policy(starttls, tls=bool(tls), ssl_context=ssl_context)
        if stream is None and path is None:
            host, port = dial.read_place("localhost" if host is None else host, port)
            if port is None:
                port = dial.PORTS["smtps" if tls else "lmtp" if lmtp else "smtp"]
        if local_hostname is not None:
            dial.check_name(local_hostname, "local_hostname")
        self._ignored = esmtp.check_ignored(ignore)
        self._ssl_context = ssl_context
        name = server_hostname or host
        self._server_hostname = hosts.fit_for_tls(name) if name else None
        self._starttls_given = starttls
        self.starttls_policy: StartTLS = starttls or "offered"
        self.signals = ClientSignals()
        #: The banner.
        self.greeting: Reply | None = None
        #: ``login`` has succeeded.
        self.authenticated = False
        self._unix = path is not None
        #: What ``starttls_policy`` asks for has been seen to.
        self._begun = False
        if on_secure is not None:
            self.signals.secure.connect(on_secure, weak=False)
        #: Gives another connection to the same server, where there can be one.
        self._dial: Callable[[], Any] | None = None
        if stream is None:
            self._dial = partial(dial.dial, host, port, path, source_address, self.timeouts.connect)
        pid = os.getpid()
        sock = dial.adopt(stream) if self._dial is None else self._dial()
        try:
            if os.getpid() != pid:
                raise RuntimeError("this process was forked while it connected: connect() in the child")
            self.local_hostname = local_hostname or dial.own_name(sock)
            self._wire = ClientTransport(sock)
        except BaseException:
            sock.close()
            raise
        self._dialogue = CommandExchange(self._wire, self.timeouts, lmtp=lmtp)
        try:
            if tls and not self._wire.tls:
                client_tls.upgrade(self, self._wire, self._checked(None, None), self._server_hostname)
            self._read_banner()
        except BaseException as error:
            self._wire.close(error)
            raise

    # State

    @property
    def tls(self) -> bool:
        """TLS is up."""
        return self._wire.tls

    @property
    def closed(self) -> bool:
        """The connection is over."""
        return self._wire.closed

    @property
    def socket(self) -> Any:
        """The gevent socket; in TLS, the SSLSocket (``getpeercert``, ``cipher``)."""
        return self._wire.socket

    @property
    def lmtp(self) -> bool:
        """This is LMTP: asked for, or LHLO was accepted."""
        return self._dialogue.lmtp

    @property
    def hello(self) -> Reply | None:
        """The reply to the last EHLO, HELO or LHLO that was accepted."""
        return self._dialogue.hello

    @property
    def extensions(self) -> Mapping[str, str]:
        """What EHLO's reply offers: keyword in upper case -> what stands behind it. Empty again after STARTTLS."""
        return self._dialogue.extensions

    @property
    def replies(self) -> tuple[Reply, ...]:
        """The replies to the last message: one, or in LMTP one for each recipient that was accepted."""
        return self._dialogue.replies

    @property
    def needs_reset(self) -> bool:
        """A transaction was begun, and has not come to its end: ``send`` says RSET before it begins another."""
        return self._dialogue.open_transaction

    def trace(self, show: Callable[[str], object] | None) -> None:
        """Call ``show`` with every line of the dialogue from now on: ``"> RSET"``, ``"< 250 2.0.0 Ok"``; None: no more.

        Passwords, tokens and what answers a challenge are ``***``; of a message only its size is shown.

        :raises TypeError: it cannot be called.
        """
        if show is not None and not callable(show):
            raise TypeError(f"trace takes a function of one line, or None, not {show!r}")
        self._dialogue.trace = show

    @property
    def expects_message(self) -> bool:
        """DATA was accepted, and the message has not been sent to its end: only ``message`` or ``close`` can follow."""
        return self._dialogue.message_expected or self._dialogue.writing

    @overload
    def on(self, name: str, handler: Handler) -> Handler: ...
    @overload
    def on(self, name: str, handler: None = ...) -> Callable[[Handler], Handler]: ...

    def on(self, name: str, handler: Handler | None = None) -> Handler | Callable[[Handler], Handler]:
        """Connect a handler to ``greeting`` (client, reply), ``tls`` (client) or ``secure`` (client, ack), strongly;
        without one, give the decorator that does. What has happened already is told to a late handler at once.

        :raises ValueError: no such signal; or ``secure``, when TLS is up and nothing is asked any more.
        """
        signal = self.signals.named(name)

        def connect(handler: Handler) -> Handler:
            if name == "secure" and self.tls:
                raise ValueError("too late for secure: TLS is up (give on_secure= to connect)")
            signal.connect(handler, weak=False)
            if name == "greeting" and self.greeting is not None:
                handler(self, reply=self.greeting)
            if name == "tls" and self.tls:
                handler(self)
            return handler

        return connect if handler is None else connect(handler)

    # The greeting

    def helo(self, name: str | None = None) -> Reply:
        """HELO; ``name`` is ``local_hostname`` by default."""
        return self._say_hello("HELO", name)

    def ehlo(self, name: str | None = None) -> Reply:
        """EHLO; its offers are in ``extensions`` then."""
        return self._say_hello("EHLO", name)

    def lhlo(self, name: str | None = None) -> Reply:
        """LHLO, LMTP's EHLO (RFC 2033 section 4.1)."""
        return self._say_hello("LHLO", name)

    def _say_hello(self, verb: str, name: str | None) -> Reply:
        reply = self._ask(verb, dial.check_name(self.local_hostname if name is None else name, verb))
        if reply.is_positive:
            dialogue = self._dialogue
            dialogue.hello = reply
            dialogue.extensions = NO_EXTENSIONS if verb == "HELO" else esmtp.parse_offers(reply, self._ignored)
            dialogue.lmtp = dialogue.lmtp or verb == "LHLO"
            dialogue.forget_transaction()
        return reply

    def starttls(self, ssl_context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> Reply:
        """STARTTLS, and on 220 the handshake. Greeting and extensions are forgotten then (RFC 3207 section 4.2).

        :param ssl_context: ``connect``'s by default.
        :param server_hostname: the name that the certificate must be for; the host connected to by default.
        :raises TLSUnverified: the peer is not who it should be.
        :raises TLSFailed: the handshake failed.
        :raises ProtocolError: TLS is up already.
        """
        if self.tls:
            raise ProtocolError("TLS is up already")
        if server_hostname:
            server_hostname = hosts.fit_for_tls(server_hostname)
        context = self._checked(ssl_context, server_hostname)
        reply = self._ask("STARTTLS")
        if reply.code == 220:
            self._ssl_context = context
            self._server_hostname = server_hostname or self._server_hostname
            self._begun = self.authenticated = False
            dialogue = self._dialogue
            dialogue.hello = None
            dialogue.extensions = NO_EXTENSIONS
            dialogue.forget_transaction()
            client_tls.upgrade(self, self._wire, context, self._server_hostname)
        elif not reply.code >= 400:
            raise self._dialogue.broken(f"STARTTLS was answered {reply}")
        return reply

    def login(
        self,
        username: str,
        password: str | None = None,
        mechanism: str | None = None,
        *,
        token: str | None = None,
        allow_plaintext: bool = False,
    ) -> Reply:
        """AUTH; EHLO and TLS first, as ``begin`` does, where EHLO has not been said. The reply is 235 when the
        credentials are good.

        Credentials need TLS (or a unix socket), unless ``starttls="offered"`` or ``"never"`` was given to ``connect``,
        or EHLO was said by hand. Then SCRAM is used without it too, and CRAM-MD5 where ``mechanism`` names it.

        :param mechanism: SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER or XOAUTH2; None: the strongest offered
            that the credentials fit. Where the server turns it down (504, 534, 535), the next one is tried; without
            TLS, never one that exposes more to eavesdroppers.
        :param token: an OAuth access token, in place of a password.
        :param allow_plaintext: without TLS, too, send what an eavesdropper could use: PLAIN, LOGIN, CRAM-MD5, tokens.
        :raises AuthenticationFailed: no mechanism is fit, the server makes no sense (the exchange was cancelled with
            ``*``), or it could not prove that it knows the password.
        """
        for text, what in ((username, "username"), (password, "password"), (token, "token")):
            check_credential(text, what)
        if password is None and token is None:
            raise TypeError("login takes a password or a token")
        self._dialogue.check_ready()
        if self.starttls_policy == "opportunistic":
            raise AuthenticationFailed('starttls="opportunistic" verifies no server, so no credentials are sent to any')
        policy = self._starttls_given or ("offered" if allow_plaintext or self._unix else "require")
        if self.hello is None:
            self._begin(policy)
        # (A caller that has said EHLO itself sees to TLS itself.)
        if policy == "require" and not self.tls and (self._begun or self._starttls_given is not None):
            raise AuthenticationFailed(
                'the credentials would be sent in the clear: starttls() first, or pass starttls="offered" to connect'
            )
        reply = log_in(
            self._dialogue,
            lambda offered: sasl.choose(offered, mechanism, username, password, token),
            mechanism,
            secure=self.tls or self._unix,
            allow_plaintext=allow_plaintext,
        )
        self.authenticated = self.authenticated or reply.is_positive
        return reply

    # A transaction

    def from_(self, address: str, ext: Ext = None) -> Reply:
        """MAIL: ``from_("jo@example.com", {"SIZE": 1000})``. ``""`` is the null sender; ``ext`` a str or a mapping."""
        return self._dialogue.take(self._dialogue.mail(address, ext))

    def to(self, address: str, ext: Ext = None) -> Reply:
        """RCPT: ``to("jo@example.com", "NOTIFY=NEVER")``."""
        return self._dialogue.take(self._dialogue.rcpt(address, ext))

    def data(self) -> Reply:
        """DATA; ``message`` is next, when the reply is 354."""
        return self._dialogue.take(self._dialogue.data())

    @overload
    def message(self, source: None = ...) -> BodyWriter: ...
    @overload
    def message(self, source: bytes | bytearray | memoryview | Readable | Iterable[bytes]) -> Reply: ...

    def message(
        self, source: bytes | bytearray | memoryview | Readable | Iterable[bytes] | None = None
    ) -> Reply | BodyWriter:
        """The message, behind ``data()``: all of it, then the reply; without a source, a context manager to write it.

        Dots are stuffed, bare CRs and LFs become CRLF, no empty line is added. Where ``data()`` was refused nothing
        is sent, and the refusal is the reply. (LMTP: the replies are in ``replies``; the first refusal among them,
        else the last, is returned.)

        :raises ProtocolError: ``data()`` has not been called, or another message is being written.
        """
        reply = self._dialogue.data_reply
        if reply is None:
            raise ProtocolError("call data() first: a message is sent behind its 354")
        writer = BodyWriter(self._dialogue, None if reply.code == 354 else reply)
        if source is None:
            return writer
        with writer:
            if writer.reply is None:
                for piece in pieces(source):
                    writer.write(piece)
        assert writer.reply is not None
        return writer.reply

    def bdat(self, data: bytes, *, last: bool = False) -> Reply:
        """BDAT (RFC 3030): a chunk, as it is; ``last`` ends the message. (LMTP: see ``message``.)

        :raises NotOffered: without CHUNKING, the octets would be taken for commands.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"a chunk is made of bytes, not {type(data).__name__}")
        if "CHUNKING" not in self.extensions:
            raise NotOffered("CHUNKING", "bdat() was called")
        self._dialogue.check_ready()
        self._wire.check_silence()
        return verdict(self._dialogue.send_chunks([bytes(data)], last=last))

    def reset(self) -> Reply:
        """RSET."""
        return self._dialogue.take(self._dialogue.reset())

    # And the rest

    def verify(self, username: str) -> Reply:
        """VRFY."""
        return self._ask("VRFY", username)

    def noop(self) -> Reply:
        """NOOP."""
        return self._ask("NOOP")

    def help(self, topic: str | None = None) -> Reply:
        """HELP."""
        return self._ask("HELP", topic)

    def command(self, line: str) -> Reply:
        """Any other command that one reply answers: ``command("XCLIENT NAME=spike.example")``.

        :raises ProtocolError: it has a method of its own.
        """
        verb = line.split(None, 1)[0].upper() if line.strip() else ""
        if verb in _NOT_PLAIN:
            raise ProtocolError(f"{verb} has a method of its own: use that")
        return self._ask(line)

    def pipeline(self) -> Pipeline:
        """A group of commands in one write: ``with mail.pipeline() as batch: batch.from_(...); batch.to(...)``."""
        return Pipeline(self._dialogue)

    def quit(self) -> Reply:
        """QUIT, and hang up, whatever the reply."""
        try:
            return self._ask("QUIT")
        finally:
            self.close()

    def close(self) -> None:
        """Hang up without a word; closing twice is fine."""
        self._wire.close()

    def _abandon(self) -> None:
        """Close the descriptor, and say nothing to the server: for a native thread or a process that is not its own."""
        self._wire.abandon("abandon()")

    def __enter__(self) -> SMTPClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            # Where a message is expected, QUIT would be its text.
            if kind is None and not self.closed and not self._dialogue.message_expected:
                self._dialogue.ask(b"QUIT\r\n", min(GOODBYE_SECONDS, self.timeouts.command))
        except ClientError:
            pass  # all that mattered has been said
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "TLS" if self.tls else "open"
        return f"<SMTPClient {self._server_hostname or 'stream'} {state}>"

    # High level

    def send(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        from_ext: Ext = None,
        to_ext: Ext | Sequence[Ext] = None,
        raise_on_partial: bool = False,
    ) -> SendResult:
        """Send a message; greet and step up to TLS first, as ``starttls=`` says, where that has not happened.

        :param message: an EmailMessage, bytes, or a binary file, which is read from its current position. What was
            parsed goes out as it was read; an EmailMessage that was composed gets Date and Message-ID if it lacks them.
        :param sender: None: the message's Sender or From.
        :param recipients: None: the message's To, Cc and Bcc. Bcc is removed then, and from an EmailMessage always.
        :param from_ext: parameters for MAIL, such as ``{"RET": "HDRS"}`` or a session's ``from_ext``. SIZE, BODY and
            SMTPUTF8 are always set by what the message needs; DSN's and AUTH are left out where they are not offered.
        :param to_ext: parameters for every RCPT: ``"NOTIFY=FAILURE"``; or a sequence of them, one for each recipient,
            such as a session's ``to_ext``.
        :raises ProtocolError: an address, parameter or address field of the message is malformed.
        :param raise_on_partial: raise PartiallyRefused when some recipients are refused; else that is in the result.
        :raises SenderRefused, RecipientsRefused, DataRefused: nobody took it; their base is Refused.
        :raises NotOffered: the message needs an extension that the peer does not have.
        :raises Disconnected: with ``safe_to_retry`` false where the peer may have the message.
        :raises ClientError: the base of all of them.
        """
        outgoing = PreparedMessage(message, sender, recipients, from_ext=from_ext, to_ext=to_ext)
        try:
            return self.send_prepared(outgoing, raise_on_partial=raise_on_partial)
        finally:
            outgoing.close()

    def send_prepared(
        self, outgoing: PreparedMessage, *, raise_on_partial: bool = False, reset_first: bool = False
    ) -> SendResult:
        """``send``, of what can be sent several times.

        :param reset_first: RSET goes before the rest, in the same write.
        """
        if not self._begun:
            self.begin()
        return transact(self._dialogue, outgoing, raise_on_partial=raise_on_partial, reset_first=reset_first)

    def begin(self) -> Reply:
        """What ``send`` does before the first message, as far as it has not been done: EHLO (HELO where that is
        refused; LHLO), and TLS, as ``starttls=`` says. The reply is the one that counts.

        :raises HelloRefused: the greeting was refused.
        :raises TLSRefused: TLS is required, and not to be had.
        """
        return self._begin(self.starttls_policy)

    def _begin(self, policy: StartTLS) -> Reply:
        reply = self._greet() if self.hello is None else self.hello
        if not self.tls and policy != "never":
            reply = self._step_up(policy, reply)
        self._begun = True
        return reply

    def _step_up(self, policy: StartTLS, reply: Reply) -> Reply:
        """STARTTLS, as the policy says; the reply to the greeting that counts then."""
        required = policy == "require"
        if "STARTTLS" not in self.extensions:
            if required:
                raise TLSRefused('the peer does not offer STARTTLS, and starttls="require"')
            return reply
        if self._unix and not required and not self._server_hostname and self._context().check_hostname:
            # A unix socket leads to this machine, and there is no name that the certificate could be for.
            return reply
        try:
            answer = self.starttls()
            if answer.code == 220:
                return self._greet()
            if required:
                raise TLSRefused(f'the peer refuses STARTTLS, and starttls="require": {answer}', answer)
            if self.closed:
                raise TLSRefused(f"the peer refuses STARTTLS: {answer}", answer)
        except (TLSFailed, Disconnected) as error:
            # RFC 7435: some protection is tried for, and the message goes without rather than not at all.
            if policy != "opportunistic" or self._dial is None or isinstance(error, TLSUnverified):
                raise
            logger.debug("no TLS with %r: %s; reconnecting without", self, error)
            self._reconnect(self._dial)
            return self._greet()
        return reply

    def _reconnect(self, dial: Callable[[], Any]) -> None:
        """Start again on another connection to the same server."""
        lmtp = self.lmtp
        sock = dial()
        try:
            self._wire = ClientTransport(sock)
        except BaseException:
            sock.close()
            raise
        self._dialogue = CommandExchange(self._wire, self.timeouts, lmtp=lmtp)
        try:
            self._read_banner()
        except BaseException as error:
            self._wire.close(error)
            raise

    # What the methods stand on

    def _ask(self, verb: str, argument: str | None = None) -> Reply:
        return self._dialogue.ask(command_builder.line(verb, argument), self.timeouts.command)

    def _greet(self) -> Reply:
        if self.lmtp:
            reply = self.lhlo()
        else:
            reply = self.ehlo()
            # RFC 5321 section 3.2. (421 is a good-bye.)
            if reply.is_permanent_failure:
                try:
                    reply = self.helo()
                except Disconnected as lost:  # behind what it said to EHLO
                    raise HelloRefused("the greeting was refused", reply) from lost
        if not reply.is_positive:
            raise HelloRefused("the greeting was refused", reply)
        return reply

    def _read_banner(self) -> None:
        try:
            banner = self._wire.reply(self.timeouts.banner)
        except Disconnected as lost:
            raise CannotConnect(f"connected, but got no banner: {lost}") from lost
        if banner.code != 220:
            raise CannotConnect(f"the banner refuses service: {banner}", banner)
        self.greeting = banner
        for signal in (signals.shared.greeting, self.signals.greeting):
            if signal.receivers:
                signal.send(self, reply=banner)

    def _context(self) -> ssl.SSLContext:
        if self._ssl_context is not None:
            return self._ssl_context
        if self.starttls_policy == "opportunistic":
            return client_tls.any_context()
        return client_tls.default_context()

    def _checked(self, context: ssl.SSLContext | None, server_hostname: str | None) -> ssl.SSLContext:
        """The context for a handshake that can verify what it is to verify."""
        context = context or self._context()
        if context.check_hostname and not (server_hostname or self._server_hostname):
            raise TypeError("say server_hostname=: the certificate must be for a name, and there is none to connect to")
        return context


def check_policy(policy: str | None, *, tls: bool, ssl_context: ssl.SSLContext | None) -> None:
    """
    :raises ValueError: it is none, or contradicts the rest.
    """
    if policy not in (None, "require", "offered", "opportunistic", "never"):
        raise ValueError(f'starttls must be "require", "offered", "opportunistic" or "never", not {policy!r}')
    if policy == "opportunistic":
        if tls:
            raise ValueError('starttls="opportunistic" falls back to no TLS, and tls=True does not: give one of them')
        if ssl_context is not None and ssl_context.verify_mode != ssl.CERT_NONE:
            raise ValueError('starttls="opportunistic" takes any certificate, and this ssl_context does not: give one')


__all__ = ["SMTPClient", "StartTLS"]
