"""A client's connection: opening it, the banner, TLS, signals and closing. Subclasses have the commands."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

from greensmtp.client import dial, signals
from greensmtp.client import tls as client_tls
from greensmtp.client.exchange import CommandExchange
from greensmtp.client.options import UNVERIFIED, StartTLS, check_starttls, format_proxy
from greensmtp.client.signals import ClientSignals, GreetingHandler, SecureHandler, TLSHandler
from greensmtp.client.thread_end import endpoints_of_this_thread
from greensmtp.client.timeouts import Timeouts
from greensmtp.client.transport import ClientTransport
from greensmtp.errors import CannotConnect, ClientError, Disconnected
from greensmtp.protocol import command_builder, esmtp, hosts
from greensmtp.protocol.proxy_header import ProxyHeader
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import Ack

_Greeting = TypeVar("_Greeting", bound=GreetingHandler)
_TLS = TypeVar("_TLS", bound=TLSHandler)
_Secure = TypeVar("_Secure", bound=SecureHandler)

#: Timeout, in seconds, of the QUIT at the end of a ``with`` block.
QUIT_SECONDS = 5.0


class ClientConnection:
    """An open connection whose banner has been read. The base of ``SMTPClient``."""

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        path: str | Path | None = None,
        stream: Any = None,
        tls: bool | ssl.SSLContext = False,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float | Timeouts | None = None,
        source_address: tuple[str, int] | None = None,
        local_hostname: str | None = None,
        on_secure: SecureHandler | None = None,
        starttls: StartTLS | None = None,
        lmtp: bool = False,
        ignore: str | Iterable[str] = (),
        proxy: ProxyHeader | None = None,
    ) -> None:
        """See ``connect``."""
        endpoints_of_this_thread()
        self.timeouts: Timeouts = Timeouts.of(timeout)
        if isinstance(tls, ssl.SSLContext):
            ssl_context = ssl_context or tls
        check_starttls(starttls, tls=bool(tls), ssl_context=ssl_context)
        if path is not None:
            path = dial.check_path(path)
        if stream is None and path is None:
            host, port = dial.read_place("localhost" if host is None else host, port)
            if port is None:
                port = dial.PORTS["smtps" if tls else "lmtp" if lmtp else "smtp"]
        if local_hostname is not None:
            local_hostname = dial.hello_name(local_hostname, "local_hostname")
        dial.check_source(source_address)
        self._ignored = esmtp.check_ignored(ignore)
        #: The PROXY header, which is sent before anything else; empty for none.
        self._header = format_proxy(proxy)
        self._implicit_tls = bool(tls)
        self._ssl_context = ssl_context
        name = server_hostname or host
        self._server_hostname = hosts.fit_for_tls(name) if name else None
        self._starttls_given = starttls
        self.starttls_policy: StartTLS = starttls or "offered"
        self.signals: ClientSignals = ClientSignals()
        if on_secure is not None:
            self.signals.secure.connect(on_secure, weak=False)
        #: The banner.
        self.greeting: Reply | None = None
        #: True once ``login`` has succeeded.
        self.authenticated: bool = False
        #: True once EHLO and STARTTLS are done as ``starttls_policy`` says.
        self._begun = False
        self._unix = path is not None
        #: True once the server has accepted XCLIENT.
        self._is_xclient = False
        #: Returns a new socket connected to the same server; None if the caller passed ``stream``.
        self._dial: Callable[[], dial.Socket] | None = None
        if stream is None:
            self._dial = partial(dial.dial, host, port, path, source_address, self.timeouts.connect)
        pid = os.getpid()
        sock = dial.adopt(stream) if self._dial is None else self._dial()
        try:
            if os.getpid() != pid:
                raise RuntimeError("this process was forked while it connected: connect() in the child")
            self.local_hostname: str = local_hostname or dial.own_name(sock)
        except BaseException:
            sock.close()
            raise
        self._start(sock, lmtp=lmtp)

    def _start(self, sock: dial.Socket, *, lmtp: bool) -> None:
        """Take over a connected socket, send the PROXY header, and read the banner."""
        try:
            self._transport = ClientTransport(sock)
        except BaseException:
            sock.close()
            raise
        self._exchange = CommandExchange(self._transport, self.timeouts, lmtp=lmtp)
        try:
            if self._header:
                self._send_header()
            if self._implicit_tls and not self._transport.tls:
                self._upgrade_to_tls(self._checked_context(None, None))
            self._read_banner()
        except BaseException as error:
            self._transport.close(error)
            raise

    def _send_header(self) -> None:
        if self._transport.tls:
            raise ValueError(
                "expected a stream without TLS beside proxy=, since the header goes first; got one with it"
            )
        try:
            self._transport.send(self._header, self.timeouts.command)
        except Disconnected as error:
            raise CannotConnect(f"connected, but cannot send the PROXY header: {error}") from error

    @property
    def _is_renewable(self) -> bool:
        """True if another connection to the server can take the place of this one."""
        return self._dial is not None and not self.authenticated and not self._is_xclient

    def _reconnect(self) -> None:
        """Connect to the same server again, read the banner, and reset the session's state."""
        assert self._dial is not None
        trace = self._exchange.trace
        self._begun = False
        self._start(self._dial(), lmtp=self.lmtp)
        self._exchange.trace = self._exchange.trace or trace

    def _read_banner(self) -> None:
        try:
            banner = self._transport.read_reply(self.timeouts.banner)
        except Disconnected as error:
            hint = (
                ""
                if self.tls or self.lmtp or self._unix
                else "; a server that begins with TLS needs tls=True (smtps://)"
            )
            raise CannotConnect(f"connected, but got no banner: {error}{hint}") from error
        if banner.code != 220:
            raise CannotConnect(f"the banner refuses service: {banner}", banner)
        self.greeting = banner
        for signal in (signals.shared.greeting, self.signals.greeting):
            if signal.receivers:
                signal.send(self, reply=banner)

    # State

    @property
    def tls(self) -> bool:
        """True if TLS is up."""
        return self._transport.tls

    @property
    def tls_verified(self) -> bool:
        """True if TLS is up, and the server was verified: by its certificate and name, or by a handler of ``secure``.

        ``require_tls`` needs that.
        """
        return self._transport.verified

    @property
    def closed(self) -> bool:
        """True if the connection is closed."""
        return self._transport.closed

    @property
    def socket(self) -> Any:
        """The gevent socket; with TLS, the SSLSocket (``getpeercert``, ``cipher``)."""
        return self._transport.socket

    @property
    def lmtp(self) -> bool:
        """True for LMTP: it was asked for, or LHLO was accepted."""
        return self._exchange.lmtp

    @property
    def hello(self) -> Reply | None:
        """The reply to the last EHLO, HELO or LHLO that was accepted."""
        return self._exchange.hello

    @property
    def extensions(self) -> Mapping[str, str]:
        """The extensions that EHLO's reply offers, without those of ``ignore``: upper-case keyword -> its parameters.

        It is empty before EHLO, and again after STARTTLS and XCLIENT. ``greensmtp.protocol.esmtp`` parses the
        parameters: ``esmtp.SIZE.read_offer(mail.extensions)``.
        """
        return self._exchange.extensions

    @property
    def replies(self) -> tuple[Reply, ...]:
        """The replies to the last message: one, or in LMTP one for each recipient that was accepted."""
        return self._exchange.replies

    @property
    def needs_reset(self) -> bool:
        """True if a transaction is open. ``send`` sends RSET before it begins another one."""
        return self._exchange.open_transaction

    @property
    def expects_message(self) -> bool:
        """True if DATA was accepted and the message has not ended: only ``message`` or ``close`` may follow."""
        return self._exchange.message_expected or self._exchange.writing

    def trace(self, show: Callable[[str], object] | None) -> None:
        """Call ``show`` with each line of the dialogue from now on: ``"> RSET"``, ``"< 250 2.0.0 Ok"``; None stops it.

        Passwords, tokens and responses to challenges are shown as ``***``; of a message, only the size is shown.

        :raises TypeError: ``show`` is not callable.
        """
        if show is not None and not callable(show):
            raise TypeError(f"expected a function of one line, or None; got {show!r}")
        self._exchange.trace = None if show is None else partial(self._show, show)

    def _show(self, show: Callable[[str], object], line: str) -> None:
        try:
            show(line)
        except BaseException as error:
            # The reply that failed to be shown has not changed the state yet, so client and server are out of step.
            self._transport.close(error)
            raise

    # Signals

    @overload
    def on(self, name: Literal["greeting"], handler: _Greeting) -> _Greeting: ...
    @overload
    def on(self, name: Literal["tls"], handler: _TLS) -> _TLS: ...
    @overload
    def on(self, name: Literal["secure"], handler: _Secure) -> _Secure: ...
    @overload
    def on(self, name: Literal["greeting"], handler: None = ...) -> Callable[[_Greeting], _Greeting]: ...
    @overload
    def on(self, name: Literal["tls"], handler: None = ...) -> Callable[[_TLS], _TLS]: ...
    @overload
    def on(self, name: Literal["secure"], handler: None = ...) -> Callable[[_Secure], _Secure]: ...

    def on(self, name: str, handler: Callable[..., Any] | None = None) -> Any:
        """Connect a handler strongly; without a handler, return the decorator that does.

        The signals are ``greeting`` (client, reply), ``tls`` (client) and ``secure`` (client, ack). A handler that is
        connected after the banner, or after TLS is up, is called at once.

        :raises ValueError: there is no such signal; or it is ``secure``, and TLS is up already.
        """
        signal = self.signals.named(name)

        def connect(handler: Callable[..., Any]) -> Callable[..., Any]:
            if name == "secure" and self.tls:
                raise ValueError("too late for secure: TLS is up (pass on_secure= to connect)")
            signal.connect(handler, weak=False)
            if name == "greeting" and self.greeting is not None:
                handler(self, reply=self.greeting)
            if name == "tls" and self.tls:
                handler(self)
            return handler

        return connect if handler is None else connect(handler)

    # TLS

    def _upgrade_to_tls(self, context: ssl.SSLContext) -> None:
        client_tls.upgrade(self._transport, context, self._server_hostname, self.timeouts, self._ask_secure)
        for signal in (signals.shared.tls, self.signals.tls):
            if signal.receivers:
                signal.send(self)

    def _ask_secure(self, ack: Ack) -> bool:
        """Call the handlers of ``secure``; return False if there are none."""
        called = False
        for signal in (signals.shared.secure, self.signals.secure):
            for handler in list(signal.receivers_for(self)):
                handler(self, ack=ack)
                called = True
        return called

    def _context(self) -> ssl.SSLContext:
        if self._ssl_context is not None:
            return self._ssl_context
        if self.starttls_policy in UNVERIFIED:
            return client_tls.any_context()
        return client_tls.default_context()

    def _checked_context(self, context: ssl.SSLContext | None, server_hostname: str | None) -> ssl.SSLContext:
        """Return the context for a handshake.

        :raises TypeError: the context verifies the server's name, and there is none.
        """
        context = context or self._context()
        if context.check_hostname and not (server_hostname or self._server_hostname):
            raise TypeError("expected a host name, for which the certificate must be; got none: pass server_hostname=")
        return context

    # The end

    def _ask(self, verb: str, argument: str | None = None) -> Reply:
        return self._exchange.send(command_builder.line(verb, argument), self.timeouts.command)

    def quit(self) -> Reply:
        """Send QUIT, and close the connection whatever the reply."""
        try:
            return self._ask("QUIT")
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection without QUIT. Closing twice is harmless."""
        self._transport.close()

    def _abandon(self) -> None:
        """Close the descriptor without sending anything, in a native thread or process other than the connection's."""
        self._transport.abandon("abandon()")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            # If a message is expected, QUIT would become part of it.
            if kind is None and not self.closed and not self._exchange.message_expected:
                self._try_quit()
        finally:
            self.close()

    def _try_quit(self) -> None:
        """Send QUIT, and close the connection; errors are ignored, since all replies have been read."""
        try:
            self._exchange.send(b"QUIT\r\n", min(QUIT_SECONDS, self.timeouts.command))
        except ClientError:
            pass
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "TLS" if self.tls else "open"
        return f"<{type(self).__name__} {self._server_hostname or 'stream'} {state}>"
