"""The server: a gevent StreamServer that speaks SMTP or LMTP."""

from __future__ import annotations

import socket as native_socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gevent import get_hub, spawn_raw
from gevent import socket as gevent_socket

from greensmtp._log import logger
from greensmtp.chain.chain import Chain, Middleware, check_middleware
from greensmtp.chain.start import start_each, stop_each
from greensmtp.protocol import canned
from greensmtp.protocol.command import parse_command
from greensmtp.protocol.esmtp import Extension, line_room
from greensmtp.protocol.lenient_path import LENIENT_PARSERS
from greensmtp.server.acceptor import Acceptor
from greensmtp.server.certificates import Certificates
from greensmtp.server.continuations import CONTINUATIONS
from greensmtp.server.dispatcher import Dispatcher
from greensmtp.server.extensions import Offer, read_switches
from greensmtp.server.handler import ConnectionHandler
from greensmtp.server.hub_watch import hub_watch
from greensmtp.server.limits import Limits, LimitsDict
from greensmtp.server.listener import check_listener
from greensmtp.server.options import (
    check_backlog,
    check_hostname,
    check_limits,
    check_proxy_tls,
    check_tls,
)
from greensmtp.server.places import client_key
from greensmtp.server.proxy import ProxiedHandler
from greensmtp.server.registry import Registry
from greensmtp.server.routes import Routes
from greensmtp.server.shutdown import end_connections
from greensmtp.server.thread import ServerThread
from greensmtp.server.trusted import check_networks
from greensmtp.server.xclient import ProxyVerbs
from greensmtp.session.handlers import ConnectsHandlers
from greensmtp.session.signals import Signals

if TYPE_CHECKING:
    from greensmtp.chain.describe import Stack
    from greensmtp.server.on_mail import Handler as MailHandler


