"""Connections that many greenlets send through: kept, reused, retired, replaced."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from time import monotonic
from typing import Any
from weakref import ref

from gevent import Timeout, get_hub, getcurrent, joinall, spawn, spawn_later
from gevent.lock import Semaphore

from greensmtp._hostport import is_unix_path
from greensmtp._native import native
from greensmtp.client import dial
from greensmtp.client.client import GOODBYE_SECONDS, SMTPClient, check_policy
from greensmtp.client.connect import connect
from greensmtp.client.deadlines import Timeouts
from greensmtp.client.message import PreparedMessage, Sendable, SendResult
from greensmtp.errors import (
    AuthenticationFailed,
    CannotConnect,
    ClientError,
    Disconnected,
    HelloRefused,
    PeerProtocolError,
    PoolClosed,
    PoolTimeout,
    Refused,
    TLSFailed,
)
from greensmtp.protocol import esmtp, hosts
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl.client import MECHANISMS

logger = logging.getLogger("greensmtp")

#: Seconds for which a host that did not let us in is asked after all others.
AVOID_SECONDS = 30.0

#: Seconds for which credentials that were refused are not tried again.
REFUSED_SECONDS = 300.0

CLOSED = "this pool has been closed"

#: Those of ``connect`` that are for all connections alike.
_OPTIONS = tuple(
    name for name in signature(connect).parameters if name not in ("where", "host", "port", "path", "stream")
)

#: ``"mx.example.com"``, ``"mx.example.com:2525"``, ``("mx.example.com", 25)``, ``"/run/lmtp.sock"``.
Host = str | tuple[str, int]


@dataclass(slots=True, eq=False)
class _Member:
    """A connection of the pool."""

    client: SMTPClient
    host: _Host
    born: float
    last_used: float
    messages: int = 0


class _Host:
    """One place to connect to."""

    __slots__ = ("avoid_until", "options")

    def __init__(self, host: Host, port: int | None) -> None:
        self.avoid_until = 0.0
        self.options: dict[str, Any]
        if is_unix_path(host):
            self.options = {"path": host}
            return
        place = dial.read_place(*host) if isinstance(host, tuple) else hosts.read(host)
        own_port = port if place[1] is None else place[1]
        self.options = {"host": place[0], "port": own_port}
        if own_port is not None:
            hosts.check_port(own_port)

    def avoid(self) -> None:
        """It did not let us in: others first, for a while."""
        self.avoid_until = monotonic() + AVOID_SECONDS


class _Login:
    """The credentials of a pool, and what became of them."""

    def __init__(
        self, username: str, password: Any, token: Any, mechanism: str | None, *, allow_plaintext: bool
    ) -> None:
        self._username = username
        self._password = password
        self._token = token
        self._mechanism = mechanism
        self._allow_plaintext = allow_plaintext
        #: A server has accepted them. Until then they are tried on one connection at a time.
        self.proven = False
        #: The reply of the server that has refused them, what it has refused, and until when they are not tried again.
        self._refusal: Reply | None = None
        self._refused: tuple[Any, Any] = (None, None)
        self._refused_until = 0.0

    def check(self) -> None:
        """
        :raises AuthenticationFailed: these credentials have been refused of late.
        """
        refusal = self._refusal
        if refusal is None:
            return
        if monotonic() < self._refused_until and self._current() == self._refused:
            raise _refused(refusal)
        if refusal is self._refusal:  # a callable may have let other greenlets run
            self._refusal = None
            self._refused = (None, None)

    def log_in(self, client: SMTPClient) -> None:
        """
        :raises AuthenticationFailed: the server refuses the credentials, or cannot be told them.
        """
        password, token = self._current()
        reply = client.login(
            self._username,
            password,
            token=token,
            mechanism=self._mechanism,
            allow_plaintext=self._allow_plaintext,
        )
        self.proven = reply.is_positive
        if reply.is_permanent_failure:
            self._refusal, self._refused = reply, (password, token)
            self._refused_until = monotonic() + REFUSED_SECONDS
        if not reply.is_positive:
            raise _refused(reply)

    @property
    def refused(self) -> bool:
        """No host needs to be asked."""
        return self._refusal is not None

    def _current(self) -> tuple[Any, Any]:
        password, token = self._password, self._token
        return password() if callable(password) else password, token() if callable(token) else token


def _refused(reply: Reply) -> AuthenticationFailed:
    return AuthenticationFailed(f"the server refuses the credentials: {reply}", reply)


class Pool:
    """``with Pool("mx.example.com", 25, size=10) as pool: pool.send(message)``, from any number of greenlets.

    A connection is made when one is needed and none is free; when ``size`` are busy, ``send`` waits. It is reused,
    with RSET in front of the next message, until it is ``max_age`` seconds old, has carried ``max_messages``, or has
    been idle for ``max_idle`` seconds. One that turns out to be dead, or is given a 421, is replaced, and the message
    sent again: only where no server can have taken it.

    A pool may be used by several native threads, each of which has ``size`` connections of its own, and after a fork:
    the child has none of its parent's connections, and makes new ones.

    Credentials that a server refuses (5xx) are tried on no other host. For five minutes, or until a callable gives
    other ones, every send that needs a new connection raises AuthenticationFailed at once.

    :param host: where to; or several of them, of which the first that lets us in is used, and which each may name a
        port of their own (``"mx1.example.com:2525"``).
    :param size: connections at most, in each native thread.
    :param acquire_timeout: seconds that ``send`` waits for a free connection; None: as long as it takes.
    :param username: for ``login``, with ``password`` or ``token`` (a callable is asked anew for each connection),
        ``mechanism`` and ``allow_plaintext``. ``starttls`` is ``"require"`` by default then, but for unix sockets, and
        where ``allow_plaintext`` is given.
    :param options: of ``connect``: ``starttls="require"``, ``tls=True``, ``lmtp=True``, ``timeout=...``.
    """

    def __init__(
        self,
        host: Host | Sequence[Host] = "localhost",
        port: int | None = None,
        size: int = 10,
        *,
        max_age: float = 300.0,
        max_messages: int = 100,
        max_idle: float = 30.0,
        acquire_timeout: float | None = None,
        username: str | None = None,
        password: Any = None,
        token: Any = None,
        mechanism: str | None = None,
        allow_plaintext: bool = False,
        **options: Any,
    ) -> None:
        if size < 1 or max_messages < 1 or not max_age > 0 or not max_idle > 0:
            raise ValueError("size, max_age, max_messages and max_idle are more than 0")
        if acquire_timeout is not None and not acquire_timeout > 0:
            raise ValueError(f"acquire_timeout must be more than 0 seconds, or None, not {acquire_timeout!r}")
        _check_options(options)
        one = isinstance(host, str) or (isinstance(host, tuple) and len(host) == 2 and isinstance(host[1], int))
        places: Sequence[Any] = (host,) if one else host
        if not places:
            raise ValueError("a pool needs a host")
        if (username is None) != (password is None and token is None):
            raise ValueError("to log in, a pool needs a username, and a password or a token")
        if mechanism is not None and mechanism.upper() not in MECHANISMS:
            raise ValueError(f"mechanism is one of {', '.join(MECHANISMS)}, not {mechanism!r}")
        self._hosts = [_Host(each, port) for each in places]
        self._login: _Login | None = None
        if username is not None:
            if options.get("starttls") == "opportunistic":
                raise ValueError('starttls="opportunistic" verifies no server, so it cannot be used with a username')
            self._login = _Login(username, password, token, mechanism, allow_plaintext=allow_plaintext)
            if options.get("starttls") is None and not allow_plaintext:
                for place in self._hosts:
                    place.options["starttls"] = None if "path" in place.options else "require"
        self.size = size
        self.max_age = max_age
        self.max_messages = max_messages
        self.max_idle = max_idle
        self.acquire_timeout = acquire_timeout
        self._options = options
        self._closed = False
        #: The connections of each native thread: in the thread itself, and all of them.
        self._here = native("threading", "local")()
        self._everywhere: set[_Connections] = set()

    @property
    def idle(self) -> int:
        """Connections that are open and not in use."""
        return sum(connections.idle for connections in self._living())

    @property
    def busy(self) -> int:
        """Connections that are in use."""
        return sum(connections.busy for connections in self._living())

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
        """As ``SMTPClient.send``, by a connection of the pool; waits while all are busy.

        :raises PoolClosed: ``close`` has been called.
        :raises PoolTimeout: all connections have been busy for ``acquire_timeout`` seconds.
        :raises CannotConnect: no host lets us in; or what the last of them said.
        """
        outgoing = PreparedMessage(message, sender, recipients, from_ext=from_ext, to_ext=to_ext)
        try:
            return self._mine().send(outgoing, raise_on_partial=raise_on_partial)
        finally:
            outgoing.close()

    @contextmanager
    def connection(self) -> Iterator[SMTPClient]:
        """``with pool.connection() as mail:`` lends a connection, for the block: greeted, secured and logged in.

        After the block it goes back to the pool, with RSET where a transaction is open. It is closed instead where it
        is out of step: in the middle of a message, or when the block was killed or timed out.

        :raises PoolClosed, PoolTimeout, CannotConnect: as ``send``.
        """
        connections = self._mine()
        member = connections.check_out()
        completed = False
        try:
            yield member.client
            completed = True
        except Exception:
            completed = True
            raise
        finally:
            connections.check_in(member, completed=completed)

    def close(self, timeout: float = 30.0) -> None:
        """Take no more messages, let those on their way finish for so many seconds, and say QUIT everywhere.

        A ``send`` that still waits for a connection raises PoolClosed, one that is not done by then Disconnected. The
        connections of other native threads are closed in the same way by those threads, and not waited for.
        """
        self._closed = True
        mine = getattr(self._here, "connections", None)
        for connections in self._living():
            if connections is not mine or not connections.is_here():
                connections.close_elsewhere(timeout)
        if mine is not None and mine.is_here():
            mine.close(timeout)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pool of {self.size}: {self.busy} busy, {self.idle} idle{', closed' if self._closed else ''}>"

    # Native threads and processes

    def _mine(self) -> _Connections:
        """The connections of this native thread, in this process."""
        mine: _Connections | None = getattr(self._here, "connections", None)
        return mine if mine is not None and mine.is_here() else self._begin_here(mine)

    def _begin_here(self, before: _Connections | None) -> _Connections:
        self._check_open()
        if before is not None:  # of the process that was forked, or of a hub that was destroyed
            before.abandon()
        # (One by one: another native thread may be adding its own at the moment.)
        for connections in set(self._everywhere).difference(self._living()):
            self._everywhere.discard(connections)
        mine = _Connections(self)
        self._everywhere.add(mine)
        self._here.connections = mine
        self._here.end = end = _ThreadEnd()
        mine.ends_with(end)
        return mine

    def _living(self) -> list[_Connections]:
        pid = os.getpid()
        return [connections for connections in list(self._everywhere) if connections.pid == pid]

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed(CLOSED)


class _ThreadEnd:
    """Stands among a native thread's local variables, and is gone when the thread is."""

    __slots__ = ("__weakref__",)


