"""The server: a gevent StreamServer that speaks SMTP or LMTP."""

from __future__ import annotations

import errno
import os
import socket as native_socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit, get_hub, getcurrent, spawn_raw
from gevent import socket as gevent_socket
from gevent.event import Event
from gevent.server import StreamServer

from greensmtp._hostport import is_unix_path
from greensmtp._log import logger
from greensmtp.chain.chain import Chain, Middleware, check_middleware, start_each, stop_each
from greensmtp.protocol import canned
from greensmtp.protocol.esmtp import STANDARD, Extension, line_room
from greensmtp.server.deadlines import DeadlineMonitor
from greensmtp.server.dispatcher import Dispatcher
from greensmtp.server.handler import CONTINUATIONS, ConnectionHandler
from greensmtp.server.hub_watch import hub_watch
from greensmtp.server.limits import Limits
from greensmtp.server.listener import check_listener, listen, send_at_once
from greensmtp.server.options import check_backlog, check_hostname, check_limits, check_tls_context
from greensmtp.server.places import Places, client_key
from greensmtp.server.routes import Routes
from greensmtp.server.thread import ServerThread
from greensmtp.server.tls import own_certificate
from greensmtp.session.handlers import ConnectsHandlers
from greensmtp.session.signals import Signals

if TYPE_CHECKING:
    from greensmtp.chain.describe import Stack
    from greensmtp.server.on_mail import Handler as MailHandler

#: Out of descriptors or memory: not the listener's fault, and it passes.
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Seconds that ``stop`` waits for connections that it has cut off, twice.
KILL_SECONDS = 0.4

#: Seconds that ``stop`` gives handlers of DISCONNECT at most, of what is left of its timeout.
LEAVE_SECONDS = 5.0

#: Connections that have not got past ACCEPT, at once. They come on top of ``max_connections``.
MAX_ARRIVING = 256

#: Connections that have been told to go, and have not gone yet. They come on top of ``max_connections``, too.
MAX_LINGERING = 100