class SMTPServer(Acceptor, ConnectsHandlers):
    """Listens, and gives every connection a greenlet that speaks SMTP or LMTP.

    By itself it relays and stores nothing: connect handlers to its signals (``server.on``), and stack middleware
    (``server.use``). It is a gevent server, with ``start``, ``serve_forever``, ``stop`` and ``address``, and a context
    manager that starts and stops.

    :param listener: where to listen, as gevent takes it: ``("127.0.0.1", 0)``, ``"127.0.0.1:2525"``,
        ``"[::1]:2525"``, a listening socket; or a unix path (a str that begins with ``/`` or ``.``).
    :param hostname: the server's name, in the banner and the reply to EHLO; the machine's own name by default.
    :param middleware: the stack, outermost first.
    :param certfile: a PEM file with the certificate chain; with it, STARTTLS is offered.
    :param keyfile: a PEM file with the private key, if it is not in ``certfile``.
    :param ssl_context: a context instead of the files.
    :param tls: a :class:`greensmtp.Certificates` instead: several certificates, versions and ciphers, certificates of
        clients.
    :param implicit_tls: begin TLS with the connection (RFC 8314), without STARTTLS.
    :param lmtp: speak LMTP (RFC 2033).
    :param extensions: the ESMTP extensions that differ from the usual ones: keyword in EHLO's reply -> True, False, or
        its value: ``{"DSN": True, "CHUNKING": False, "DELIVERBY": 3600}``.
    :param lenient_addresses: accept MAIL and RCPT as devices write them that do not follow RFC 5321, without angle
        brackets and the like.
    :param backlog: connections that the kernel keeps until they are accepted; 1024 by default.
    :param proxy_from: networks, addresses, or ``"unix"``: proxies whose connections begin with a PROXY header (versions
        1 and 2), which names the client. Trust only what is yours.
    :param proxy_tls: TLS that such a proxy has ended, by its header, counts as TLS.
    :param xclient_from: the same of the peers that may send XCLIENT, which names another client.
    :param xforward_from: the same of the peers that may send XFORWARD, which names another client for logs.
    :param limits: a :class:`greensmtp.Limits`. Its fields are also keywords here: ``max_message_size=...`` and so on.
    :raises ValueError, TypeError: an argument is invalid; the text says what it takes.
    """

    #: Seconds that ``stop`` gives to transactions in progress.
    stop_timeout: float = 30.0

    #: Seconds after ``start`` within which the hub of the thread must run; if not, a warning is logged. 0: no warning.
    hub_timeout: float = 5.0

    def __init__(
        self,
        listener: Any,
        *,
        hostname: str | None = None,
        middleware: Iterable[Middleware] = (),
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        ssl_context: ssl.SSLContext | None = None,
        tls: Certificates | None = None,
        implicit_tls: bool = False,
        lmtp: bool = False,
        extensions: Mapping[str, Any] | None = None,
        lenient_addresses: bool = False,
        backlog: int | None = None,
        proxy_from: Iterable[str] | None = None,
        proxy_tls: bool = False,
        xclient_from: Iterable[str] | None = None,
        xforward_from: Iterable[str] | None = None,
        limits: Limits | None = None,
        **each_limit: Unpack[LimitsDict],
    ) -> None:
        check_listener(listener)
        if not isinstance(middleware, Iterable):
            raise TypeError(f"middleware takes a list, outermost first: [{middleware!r}], not {middleware!r}")
        self._proxies = check_networks("proxy_from", proxy_from)
        self._proxy_tls = check_proxy_tls(proxy_tls, self._proxies)
        self._proxy_verbs = ProxyVerbs(
            check_networks("xclient_from", xclient_from), check_networks("xforward_from", xforward_from)
        )
        self.limits: Limits = check_limits(dict(each_limit), SMTPServer.__init__.__kwdefaults__ or (), limits)
        self.hostname: str = check_hostname(hostname)
        self._tls = check_tls(certfile, keyfile, ssl_context, tls, implicit=implicit_tls)
        self.implicit_tls = implicit_tls
        #: True if it speaks LMTP.
        self.lmtp = lmtp
        self._switches = read_switches({} if extensions is None else extensions)
        self._parse = partial(parse_command, parsers=LENIENT_PARSERS) if lenient_addresses else parse_command
        #: The signals of this server; those of ``greensmtp.signals`` are sent by all servers of the process.
        self.signals: Signals = Signals(lmtp=lmtp)
        self._registry: Registry[ConnectionHandler] = Registry(self.limits)
        self.connections: set[ConnectionHandler] = self._registry.connections
        self._middleware: list[Middleware] = []
        #: Middleware whose ``start`` has been called, and whose ``stop`` has not.
        self._started_middleware: list[Middleware] = []
        self._routes: Routes | None = None
        #: Ends the wait for the hub to run.
        self._stop_hub_watch: Callable[[], None] | None = None
        super().__init__(listener, backlog=check_backlog(backlog))
        for each in middleware:
            self.use(each)

    # Building

    def use(self, middleware: Middleware) -> Middleware:
        """Add a middleware to the stack, inside the others, and return it. Works as a decorator.

        :raises TypeError: it cannot be called as ``(session, command, proceed)``; the text shows its signature.
        :raises RuntimeError: the server has started.
        """
        if self.started:
            raise RuntimeError("the middleware stack is frozen once the server has started: call use() before start()")
        check_middleware(middleware)
        self._middleware.append(middleware)
        self._routes = None  # adopted connections keep theirs; the next one gets new ones
        return middleware

    @property
    def stack(self) -> Stack:
        """The middleware, outermost first. A tuple; its ``str`` is a table with the verbs that each one sees."""
        from greensmtp.chain.describe import Stack  # few programs print it

        return Stack(self._middleware)

    def _check_signal(self, name: str) -> None:
        self.signals.named(name)

    def _connect_handler(self, name: str, handler: Any) -> Any:
        return self.signals._connect_handler(name, handler)

    def on_mail(self, handler: MailHandler) -> MailHandler:
        """Connect a handler of whole messages: ``@server.on_mail``, or ``server.on_mail(handler)``.

        It is called once for a message, as ``handler(mail)`` with a :class:`greensmtp.Mail`, once the body has arrived.
        If it returns None, the message is accepted; a ``Reply`` that it returns or a ``Reject`` that it raises decides.
        In LMTP it may return a mapping of recipients to replies; a recipient that is missing or has None is accepted.

        :raises TypeError: the handler does not take ``mail``, or it is an ``async def`` or a generator.
        """
        from greensmtp.server.on_mail import connect_mail_handler  # not every server handles whole messages

        return connect_mail_handler(self.signals, handler, lmtp=self.lmtp)

    # Start and stop

    def start(self) -> None:
        """Listen. The middleware stack is frozen from now on, and ``address`` has the real port.

        Middleware that has a ``start`` is started first, outermost first. If one raises or the address cannot be bound,
        what has been started is stopped again, and nothing listens.

        :raises OSError: the address cannot be bound.
        """
        if self.started:
            return
        self.loop = get_hub().loop  # that of the thread that serves, which may not be the one that made the server
        self._routes = self._compose()
        self._registry.draining = False
        try:
            # (Some are started already if close() was called without stop().)
            self._started_middleware += start_each(self._middleware[len(self._started_middleware) :], self)
            super().start()
        except BaseException:
            self._stop_middleware()
            raise
        if self.hub_timeout:
            self._stop_hub_watch = hub_watch.expect(self.loop, self.hub_timeout, self._warn_of_hub)

    def _warn_of_hub(self) -> None:
        """Log that the hub does not run. Called in a native thread of the hub watch."""
        logger.warning(
            "server on %r listens, but the gevent hub of its thread has not run in the %g s since start(): no client "
            "gets a banner. Call server.serve_forever(), or, in a program that is not gevent's, use "
            "server.in_thread() instead of server.start()",
            self.address,
            self.hub_timeout,
        )

    def __enter__(self) -> SMTPServer:
        """Start the server; the end of the block stops it."""
        self.start()
        return self

    def _compose(self) -> Routes:
        others: list[Extension] = [*self._proxy_verbs.extensions]
        for middleware in self._middleware:
            others.extend(getattr(middleware, "extensions", ()))
        starttls = self.tls_context is not None and not self.implicit_tls
        offer = Offer(self._switches, self.limits, starttls=starttls, others=others)
        dispatcher = Dispatcher(
            proxy_verbs=self._proxy_verbs,
            hostname=self.hostname,
            lmtp=self.lmtp,
            limits=self.limits,
            signals=self.signals,
            offer=offer,
        )
        return Routes(
            Chain(self._middleware),
            dispatcher,
            self.limits,
            line_room(offer.extensions),
            CONTINUATIONS,
            lmtp=self.lmtp,
            parse=self._parse,
            tls_context=self._context_for_handshake,
        )

    def adopt(self, socket: Any, peer: Any = None) -> None:
        """Serve a connection that was accepted elsewhere. The server need not listen.

        :param socket: a gevent socket; if it is a gevent ``SSLSocket``, TLS is up from the start.
        :param peer: the client's address, as ``accept`` returns it; None: the socket's own ``getpeername()``.
        :raises OSError: ``peer`` is None, and the client is gone.
        :raises TypeError: it is a socket of the standard library, which would block the hub.
        """
        if isinstance(socket, native_socket.socket) and not isinstance(socket, gevent_socket.socket):
            raise TypeError(f"adopt() takes a gevent socket, which does not block the hub, not {socket!r}")
        if self._routes is None:
            self._routes = self._compose()
        if not self.started and not self.connections:
            self.loop = get_hub().loop  # as in start()
        self.do_handle(socket, socket.getpeername() if peer is None else peer)

    def do_read(self) -> Any:
        """Accept one connection, unless many that were accepted have not begun yet. In the hub."""
        return None if self._registry.is_behind else super().do_read()

    def do_handle(self, socket: Any, peer: Any) -> None:
        """Give a new connection its greenlet. In the hub; gevent calls it."""
        address = client_key(peer)
        if not self._registry.has_room(address):
            _turn_away(socket, silently=self.implicit_tls)
            return
        assert self._routes is not None
        try:
            socket.settimeout(None)  # whatever socket.setdefaulttimeout says: the deadline monitor sees to timeouts
            is_proxied = self._proxies is not None and peer in self._proxies
            handler = (ProxiedHandler if is_proxied else ConnectionHandler)(
                self, self._routes, self._registry, socket, peer, address=address, tls_first=self.implicit_tls
            )
            if isinstance(handler, ProxiedHandler):
                handler.proxy_tls = self._proxy_tls
        except Exception:
            socket.close()
            raise
        self._registry.add(handler, self.loop)
        spawn_raw(handler.run)

    def in_thread(self) -> ServerThread[SMTPServer]:
        """Return this server in a native thread with its own hub, for programs that do not use gevent.

        Use it as ``with server.in_thread(): ...``. Handlers run in that thread.
        """
        return ServerThread(self)

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context of STARTTLS and implicit TLS; None without a certificate."""
        return self._tls.context if isinstance(self._tls, Certificates) else self._tls

    @property
    def certificate(self) -> bytes | None:
        """The server's own certificate in DER, the default one; None if it is not known."""
        return getattr(self.tls_context, "certificate", None)

    def _context_for_handshake(self) -> ssl.SSLContext:
        """Return the context, with certificates that have changed."""
        assert self._tls is not None
        return self._tls.refresh() if isinstance(self._tls, Certificates) else self._tls

    @property
    def draining(self) -> bool:
        """True once ``stop`` has been called: no connection is accepted, and no transaction begins."""
        return self._registry.draining

    def replace(self, other: SMTPServer) -> None:
        """Take the place of a server whose connections go on: they count for this one's ``max_connections``, too.

        Call it before ``start``.
        """
        self._registry.share_places(other._registry)

    def stop(self, timeout: float | None = None, *, grace: float = 0.0) -> None:
        """Stop listening, let transactions in progress finish, then return.

        Clients that are between two transactions get 421 at once, the others when their transaction is over. What is
        left after ``timeout`` seconds (``stop_timeout`` by default) gets 421 and is cut off, in the middle of a body or
        a handler too. That takes one second more at most. Handlers of ``disconnect`` may use what is left of the
        timeout, up to 5 seconds. Middleware that has a ``stop`` is stopped last, innermost first.

        :param grace: seconds for which connections go on before that, as if nothing had happened.
        """
        self.close()
        if grace:
            self._registry.wait_until_none(self._registry.open_connections, grace)
        end_connections(self._registry, self.loop, self.stop_timeout if timeout is None else timeout)
        self._stop_middleware()

    def _stop_middleware(self) -> None:
        started, self._started_middleware = self._started_middleware, []
        stop_each(started, self)

    def close(self) -> None:
        """Stop listening; connections go on."""
        if self._stop_hub_watch is not None:
            self._stop_hub_watch()
            self._stop_hub_watch = None
        super().close()


def _turn_away(socket: Any, *, silently: bool) -> None:
    """Refuse a connection without waiting. In the hub."""
    try:
        if not silently:
            socket.settimeout(0.0)
            socket.send(canned.TOO_MANY_CONNECTIONS.encode())  # an empty send buffer takes a line
            socket.shutdown(native_socket.SHUT_WR)
    except OSError:
        pass  # the client is gone
    finally:
        socket.close()
