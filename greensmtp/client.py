"""The client, low level: one method for each command, and the reply that comes back."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar, overload

from gevent import socket
from gevent import ssl as gevent_ssl

from greensmtp import client_signals, dialing
from greensmtp.ack import Ack, AckRules, Decision
from greensmtp.body_writer import BodyWriter, pieces
from greensmtp.client_signals import ClientSignals
from greensmtp.errors import (
    AuthenticationFailed,
    CannotConnect,
    ClientError,
    Disconnected,
    HelloRefused,
    PeerProtocolError,
    ProtocolError,
    Reject,
    TLSRefused,
    TLSUnverified,
)
from greensmtp.login import authenticate
from greensmtp.outgoing import Outgoing, Readable, Sendable, Sent
from greensmtp.pipeline import MAX_GROUP, Pipeline, Step
from greensmtp.protocol import command_lines, sasl
from greensmtp.protocol.command_lines import Ext
from greensmtp.protocol.replies import Reply
from greensmtp.sending import transact
from greensmtp.wire import SEND_PIECE, Timeouts, Wire

#: Whether ``send`` steps up to TLS: or fails; or does without; or does not try.
StartTLS = Literal["require", "offered", "never"]

Handler = TypeVar("Handler", bound=Callable[..., Any])

_NO_EXTENSIONS: Mapping[str, str] = MappingProxyType({})
_KEYWORD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:[ =](.*))?")
#: What has a method of its own, because something follows its reply.
_NOT_PLAIN = frozenset({"DATA", "BDAT", "STARTTLS", "AUTH", "QUIT", "HELO", "EHLO", "LHLO", "MAIL", "RCPT", "RSET"})

_SECURE = AckRules(
    accepted=Reply(250, "Ok"), rejected=Reply(554, "5.7.0 not the peer that is meant"), unheard=Reply(250, "Ok")
)

#: Seconds that the polite QUIT at the end of a ``with`` block may take.
GOODBYE_SECONDS = 5.0

_default_context: ssl.SSLContext | None = None


def default_context() -> ssl.SSLContext:
    """The TLS context of clients that are given none: the system's authorities, names checked, TLS 1.2 or later."""
    global _default_context  # noqa: PLW0603 - reading the authorities takes tens of milliseconds: once is enough
    if _default_context is None:
        _default_context = gevent_ssl.create_default_context()
        _default_context.minimum_version = ssl.TLSVersion.TLSv1_2
    return _default_context