class SMTPServer(StreamServer, ConnectsHandlers):
    """Listens, and gives every connection a greenlet that speaks SMTP (or LMTP).

    By itself it relays nothing and stores nothing: connect handlers to its signals (``server.on``), stack middleware
    (``server.use``). As a gevent server it has ``start``, ``serve_forever``, ``stop`` and ``address``, and it is a
    context manager that starts and stops.

    :param listener: where to listen, as gevent takes it: ``("127.0.0.1", 0)``, ``"127.0.0.1:2525"``,
        ``"[::1]:2525"``, a listening socket; or a unix path (a str that begins with ``/`` or ``.``).
    :param hostname: the server's name, in the banner and the greeting; the machine's own when not given.
    :param middleware: the stack, outermost first.
    :param certfile, keyfile: PEM files; with them, STARTTLS is offered.
    :param ssl_context: instead of the files.
    :param implicit_tls: TLS from the first octet (RFC 8314), no STARTTLS.
    :param lmtp: speak LMTP (RFC 2033).
    :param limits: a :class:`greensmtp.Limits`; or its keywords are given here, each by itself: ``max_message_size=...``
        and so on.
    :raises ValueError, TypeError: an argument cannot be right; the text says what it takes.
    """

    #: Seconds that ``stop`` gives transactions in progress.
    stop_timeout: float = 30.0

    #: Seconds to leave the listener alone when descriptors or memory have run out.
    accept_pause: float = 0.1

    #: Seconds after ``start`` within which the hub of the thread must run; else a warning is logged. 0: no warning.
    hub_timeout: float = 5.0

    backlog = 1024

    def __init__(
        self,
        listener: Any,
        *,
        hostname: str | None = None,
        middleware: Iterable[Middleware] = (),
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        ssl_context: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        lmtp: bool = False,
        backlog: int | None = None,
        limits: Limits | None = None,
        **each_limit: Any,
    ) -> None:
        check_listener(listener)
        if not isinstance(middleware, Iterable):
            raise TypeError(f"middleware takes several, in the order of the stack: [{middleware!r}]")
        self.limits = check_limits(each_limit, SMTPServer.__init__.__kwdefaults__ or (), limits)
        self.hostname = check_hostname(hostname)
        self.tls_context = check_tls_context(certfile, keyfile, ssl_context, implicit_tls)
        #: The server's own certificate in DER, where it is known, which is with ``certfile``; for channel binding.
        self.certificate = None if certfile is None else own_certificate(certfile)
        self.implicit_tls = implicit_tls
        #: It speaks LMTP.
        self.lmtp = lmtp
        #: It accepts no more connections, and lets go of those it has.
        self.draining = False
        #: This server's own signals; ``greensmtp.signals`` hears all servers.
        self.signals = Signals(lmtp=lmtp)
        self.connections: set[ConnectionHandler] = set()
        self._middleware: list[Middleware] = []
        #: Those that have been told of the start, and not yet of the stop.
        self._told: list[Middleware] = []
        self._program: Routes | None = None
        #: Some connection is over; only while draining.
        self._departure = Event()
        #: Those that count for ``max_connections``.
        self._places: Places[ConnectionHandler] = Places(self.limits.max_connections)
        #: Those that ACCEPT has not answered yet.
        self._arriving: Places[ConnectionHandler] = Places(
            None if self.limits.max_connections is None else MAX_ARRIVING
        )
        #: Those that have been told to go, the first one first.
        self._lingering: dict[ConnectionHandler, None] = {}
        #: Connections that are over, whose DISCONNECT is being handled.
        self._leaving: set[ConnectionHandler] = set()
        self._sweeper = DeadlineMonitor((self.connections, self._leaving), self.limits)
        self._unix_path: str | None = None
        self._paused = False
        #: Ends the wait for the hub to run.
        self._hub_runs: Callable[[], None] | None = None
        super().__init__(listener, backlog=check_backlog(backlog))
        for each in middleware:
            self.use(each)

    # For those who build with it

    def use(self, middleware: Middleware) -> Middleware:
        """Stack one more middleware, inside those there are. Works as a decorator.

        :raises TypeError: it cannot be called as ``(session, command, proceed)``; the text shows what it is instead.
        :raises RuntimeError: the server has started.
        """
        if self.started:
            raise RuntimeError("the middleware stack is frozen once the server has started: call use() before start()")
        check_middleware(middleware)
        self._middleware.append(middleware)
        self._program = None  # connections that were adopted have theirs; the next one gets a new one
        return middleware

    @property
    def stack(self) -> Stack:
        """The middleware, outermost first: a tuple, which printed is a list with the verbs that each sees."""
        from greensmtp.chain.describe import Stack  # for those who look

        return Stack(self._middleware)

    def _check_signal(self, name: str) -> None:
        self.signals.named(name)

    def _connect_handler(self, name: str, handler: Any) -> Any:
        return self.signals._connect_handler(name, handler)

    def on_mail(self, handler: MailHandler) -> MailHandler:
        """Connect a handler of whole messages: ``@server.on_mail``, or ``server.on_mail(handler)``.

        It is called as ``handler(mail)`` with a :class:`greensmtp.Mail` once the body has arrived. When it returns
        None, the message is accepted; a ``Reply`` that it returns, or a ``Reject`` that it raises, decides. In LMTP it
        may return a mapping of recipients and replies; a recipient that is missing, or has None, is accepted. It is
        called once for a message.

        :raises TypeError: the handler cannot be called so, or it is an ``async def`` or a generator.
        """
        from greensmtp.server.on_mail import connect_mail_handler  # not every server handles whole messages

        return connect_mail_handler(self.signals, handler, lmtp=self.lmtp)

    # Start and stop

    def start(self) -> None:
        """Listen. The middleware stack is frozen from here on, and ``address`` tells the real port.

        Middleware that has a ``start`` is told first, outermost first; where one raises, or the address cannot be
        had, those that have been told are told of the stop again, and nothing listens.

        :raises OSError: the address cannot be had.
        """
        if self.started:
            return
        self.loop = get_hub().loop  # that of the thread that serves, not of the one that made the server
        self._program = self._compose()
        self.draining = False
        try:
            # (All of them, unless close() came without stop().)
            self._told += start_each(self._middleware[len(self._told) :], self)
            super().start()
        except BaseException:
            self._tell_stop()
            raise
        if self.hub_timeout:
            self._hub_runs = hub_watch.expect(self.loop, self.hub_timeout, self._warn_of_hub)

    def _warn_of_hub(self) -> None:
        """Runs in a native thread of its own."""
        logger.warning(
            "server on %r listens, but the gevent hub of its thread has not run in the %g s since start(): no client "
            "gets a banner. Call server.serve_forever(), or, in a program that is not gevent's, use "
            "server.in_thread() instead of server.start()",
            self.address,
            self.hub_timeout,
        )

    def __enter__(self) -> SMTPServer:
        """Start; gevent's own does not. The end of the block stops it."""
        self.start()
        return self

    def _compose(self) -> Routes:
        extensions: list[Extension] = list(STANDARD)
        for middleware in self._middleware:
            extensions.extend(getattr(middleware, "extensions", ()))
        dispatcher = Dispatcher(
            hostname=self.hostname,
            lmtp=self.lmtp,
            tls=self.tls_context is not None and not self.implicit_tls,
            limits=self.limits,
            signals=self.signals,
            extensions=extensions,
        )
        return Routes(
            Chain(self._middleware), dispatcher, self.limits, line_room(extensions), CONTINUATIONS, lmtp=self.lmtp
        )

    def adopt(self, socket: Any, peer: Any = "") -> None:
        """Serve a connection that somebody else has accepted; the server need not listen.

        :param socket: gevent's; where it is an ``SSLSocket`` of gevent's, TLS is up from the start.
        :raises TypeError: it is the standard library's, which blocks everybody when its peer is slow.
        """
        if isinstance(socket, native_socket.socket) and not isinstance(socket, gevent_socket.socket):
            raise TypeError(f"adopt takes a socket of gevent's, not {socket!r}")
        if self._program is None:
            self._program = self._compose()
        if not self.started and not self.connections:
            self.loop = get_hub().loop  # as in start()
        self.do_handle(socket, peer)

    def in_thread(self) -> ServerThread[SMTPServer]:
        """This server in a native thread with a hub of its own, for programs that are not gevent's:
        ``with server.in_thread(): ...``. Its handlers run in that thread."""
        return ServerThread(self)

    def stop(self, timeout: float | None = None) -> None:
        """Stop listening, let transactions in progress finish, then return.

        Peers that are between two transactions get 421 at once, the others when theirs is over; what is left after
        ``timeout`` seconds (``stop_timeout`` by default) gets 421 and is cut off, in the middle of a body and of a
        handler, too. That takes one second more at most. Handlers of ``disconnect`` may use what is left of the
        timeout, up to 5 seconds. Middleware that has a ``stop`` is told last, innermost first.
        """
        deadline = monotonic() + (self.stop_timeout if timeout is None else timeout)
        self.close()
        self.draining = True
        if self._others():
            self.loop.run_callback(self._dismiss_idle)
        self._wait_for_others(deadline - monotonic())
        for _ in range(2):  # the second time, those that still linger, and handlers that have not heard the first
            for conversation in self._others():
                self.loop.run_callback(conversation.cut_off, "shutdown")
            self._wait_for_others(KILL_SECONDS)
        self._end_leaving(min(deadline - monotonic(), LEAVE_SECONDS))
        self._tell_stop()

    def _end_leaving(self, patience: float) -> None:
        """Give handlers of DISCONNECT some time to end, then end them; forget what does not end at all."""
        for end, seconds in ((_kill, max(patience, KILL_SECONDS)), (ConnectionHandler.abandon, KILL_SECONDS)):
            self._wait_for(self._left_over, seconds)
            for conversation in self._left_over():
                self.loop.run_callback(end, conversation)
        self._wait_for(self._left_over, KILL_SECONDS)

    def _left_over(self) -> list[ConnectionHandler]:
        me = getcurrent()
        return [each for each in (*self.connections, *self._leaving) if each.greenlet is not me]

    def close(self) -> None:
        """Stop listening; connections go on."""
        if self._hub_runs is not None:
            self._hub_runs()
            self._hub_runs = None
        listening = self.started
        super().close()
        if listening and self._unix_path is not None:
            Path(self._unix_path).unlink(missing_ok=True)

    def _tell_stop(self) -> None:
        told, self._told = self._told, []
        stop_each(told, self)

    def _others(self) -> list[ConnectionHandler]:
        """The connections, but for the one whose handler calls ``stop``: it cannot wait for itself."""
        me = getcurrent()
        return [each for each in self.connections if each.greenlet is not me]

    def _wait_for_others(self, timeout: float) -> None:
        self._wait_for(self._others, timeout)

    def _wait_for(self, which: Callable[[], list[ConnectionHandler]], timeout: float) -> None:
        deadline = monotonic() + timeout
        while which() and (left := deadline - monotonic()) > 0:
            self._departure.clear()
            self._departure.wait(left)

    def _dismiss_idle(self) -> None:
        for conversation in list(self.connections):
            if conversation.is_idle:
                conversation.connection.expire("shutdown")

    # Accepting

    def set_listener(self, listener: Any) -> None:
        """As gevent's, and unix paths."""
        if is_unix_path(listener):
            self.family, self.address = native_socket.AF_UNIX, str(listener)
        else:
            super().set_listener(listener)

    def init_socket(self) -> None:
        """As gevent's; remembers the unix path that is ours to remove."""
        ours = not hasattr(self, "socket") and self.family == native_socket.AF_UNIX
        super().init_socket()
        send_at_once(self.socket)
        self._unix_path = str(self.address) if ours else None

    @classmethod
    def get_listener(cls, address: Any, backlog: int | None = None, family: int | None = None) -> Any:
        """As gevent's, and unix paths."""
        assert family is not None
        return listen(address, cls.backlog if backlog is None else backlog, family)

    def do_read(self) -> Any:
        """Accept one connection; gevent calls it in the hub."""
        try:
            accepted = super().do_read()
        except ConnectionAbortedError:
            return None
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            if not self._paused:
                logger.warning("cannot accept connections for now: %s", os.strerror(error.errno))
            self._paused = True
            # gevent backs off by itself when this raises, but not without a traceback each time.
            self.stop_accepting()
            self._timer = self.loop.timer(self.accept_pause)
            self._timer.start(self._accept_again)
            return None
        if self._paused and accepted:
            self._paused = False
            logger.warning("accepting connections again")
        return accepted

    def _accept_again(self) -> None:
        if self.started:
            self.start_accepting()

    def do_handle(self, socket: Any, peer: Any) -> None:
        """Give a new connection its greenlet, where ACCEPT comes first."""
        if self._arriving.is_full and not self._displace_arriving(client_key(peer)):
            _turn_away(socket, silently=self.implicit_tls)
            return
        assert self._program is not None
        try:
            socket.settimeout(None)  # time-outs are the sweep's, whatever socket.setdefaulttimeout says
            conversation = ConnectionHandler(self, self._program, socket, peer, tls_first=self.implicit_tls)
        except Exception:
            socket.close()
            raise
        self._arriving.take(conversation, conversation.address)
        self._sweeper.start(self.loop)
        self.connections.add(conversation)
        spawn_raw(conversation.run)

    def handle(self, socket: Any, peer: Any) -> None:
        """gevent wants one; ``do_handle`` does the work."""
        raise NotImplementedError

    # Places

    def give_place(self, conversation: ConnectionHandler) -> bool:
        """Give a connection one of the ``max_connections``; False: there is none for it.

        At the limit the addresses with many connections go first: a newcomer from an address that has fewer displaces
        a connection of the busiest address, an idle one if possible.
        """
        if self._places.is_full:
            displaced, best = None, 0
            for other in self._places.crowd(conversation.address):
                displaceable = other.displaceable
                if displaceable > best:
                    displaced, best = other, displaceable
                    if best == 3:
                        break
            if displaced is None:
                return False
            self.take_place_back(displaced)
            self.loop.run_callback(displaced.displace)
        self._places.take(conversation, conversation.address)
        conversation.has_place = True
        return True

    def take_place_back(self, conversation: ConnectionHandler) -> None:
        """A connection no longer counts for ``max_connections``."""
        self._places.give_back(conversation, conversation.address)
        conversation.has_place = False

    def has_arrived(self, conversation: ConnectionHandler) -> None:
        """ACCEPT has been answered."""
        self._arriving.give_back(conversation, conversation.address)

    def _displace_arriving(self, address: str) -> bool:
        """Close a connection of the address that has most before ACCEPT's answer, for one of another address."""
        for other in self._arriving.crowd(address):
            self.has_arrived(other)
            self.loop.run_callback(other.cut_off, "displaced")
            return True
        return False

    def let_linger(self, conversation: ConnectionHandler) -> None:
        """A connection has been told to go: it takes no place, and waits for its client to go, too.

        If there are too many of those, the first of them is closed.
        """
        self.take_place_back(conversation)
        if len(self._lingering) >= MAX_LINGERING:
            first = next(iter(self._lingering))
            del self._lingering[first]
            self.loop.run_callback(first.dismiss, "timeout")
        self._lingering[conversation] = None

    def forget(self, conversation: ConnectionHandler) -> None:
        """A connection is over; its DISCONNECT is to be handled, which takes no place of another connection."""
        self.has_arrived(conversation)
        self.take_place_back(conversation)
        self._lingering.pop(conversation, None)
        self.connections.discard(conversation)
        self._leaving.add(conversation)
        if self.draining:
            self._departure.set()

    def gone(self, conversation: ConnectionHandler) -> None:
        """Nothing of a connection is left."""
        self._leaving.discard(conversation)
        if not self.connections and not self._leaving:
            self._sweeper.stop()
        if self.draining:
            self._departure.set()


def _kill(conversation: ConnectionHandler) -> None:
    greenlet = conversation.greenlet
    if greenlet is not None:
        greenlet.throw(GreenletExit)


def _turn_away(socket: Any, *, silently: bool) -> None:
    """In the hub, so without waiting: an empty send buffer takes a line, or the peer does without it."""
    try:
        if not silently:
            socket.settimeout(0.0)
            socket.send(canned.TOO_MANY_CONNECTIONS.encode())
            socket.shutdown(native_socket.SHUT_WR)
    except OSError:
        pass
    finally:
        socket.close()