class _Connections:
    """The connections of a pool in one native thread. All but ``close_elsewhere`` is called there."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.hub = get_hub()
        self.pid = os.getpid()
        self._hosts = pool._hosts
        self._login = pool._login
        #: One for each connection that may be busy.
        self._free = Semaphore(pool.size)
        #: The one used last is taken first, so that those too many grow old.
        self._idle: deque[_Member] = deque()
        self._busy: set[_Member] = set()
        #: Greenlets that are waiting for a place, or for a connection to be made.
        self._waiting: set[Any] = set()
        #: Held by the one that tries credentials which have not been accepted yet.
        self._trying = Semaphore(1)
        self._goodbyes: set[Any] = set()
        self._retiring: Any = None
        #: The pool has been closed, and those that were on their way have had their time.
        self._abandoned = False
        self._end: Any = None

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        return self._pool.size - int(self._free.counter)

    def is_here(self) -> bool:
        """This is their native thread, with the hub that they were made with, and their process."""
        return self.hub is get_hub() and self.pid == os.getpid()

    def ends_with(self, end: _ThreadEnd) -> None:
        """Let go of everything when this native thread is over: nothing runs there any more then."""
        self._end = ref(end, lambda _: self.abandon())

    def abandon(self) -> None:
        """Close all descriptors, and say nothing to the servers."""
        self._pool._everywhere.discard(self)
        for member in [*self._idle, *self._busy]:
            member.client._abandon()
        self._idle.clear()

    def close_elsewhere(self, timeout: float) -> None:
        """Have their own native thread close them."""
        try:
            self.hub.loop.run_callback_threadsafe(spawn, self.close, timeout)
        except Exception:  # it has destroyed its hub
            self.abandon()

    def close(self, timeout: float) -> None:
        """See ``Pool.close``."""
        if self._retiring is not None:
            self._retiring.kill(block=False)
            self._retiring = None
        taken = 0
        try:
            with Timeout(timeout, False):  # type: ignore[arg-type]
                for _ in range(self._pool.size):
                    self._free.acquire()
                    taken += 1
        finally:
            self._abandoned = True
            for _ in range(taken):
                self._free.release()
            for greenlet in self._waiting:
                self.hub.loop.run_callback(self._give_up, greenlet)
            for member in list(self._busy):
                member.client.close()
            while self._idle:
                self._part(self._idle.pop())
        joinall(list(self._goodbyes), timeout=GOODBYE_SECONDS)

    # One message

    def send(self, outgoing: PreparedMessage, *, raise_on_partial: bool) -> SendResult:
        """See ``Pool.send``."""
        self._acquire()
        try:
            #: Hosts that have let us in just now, only to give us up.
            failed: set[_Host] = set()
            while True:
                if self._abandoned:
                    self._pool._check_open()
                member, fresh = self._take(failed)
                try:
                    return self._send(member, outgoing, fresh=fresh, raise_on_partial=raise_on_partial)
                except (Disconnected, PeerProtocolError, Refused) as error:
                    gone = not isinstance(error, Refused) or (error.reply is not None and error.reply.code == 421)
                    if not gone or not error.safe_to_retry:
                        raise
                    # A connection from before may have been given up at any time, and is no reason to give up. A new
                    # one means something: it is the next host's turn.
                    if fresh:
                        member.host.avoid()
                        failed.add(member.host)
                        if len(failed) == len(self._hosts):
                            raise
                    logger.debug("%r is gone: %s", member.client, error)
        finally:
            self._free.release()

    def _acquire(self) -> None:
        """Wait for a place: one for each connection that may be busy. To be released by the caller."""
        pool = self._pool
        pool._check_open()
        if not self._free.acquire(blocking=False):
            greenlet = getcurrent()
            self._waiting.add(greenlet)
            try:
                if not self._free.acquire(timeout=pool.acquire_timeout):
                    raise PoolTimeout(f"all {pool.size} connections have been busy for {pool.acquire_timeout:g} s")
            finally:
                self._waiting.discard(greenlet)
        try:
            pool._check_open()
            if self.pid != os.getpid():
                raise RuntimeError(
                    "this process was forked while send() waited: it is the parent that sends the message"
                )
        except BaseException:
            self._free.release()
            raise

    def _send(self, member: _Member, outgoing: PreparedMessage, *, fresh: bool, raise_on_partial: bool) -> SendResult:
        client = member.client
        self._busy.add(member)
        try:
            return client.send_prepared(outgoing, raise_on_partial=raise_on_partial, reset_first=not fresh)
        except ClientError:
            raise  # and the client knows whether it can go on
        except BaseException:
            client.close()  # killed, or worse, in the middle of something
            raise
        finally:
            self._busy.discard(member)
            member.messages += 1
            self._give_back(member)

    # One connection

    def check_out(self) -> _Member:
        """A connection that is known to be alive, and the place that it takes. See ``Pool.connection``."""
        self._acquire()
        try:
            while True:
                if self._abandoned:
                    self._pool._check_open()
                member, fresh = self._take(frozenset())
                self._busy.add(member)
                try:
                    if fresh or member.client.reset().is_positive:
                        return member
                    member.client.close()
                except ClientError:
                    pass  # and the connection is closed
                except BaseException:
                    member.client.close()
                    raise
                self._busy.discard(member)
        except BaseException:
            self._free.release()
            raise

    def check_in(self, member: _Member, *, completed: bool) -> None:
        """Take it back."""
        client = member.client
        try:
            if not completed or client.expects_message:
                client.close()
            elif client.needs_reset and not client.closed:
                with Timeout(GOODBYE_SECONDS, False):  # type: ignore[arg-type]
                    client.reset()
        except ClientError:
            pass  # and the connection is closed
        finally:
            self._busy.discard(member)
            member.messages += 1
            self._give_back(member)
            self._free.release()

    def _take(self, failed: Set[_Host]) -> tuple[_Member, bool]:
        """A connection, and whether it is new; not to a host that has just failed."""
        now = monotonic()
        while self._idle:
            member = self._idle.pop()
            if member.host in failed or self._is_over(member, now):
                self._part(member)
                continue
            return member, False
        return self._connect(failed), True

    def _is_over(self, member: _Member, now: float) -> bool:
        return (
            member.client.closed
            or now - member.last_used >= self._pool.max_idle
            or now - member.born >= self._pool.max_age
            or member.messages >= self._pool.max_messages
        )

    def _give_back(self, member: _Member) -> None:
        if member.client.closed:
            return
        member.last_used = monotonic()
        if self._pool._closed or self._is_over(member, member.last_used):
            self._part(member)
            return
        self._idle.append(member)
        if self._retiring is None:
            self._retiring = spawn_later(min(self._pool.max_idle, self._pool.max_age), self._retire)

    # Connections

    def _connect(self, failed: Set[_Host]) -> _Member:
        """To the first host that lets us in; those that did not of late are asked last."""
        greenlet = getcurrent()
        self._waiting.add(greenlet)
        try:
            login = self._login
            if login is None:
                return self._connect_to_any(failed)
            login.check()
            if login.proven:
                return self._connect_to_any(failed)
            # Ten greenlets with a wrong password would be ten failures at once, and an account that is locked.
            with self._trying:
                login.check()
                return self._connect_to_any(failed)
        finally:
            self._waiting.discard(greenlet)

    def _connect_to_any(self, failed: Set[_Host]) -> _Member:
        now = monotonic()
        failure: ClientError | None = None
        for host in sorted(self._hosts, key=lambda host: host.avoid_until > now):
            if host in failed:
                continue
            try:
                client = self._open(host)
            except (
                CannotConnect,
                TLSFailed,
                HelloRefused,
                AuthenticationFailed,
                Disconnected,
                PeerProtocolError,
            ) as error:
                if isinstance(error, AuthenticationFailed) and self._login is not None and self._login.refused:
                    raise
                host.avoid()
                failure = error
                continue
            host.avoid_until = 0.0
            now = monotonic()
            return _Member(client, host, born=now, last_used=now)
        assert failure is not None
        raise failure

    def _give_up(self, greenlet: Any) -> None:
        """End its wait. Only in the hub."""
        if greenlet in self._waiting:
            greenlet.throw(PoolClosed(CLOSED))

    def _open(self, host: _Host) -> SMTPClient:
        client = connect(**{**self._pool._options, **host.options})
        try:
            client.begin()
            if self._login is not None:
                self._login.log_in(client)
        except BaseException:
            client.close()
            raise
        return client

    def _retire(self) -> None:
        """Part with those that are idle for too long; come back when the next of them will be."""
        self._retiring = None
        now = monotonic()
        for member in [member for member in self._idle if self._is_over(member, now)]:
            self._idle.remove(member)
            self._part(member)
        if self._idle and not self._pool._closed:
            due = min(
                min(member.last_used + self._pool.max_idle, member.born + self._pool.max_age) for member in self._idle
            )
            self._retiring = spawn_later(max(due - monotonic(), 0.01), self._retire)

    def _part(self, member: _Member) -> None:
        """Say QUIT, without waiting for the answer."""
        if member.client.closed:
            return
        goodbye = spawn(_say_goodbye, member.client)
        self._goodbyes.add(goodbye)
        goodbye.rawlink(self._goodbyes.discard)


def _check_options(options: Mapping[str, Any]) -> None:
    """What ``connect`` would say to each of them, now rather than at the first message.

    :raises TypeError: there is no such option, or it makes no sense for several connections.
    :raises ValueError: it is out of range.
    """
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"a pool has no option {name!r} (beyond its own: {', '.join(_OPTIONS)})")
    Timeouts.of(options.get("timeout"))
    check_policy(options.get("starttls"), tls=bool(options.get("tls")), ssl_context=options.get("ssl_context"))
    esmtp.check_ignored(options.get("ignore") or ())
    if options.get("server_hostname"):
        hosts.fit_for_tls(options["server_hostname"])
    if options.get("local_hostname") is not None:
        dial.check_name(options["local_hostname"], "local_hostname")


def _say_goodbye(client: SMTPClient) -> None:
    try:
        with Timeout(GOODBYE_SECONDS, False):  # type: ignore[arg-type]
            client.quit()
    except ClientError:
        pass  # it is gone already
    finally:
        client.close()
