"""Connections that many greenlets send through: kept, reused, retired, replaced."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from inspect import signature
from time import monotonic
from typing import Any

from gevent import Timeout, get_hub, getcurrent, joinall, spawn, spawn_later
from gevent.lock import Semaphore

from greensmtp import dialing
from greensmtp.client import GOODBYE_SECONDS, SMTPClient, check_policy
from greensmtp.connecting import connect
from greensmtp.deadlines import Timeouts
from greensmtp.errors import (
    AuthenticationFailed,
    CannotConnect,
    ClientError,
    Disconnected,
    HelloRefused,
    PeerProtocolError,
    PoolClosed,
    Refused,
    TLSFailed,
)
from greensmtp.outgoing import Outgoing, Sendable, Sent
from greensmtp.protocol.command_lines import Ext
from greensmtp.protocol.sasl import MECHANISMS

logger = logging.getLogger("greensmtp")

#: Seconds for which a host that did not let us in is asked after all others.
AVOID_SECONDS = 30.0

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
        if isinstance(host, tuple):
            self.options = {"host": host[0], "port": host[1]}
        elif host.startswith((".", "/")):
            self.options = {"path": host}
        else:
            name, colon, number = host.rpartition(":")
            if colon and number.isdigit() and (":" not in name or name.startswith("[")):
                self.options = {"host": name.strip("[]"), "port": int(number)}
            else:
                self.options = {"host": host.strip("[]"), "port": port}
        if self.options.get("port") is not None:
            dialing.check_port(self.options["port"])

    def avoid(self) -> None:
        """It did not let us in: others first, for a while."""
        self.avoid_until = monotonic() + AVOID_SECONDS


class Pool:
    """``with Pool("mx.example.com", 25, size=10) as pool: pool.send(message)``, from any number of greenlets.

    A connection is made when one is needed and none is free; when ``size`` are busy, ``send`` waits. It is reused,
    with RSET in front of the next message, until it is ``max_age`` seconds old, has carried ``max_messages``, or has
    been idle for ``max_idle`` seconds. One that turns out to be dead, or is given a 421, is replaced, and the message
    sent again: only where nobody can have taken it.

    :param host: where to; or several of them, of which the first that lets us in is used, and which each may name a
        port of their own (``"mx1.example.com:2525"``).
    :param size: connections at most.
    :param username: for ``login``, with ``password`` or ``token`` (a callable is asked anew for each connection),
        ``mechanism`` and ``allow_plaintext``.
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
        username: str | None = None,
        password: Any = None,
        token: Any = None,
        mechanism: str | None = None,
        allow_plaintext: bool = False,
        **options: Any,
    ) -> None:
        if size < 1 or max_messages < 1 or not max_age > 0 or not max_idle > 0:
            raise ValueError("size, max_age, max_messages and max_idle are more than 0")
        _check_options(options)
        one = isinstance(host, str) or (isinstance(host, tuple) and len(host) == 2 and isinstance(host[1], int))
        hosts: Sequence[Any] = (host,) if one else host
        if not hosts:
            raise ValueError("a pool needs a host")
        if (username is None) != (password is None and token is None):
            raise ValueError("to log in, a pool needs a username, and a password or a token")
        if mechanism is not None and mechanism.upper() not in MECHANISMS:
            raise ValueError(f"mechanism is one of {', '.join(MECHANISMS)}, not {mechanism!r}")
        self._hosts = [_Host(each, port) for each in hosts]
        self.size = size
        self.max_age = max_age
        self.max_messages = max_messages
        self.max_idle = max_idle
        self._username = username
        self._password = password
        self._token = token
        self._mechanism = mechanism
        self._allow_plaintext = allow_plaintext
        self._options = options
        #: One for each connection that may be busy.
        self._free = Semaphore(size)
        #: The one used last is taken first, so that those too many grow old.
        self._idle: deque[_Member] = deque()
        self._busy: set[_Member] = set()
        #: Greenlets that are waiting for a connection to be made.
        self._connecting: set[Any] = set()
        self._goodbyes: set[Any] = set()
        self._retiring: Any = None
        self._closed = False
        #: And those that were on their way have had their time.
        self._abandoned = False

    @property
    def idle(self) -> int:
        """Connections that are open and not in use."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Connections that are in use."""
        return self.size - int(self._free.counter)

    def send(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        from_ext: Ext = None,
        to_ext: Ext | Sequence[Ext] = None,
        raise_on_partial: bool = False,
    ) -> Sent:
        """As ``SMTPClient.send``, by a connection of the pool; waits while all are busy.

        :raises PoolClosed: ``close`` has been called.
        :raises CannotConnect: no host lets us in; or what the last of them said.
        """
        outgoing = Outgoing(message, sender, recipients, from_ext=from_ext, to_ext=to_ext)
        try:
            return self._send_by_any(outgoing, raise_on_partial=raise_on_partial)
        finally:
            outgoing.close()

    def close(self, timeout: float = 30.0) -> None:
        """Take no more messages, let those on their way finish for so many seconds, and say QUIT everywhere.

        Whoever still waits for a connection gets PoolClosed, and who is not done then gets Disconnected.
        """
        self._closed = True
        if self._retiring is not None:
            self._retiring.kill(block=False)
            self._retiring = None
        taken = 0
        try:
            with Timeout(timeout, False):  # type: ignore[arg-type]
                for _ in range(self.size):
                    self._free.acquire()
                    taken += 1
        finally:
            self._abandoned = True
            for _ in range(taken):
                self._free.release()
            for greenlet in self._connecting:
                get_hub().loop.run_callback(self._give_up, greenlet)
            for member in list(self._busy):
                member.client.close()
            while self._idle:
                self._part(self._idle.pop())
        joinall(list(self._goodbyes), timeout=GOODBYE_SECONDS)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pool of {self.size}: {self.busy} busy, {self.idle} idle{', closed' if self._closed else ''}>"

    # One message

    def _send_by_any(self, outgoing: Outgoing, *, raise_on_partial: bool) -> Sent:
        self._check_open()
        with self._free:
            self._check_open()
            #: Hosts that have let us in just now, only to give us up.
            failed: set[_Host] = set()
            while True:
                if self._abandoned:
                    self._check_open()
                member, fresh = self._take(failed)
                try:
                    return self._send(member, outgoing, fresh=fresh, raise_on_partial=raise_on_partial)
                except (Disconnected, PeerProtocolError, Refused) as error:
                    gone = not isinstance(error, Refused) or (error.reply is not None and error.reply.code == 421)
                    if not gone or not error.may_retry:
                        raise
                    # A connection from before may have been given up at any time, and is no reason to give up. A new
                    # one means something: it is the next host's turn.
                    if fresh:
                        member.host.avoid()
                        failed.add(member.host)
                        if len(failed) == len(self._hosts):
                            raise
                    logger.debug("%r is gone: %s", member.client, error)

    def _send(self, member: _Member, outgoing: Outgoing, *, fresh: bool, raise_on_partial: bool) -> Sent:
        client = member.client
        self._busy.add(member)
        try:
            return client.send_prepared(outgoing, raise_on_partial=raise_on_partial, reset_first=not fresh)
        except ClientError:
            raise  # and the client knows whether it can go on
        except BaseException:
            client.close()  # killed, or worse: nobody knows what it has been in the middle of
            raise
        finally:
            self._busy.discard(member)
            member.messages += 1
            self._give_back(member)

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
            or now - member.last_used >= self.max_idle
            or now - member.born >= self.max_age
            or member.messages >= self.max_messages
        )

    def _give_back(self, member: _Member) -> None:
        if member.client.closed:
            return
        member.last_used = monotonic()
        if self._closed or self._is_over(member, member.last_used):
            self._part(member)
            return
        self._idle.append(member)
        if self._retiring is None:
            self._retiring = spawn_later(min(self.max_idle, self.max_age), self._retire)

    # Connections

    def _connect(self, failed: Set[_Host]) -> _Member:
        """To the first host that lets us in; those that did not of late are asked last."""
        now = monotonic()
        failure: ClientError | None = None
        greenlet = getcurrent()
        self._connecting.add(greenlet)
        try:
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
                    host.avoid()
                    failure = error
                    continue
                host.avoid_until = 0.0
                now = monotonic()
                return _Member(client, host, born=now, last_used=now)
        finally:
            self._connecting.discard(greenlet)
        assert failure is not None
        raise failure

    def _give_up(self, greenlet: Any) -> None:
        """End its wait for a connection. Only in the hub."""
        if greenlet in self._connecting:
            greenlet.throw(PoolClosed(CLOSED))

    def _open(self, host: _Host) -> SMTPClient:
        client = connect(**host.options, **self._options)
        try:
            client.begin()
            if self._username is not None:
                reply = client.login(
                    self._username,
                    self._password() if callable(self._password) else self._password,
                    token=self._token() if callable(self._token) else self._token,
                    mechanism=self._mechanism,
                    allow_plaintext=self._allow_plaintext,
                )
                if not reply.is_positive:
                    raise AuthenticationFailed(f"the server refuses the credentials: {reply}", reply)
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
        if self._idle and not self._closed:
            due = min(min(member.last_used + self.max_idle, member.born + self.max_age) for member in self._idle)
            self._retiring = spawn_later(max(due - monotonic(), 0.01), self._retire)

    def _part(self, member: _Member) -> None:
        """Say QUIT; nobody waits for the answer."""
        if member.client.closed:
            return
        goodbye = spawn(_say_goodbye, member.client)
        self._goodbyes.add(goodbye)
        goodbye.rawlink(self._goodbyes.discard)

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed(CLOSED)


def _check_options(options: Mapping[str, Any]) -> None:
    """What ``connect`` would say to each of them, now rather than at the first message.

    :raises TypeError: there is no such option, or it makes no sense for several connections.
    :raises ValueError: it is out of range.
    """
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"a pool has no option {name!r} (beyond its own: {', '.join(_OPTIONS)})")
    Timeouts.of(options.get("timeout"))
    check_policy(options.get("starttls") or "offered")
    if options.get("local_hostname") is not None:
        dialing.check_name(options["local_hostname"], "local_hostname")


def _say_goodbye(client: SMTPClient) -> None:
    try:
        with Timeout(GOODBYE_SECONDS, False):  # type: ignore[arg-type]
            client.quit()
    except ClientError:
        pass  # it is gone already
    finally:
        client.close()