def connect(
    *where: Any,
    host: str | None = None,
    port: int | None = None,
    path: str | None = None,
    stream: Any = None,
    tls: bool | ssl.SSLContext | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    timeout: float | Timeouts | None = None,
    source_address: tuple[str, int] | None = None,
    local_hostname: str | None = None,
    on_secure: Callable[..., Any] | None = None,
    starttls: StartTLS | None = None,
    lmtp: bool | None = None,
) -> SMTPClient:
    """Connect, and read the banner: ``connect("localhost", 25)``.

    What is given without a name is told apart by its type, in any order: a host name, a port, a unix path (a str that
    begins with ``.`` or ``/``), ``(host, port)``, a connected socket, an SSLContext, Timeouts, a handler for
    ``secure``, a mapping of the options below.

    :param host: ``localhost`` when nothing is said.
    :param port: 25 when not given; 465 with ``tls``, 24 with ``lmtp``.
    :param stream: a connected gevent socket (a plain one of the standard library's is taken over).
    :param tls: TLS from the first octet (RFC 8314): True, or an SSLContext.
    :param ssl_context: for ``tls=True`` and STARTTLS; by default the peer must have a certificate for its name, from
        an authority that the system trusts.
    :param server_hostname: the name that the certificate must be for; the host by default.
    :param timeout: seconds for every wait, or Timeouts; RFC 5321 section 4.5.3.2 by default.
    :param source_address: ``(host, port)`` to connect from.
    :param local_hostname: what EHLO says; this machine's name where it has a domain, else its address.
    :param on_secure: called with the client and an ack when TLS is up: accept or reject the peer. (The context has
        verified it before, unless that context does not: pinning, for one, wants a context with CERT_NONE.)
    :param starttls: what ``send`` does before the first message: ``"require"`` TLS, take it where it is
        ``"offered"`` (the default), or ``"never"``. The low-level calls never do anything by themselves.
    :param lmtp: this is LMTP (RFC 2033): ``send`` says LHLO and reads a reply for each recipient.
    :raises CannotConnect: nobody there, no banner, or one that refuses service.
    :raises TLSFailed: with ``tls``.
    :raises PeerProtocolError: that is no SMTP server.
    :raises TypeError: arguments that contradict each other.
    """
    said = dialing.sort_out(
        where,
        {
            "host": host,
            "port": port,
            "path": path,
            "stream": stream,
            "tls": tls,
            "ssl_context": ssl_context,
            "server_hostname": server_hostname,
            "timeout": timeout,
            "source_address": source_address,
            "local_hostname": local_hostname,
            "on_secure": on_secure,
            "starttls": starttls,
            "lmtp": lmtp,
        },
    )
    places = [name for name in ("host", "path", "stream") if name in said]
    if len(places) > 1:
        raise TypeError(f"connect takes a {' or a '.join(places)}, not several of them")
    return SMTPClient(**said)


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
        starttls: StartTLS = "offered",
        lmtp: bool = False,
    ) -> None:
        """See ``connect``."""
        self.timeouts = Timeouts.of(timeout)
        if starttls not in ("require", "offered", "never"):
            raise ValueError(f'starttls is "require", "offered" or "never", not {starttls!r}')
        if isinstance(tls, ssl.SSLContext):
            ssl_context = ssl_context or tls
        if stream is None and path is None:
            host = command_lines.check(host or "localhost", "a host")
            port = port or dialing.PORTS["smtps" if tls else "lmtp" if lmtp else "smtp"]
        self.lmtp = lmtp
        self.starttls_policy: StartTLS = starttls
        self.signals = ClientSignals()
        #: The banner.
        self.greeting: Reply | None = None
        #: The reply to the last EHLO, HELO or LHLO that was accepted.
        self.hello: Reply | None = None
        #: What EHLO's reply offers: keyword in upper case -> what stands behind it. Empty again after STARTTLS.
        self.extensions: Mapping[str, str] = _NO_EXTENSIONS
        #: ``login`` has succeeded.
        self.authenticated = False
        #: The replies to the last message: one, or in LMTP one for each recipient that was accepted.
        self.replies: tuple[Reply, ...] = ()
        self._ssl_context = ssl_context
        self._server_hostname = command_lines.check(server_hostname or host or "", "server_hostname") or None
        if local_hostname is not None and (not command_lines.check(local_hostname) or " " in local_hostname):
            raise ProtocolError(f"local_hostname is a host name or an address literal, not {local_hostname!r}")
        if on_secure is not None:
            self.on("secure", on_secure)
        sock = dialing.adopt(stream) if stream is not None else None
        if sock is None:
            sock = dialing.dial(host, port, path, source_address, self.timeouts.connect)
        self.local_hostname = local_hostname or _own_name(sock)
        self._wire = Wire(sock)
        #: What ``starttls_policy`` asks for has been seen to.
        self._begun = False
        self._open_transaction = False
        self._recipients = 0
        self._data_reply: Reply | None = None
        try:
            if tls and not self._wire.tls:
                self._step_up()
            self._read_banner()
        except BaseException as error:
            self._wire.close(error)
            raise

    # Who is there

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
    def needs_reset(self) -> bool:
        """A transaction was begun, and has not come to its end: ``send`` says RSET before it begins another."""
        return self._open_transaction

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
            if name == "secure" and hasattr(self, "_wire") and self.tls:
                raise ValueError("too late for secure: TLS is up (give on_secure= to connect)")
            signal.connect(handler, weak=False)
            if name == "greeting" and self.greeting is not None:
                handler(self, reply=self.greeting)
            if name == "tls" and hasattr(self, "_wire") and self.tls:
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
        name = self.local_hostname if name is None else name
        if not name or " " in name:
            raise ProtocolError(f"{verb} says a host name or an address literal, not {name!r}")
        reply = self._ask(command_lines.line(verb, name), self.timeouts.command)
        if reply.is_positive:
            self.hello = reply
            self.extensions = _NO_EXTENSIONS if verb == "HELO" else MappingProxyType(_read_extensions(reply))
            if verb == "LHLO":
                self.lmtp = True
            self._forget_transaction()
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
        self._check_verifiable(ssl_context, server_hostname)
        reply = self._ask(command_lines.line("STARTTLS"), self.timeouts.command)
        if reply.code == 220:
            self._ssl_context = ssl_context or self._ssl_context
            self._server_hostname = server_hostname or self._server_hostname
            self.hello = None
            self._begun = False
            self.extensions = _NO_EXTENSIONS
            self._forget_transaction()
            self._step_up()
        elif not reply.code >= 400:
            raise self._broken(f"STARTTLS was answered {reply}")
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
        """AUTH. The reply is 235 when the credentials are good.

        :param mechanism: SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER or XOAUTH2; None: the strongest offered
            that the credentials fit.
        :param token: an OAuth access token, in place of a password.
        :param allow_plaintext: without TLS, too, send what anybody on the way could use: PLAIN, LOGIN, tokens.
        :raises AuthenticationFailed: no mechanism is fit, the server makes no sense (the exchange was cancelled with
            ``*``), or it could not prove that it knows the password.
        """
        for text, what in ((username, "username"), (password, "password"), (token, "token")):
            if text is not None:
                _check_secret(text, what)
        if password is None and token is None:
            raise TypeError("login takes a password or a token")
        self._check_ready()
        chosen = sasl.choose(self.extensions.get("AUTH", "").split(), mechanism, username, password, token)
        if chosen.plaintext and not self.tls and not allow_plaintext:
            raise AuthenticationFailed(
                f"{chosen.name} would send the secret in the clear: starttls() first, or say allow_plaintext=True"
            )
        try:
            reply = authenticate(chosen, lambda line: self._ask(line, self.timeouts.command))
        except AuthenticationFailed as error:
            if error.reply is None:  # it said yes, and may be anybody
                self._wire.close(error)
            raise
        self.authenticated = self.authenticated or reply.is_positive
        return reply

    # A transaction

    def from_(self, address: str, ext: Ext = None) -> Reply:
        """MAIL: ``from_("jo@example.com", {"SIZE": 1000})``. ``""`` is the null sender; ``ext`` a str or a mapping."""
        return self._take(self._mail_step(address, ext))

    def to(self, address: str, ext: Ext = None) -> Reply:
        """RCPT: ``to("jo@example.com", "NOTIFY=NEVER")``."""
        return self._take(self._rcpt_step(address, ext))

    def data(self) -> Reply:
        """DATA; ``message`` is next, when the reply is 354."""
        return self._take(self._data_step())

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

        :raises ProtocolError: ``data()`` has not been called.
        """
        reply = self._data_reply
        if reply is None:
            raise ProtocolError("call data() first: a message is sent behind its 354")
        writer = BodyWriter(self, None if reply.code == 354 else reply)
        if source is None:
            return writer
        with writer:
            if writer.reply is None:
                for piece in pieces(source):
                    writer.write(piece)
        assert writer.reply is not None
        return writer.reply

    def bdat(self, data: bytes, *, last: bool = False) -> Reply:
        """BDAT (RFC 3030): a chunk, as it is; ``last`` ends the message."""
        self._check_ready()
        self._wire.check_silence()
        return self._send_chunks([data], last=last)

    def reset(self) -> Reply:
        """RSET."""
        return self._take(self._reset_step())

    # And the rest

    def verify(self, username: str) -> Reply:
        """VRFY."""
        return self._ask(command_lines.line("VRFY", username), self.timeouts.command)

    def noop(self) -> Reply:
        """NOOP."""
        return self._ask(command_lines.line("NOOP"), self.timeouts.command)

    def help(self, topic: str | None = None) -> Reply:
        """HELP."""
        return self._ask(command_lines.line("HELP", topic), self.timeouts.command)

    def command(self, line: str) -> Reply:
        """Any other command that one reply answers: ``command("XCLIENT NAME=spike.example")``.

        :raises ProtocolError: it has a method of its own.
        """
        if line.split(" ", 1)[0].upper() in _NOT_PLAIN:
            raise ProtocolError(f"{line.split(' ', 1)[0].upper()} has a method of its own: use that")
        return self._ask(command_lines.line(line), self.timeouts.command)

    def pipeline(self) -> Pipeline:
        """A group of commands in one write: ``with mail.pipeline() as batch: batch.from_(...); batch.to(...)``."""
        return Pipeline(self)

    def quit(self) -> Reply:
        """QUIT, and hang up, whatever the reply."""
        try:
            return self._ask(command_lines.line("QUIT"), self.timeouts.command)
        finally:
            self.close()

    def close(self) -> None:
        """Hang up without a word; closing twice is fine."""
        self._wire.close()

    def __enter__(self) -> SMTPClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            # Where a message is expected, QUIT would be its text.
            if kind is None and not self.closed and not self._message_expected:
                self._ask(command_lines.line("QUIT"), min(GOODBYE_SECONDS, self.timeouts.command))
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
        to_ext: Ext = None,
        raise_on_partial: bool = False,
    ) -> Sent:
        """Send a message; greet and step up to TLS first, as ``starttls=`` says, where that has not happened.

        :param message: an EmailMessage, bytes, or a binary file, which is read from where it stands.
        :param sender: None: the message's Sender or From.
        :param recipients: None: the message's To, Cc and Bcc. Bcc is removed then, and from an EmailMessage always.
        :param from_ext: parameters for MAIL besides SIZE, BODY and SMTPUTF8, which are seen to: ``{"RET": "HDRS"}``.
        :param to_ext: parameters for each RCPT: ``"NOTIFY=FAILURE"``.
        :param raise_on_partial: raise PartiallyRefused when some recipients are refused; else that is in the result.
        :raises SenderRefused, RecipientsRefused, DataRefused: nobody took it; their base is Refused.
        :raises NotOffered: the message needs an extension that the peer does not have.
        :raises Disconnected: with ``may_retry`` false where the peer may have the message.
        :raises ClientError: the base of all of them.
        """
        outgoing = Outgoing(message, sender, recipients, from_ext=from_ext, to_ext=to_ext)
        try:
            return self.send_prepared(outgoing, raise_on_partial=raise_on_partial)
        finally:
            outgoing.close()

    def send_prepared(self, outgoing: Outgoing, *, raise_on_partial: bool = False, reset_first: bool = False) -> Sent:
        """``send``, of what can be sent several times.

        :param reset_first: RSET goes before the rest, in the same write.
        """
        if not self._begun:
            self.begin()
        return transact(self, outgoing, raise_on_partial=raise_on_partial, reset_first=reset_first)

    def begin(self) -> Reply:
        """What ``send`` does before the first message, as far as it has not been done: EHLO (HELO where that is
        refused; LHLO), and TLS, as ``starttls=`` says. The reply is the one that counts.

        :raises HelloRefused: the greeting was refused.
        :raises TLSRefused: TLS is required, and not to be had.
        """
        reply = self._greet() if self.hello is None else self.hello
        if self.tls or self.starttls_policy == "never":
            self._begun = True
            return reply
        required = self.starttls_policy == "require"
        if "STARTTLS" not in self.extensions:
            if required:
                raise TLSRefused('the peer does not offer STARTTLS, and starttls="require"')
            self._begun = True
            return reply
        answer = self.starttls()
        if answer.code == 220:
            reply = self._greet()
        elif required:
            raise TLSRefused(f'the peer refuses STARTTLS, and starttls="require": {answer}', answer)
        self._begun = True
        return reply

    def _greet(self) -> Reply:
        if self.lmtp:
            reply = self.lhlo()
        else:
            reply = self.ehlo()
            # RFC 5321 section 3.2. (421 is a good-bye.)
            if reply.is_permanent_failure:
                reply = self.helo()
        if not reply.is_positive:
            raise HelloRefused("the greeting was refused", reply)
        return reply

    # What the methods stand on

    @property
    def _message_expected(self) -> bool:
        return self._data_reply is not None and self._data_reply.code == 354

    def _check_ready(self) -> None:
        if self._message_expected and not self.closed:
            raise ProtocolError("the peer waits for a message: call message(), or close()")

    def _ask(self, line: bytes, seconds: float) -> Reply:
        if self._data_reply is not None:
            self._check_ready()
        self._wire.check_silence()
        return self._wire.exchange(line, 1, self.timeouts.command, seconds)[0]

    def _ask_lines(self, lines: Sequence[bytes]) -> list[Reply]:
        """Their replies, in order; the last may be that to DATA. After a 421 nothing is answered: it is the reply to
        all the rest."""
        if self._data_reply is not None:
            self._check_ready()
        wire, timeouts = self._wire, self.timeouts
        wire.check_silence()
        last_seconds = timeouts.data_start if lines[-1] == b"DATA\r\n" else timeouts.command
        if len(lines) <= MAX_GROUP:
            replies = wire.exchange(b"".join(lines), len(lines), timeouts.command, last_seconds)
        else:
            replies = []
            for start in range(0, len(lines), MAX_GROUP):
                group = lines[start : start + MAX_GROUP]
                replies += wire.exchange(b"".join(group), len(group), timeouts.command, last_seconds)
                if replies[-1].code == 421:
                    break
        if replies[-1].code == 421:
            self.close()
            replies += [replies[-1]] * (len(lines) - len(replies))
        return replies

    def _ask_all(self, steps: Sequence[Step]) -> list[Reply]:
        """The same for a group of steps, each of which notes its reply; one by one where there is no PIPELINING."""
        if "PIPELINING" in self.extensions:
            replies = self._ask_lines([step.line for step in steps])
        else:
            replies = []
            for step in steps:
                if replies and replies[-1].code == 421:
                    replies.append(replies[-1])
                else:
                    replies += self._ask_lines([step.line])
        for step, reply in zip(steps, replies, strict=True):
            step.note(reply)
        return replies

    def _take(self, step: Step) -> Reply:
        reply = self._ask(step.line, step.seconds)
        step.note(reply)
        return reply

    def _plain_step(self, line: bytes) -> Step:
        return Step(line, self.timeouts.command, _nothing)

    def _mail_step(self, address: str, ext: Ext) -> Step:
        return Step(command_lines.mail(address, ext), self.timeouts.command, self._note_mail)

    def _rcpt_step(self, address: str, ext: Ext) -> Step:
        return Step(command_lines.rcpt(address, ext), self.timeouts.command, self._note_rcpt)

    def _reset_step(self) -> Step:
        return Step(b"RSET\r\n", self.timeouts.command, self._note_reset)

    def _data_step(self) -> Step:
        return Step(b"DATA\r\n", self.timeouts.data_start, self._note_data)

    def _note_mail(self, reply: Reply) -> None:
        self._data_reply = None
        if reply.is_positive:
            self._open_transaction = True
            self._recipients = 0

    def _note_rcpt(self, reply: Reply) -> None:
        if reply.is_positive:
            self._recipients += 1

    def _note_reset(self, reply: Reply) -> None:
        if reply.is_positive:
            self._forget_transaction()

    def _note_data(self, reply: Reply) -> None:
        self._data_reply = reply
        if reply.code < 354:
            raise self._broken(f"DATA was answered {reply}")

    def _forget_transaction(self) -> None:
        self._open_transaction = False
        self._recipients = 0
        self._data_reply = None

    # The body

    def _send_body(self, data: bytes) -> None:
        self._wire.send(data, self.timeouts.data)

    def _end_message(self, data: bytes) -> Reply:
        """Send what ends the message, and read what is said to it."""
        self._wire.committed = True
        return self._read_final(data)

    def _read_final(self, data: bytes = b"") -> Reply:
        wire, timeouts = self._wire, self.timeouts
        count = self._recipients if self.lmtp and self._recipients > 1 else 1
        if len(data) > SEND_PIECE:
            wire.send(data, timeouts.data)
            data = b""
        replies = wire.exchange(data, count, timeouts.final, timeouts.final)
        wire.committed = False
        self._forget_transaction()
        self.replies = tuple(replies)
        first = None
        for reply in replies:
            if reply.code >= 300:
                if reply.code < 400:
                    raise self._broken(f"a message was answered {reply}")
                first = first or reply
        return first or replies[-1]

    def _send_chunks(self, chunks: Sequence[bytes], *, last: bool) -> Reply:
        """Some chunks, one behind the other, and their replies: the first refusal, else the last."""
        wire = self._wire
        final = len(chunks) - 1
        for number, chunk in enumerate(chunks):
            ends = last and number == final
            if ends:
                wire.committed = True
            wire.send(f"BDAT {len(chunk)}{' LAST' if ends else ''}\r\n".encode(), self.timeouts.command)
            if chunk:
                wire.send(chunk, self.timeouts.data)
        refusal: Reply | None = None
        reply = None
        for _ in chunks[: final if last else None]:
            reply = wire.reply(self.timeouts.command)
            if not reply.is_positive and refusal is None:
                refusal = reply
        if last:
            if refusal is not None:
                self._recipients = 0  # then LMTP answers the last chunk like any other
            reply = self._read_final()
        assert reply is not None
        return refusal or reply

    def _broken(self, text: str) -> PeerProtocolError:
        error = PeerProtocolError(text, after_content=self._wire.committed)
        self._wire.close(error)
        return error

    # The beginning

    def _read_banner(self) -> None:
        try:
            banner = self._wire.reply(self.timeouts.banner)
        except Disconnected as lost:
            raise CannotConnect(f"connected, but got no banner: {lost}") from lost
        if banner.code != 220:
            raise CannotConnect(f"the banner refuses service: {banner}", banner)
        self.greeting = banner
        for signal in (client_signals.shared.greeting, self.signals.greeting):
            if signal.receivers:
                signal.send(self, reply=banner)

    def _check_verifiable(self, ssl_context: ssl.SSLContext | None, server_hostname: str | None) -> ssl.SSLContext:
        context = ssl_context or self._ssl_context or default_context()
        if context.check_hostname and not (server_hostname or self._server_hostname):
            raise TypeError("say server_hostname=: the certificate must be for a name, and there is none to connect to")
        return context

    def _step_up(self) -> None:
        """The handshake, and what ``secure`` says to it."""
        context = self._check_verifiable(None, None)
        self._wire.start_tls(context, self._server_hostname, self.timeouts.tls)
        try:
            verdict = self._ask_secure()
        except BaseException as error:
            self._wire.close(error)
            raise
        if not verdict.is_positive:
            rejected = TLSUnverified(f"a handler of secure rejects the peer: {verdict}")
            self._wire.close(rejected)
            raise rejected
        for signal in (client_signals.shared.tls, self.signals.tls):
            if signal.receivers:
                signal.send(self)

    def _ask_secure(self) -> Reply:
        """What the receivers of ``secure`` decide, at once or later; whoever lets the ack go undecided has refused."""
        receivers = [
            receiver
            for signal in (client_signals.shared.secure, self.signals.secure)
            for receiver in signal.receivers_for(self)
        ]
        if not receivers:
            assert _SECURE.unheard is not None
            return _SECURE.unheard
        decision = Decision(_SECURE)
        ack = Ack(decision)
        try:
            for receiver in receivers:
                receiver(self, ack=ack)
            if decision.reply is None:
                alive = decision.watch(ack)
                del ack, receiver  # from here on, only receivers hold it
                self._wire.timed(self.timeouts.command, lambda: decision.wait(alive))
        except Reject as reject:
            return Reply(reject.code, reject.message or "rejected")
        except TimeoutError as error:
            raise TLSUnverified(f"no handler of secure has decided: {error}") from error
        finally:
            decision.closed = True
        return decision.reply or Reply(554, "5.7.0 it let the ack go without deciding")


def _nothing(reply: Reply) -> None:
    """Nothing is to be noted."""


def _read_extensions(reply: Reply) -> dict[str, str]:
    extensions: dict[str, str] = {}
    for line in reply.lines[1:]:
        match = _KEYWORD.fullmatch(line.strip())
        if match is None:
            continue
        keyword, parameters = match[1].upper(), (match[2] or "").strip()
        if keyword in extensions and parameters:  # AUTH=LOGIN beside AUTH PLAIN, as some servers have it
            parameters = f"{extensions[keyword]} {parameters}".strip()
        extensions[keyword] = parameters
    return extensions


def _own_name(sock: Any) -> str:
    """RFC 5321 section 4.1.4: a name with a domain, or an address literal. No look-up: that could take long."""
    name = socket.gethostname()
    if "." in name and name.isascii() and name.isprintable() and " " not in name:
        return str(name)
    address = sock.getsockname()
    if isinstance(address, tuple) and address:
        host = address[0].partition("%")[0]
        return f"[IPv6:{host}]" if ":" in host else f"[{host}]"
    return "localhost"


def _check_secret(text: str, what: str) -> None:
    """As ``command_lines.check``, but without showing it."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str")
    if any(character in text for character in "\r\n\0"):
        raise ProtocolError(f"{what} cannot have CR, LF or NUL in it")


__all__ = ["SMTPClient", "StartTLS", "connect", "default_context"]
