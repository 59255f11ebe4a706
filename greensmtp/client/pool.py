"""``Pool``: kept connections, shared by many greenlets.

Each native thread has its own connections (``ThreadConnections``), since a gevent socket belongs to one hub. A
thread-local variable holds them. A set of all of them is used by ``close`` and for the counts. After a fork it still
contains those of the parent process, which are recognized by their process ID.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack
from weakref import finalize

from greensmtp._native import native
from greensmtp.client.client import SMTPClient
from greensmtp.client.envelope_lines import MailExt, RcptExt
from greensmtp.client.envelope_options import SendKeywords
from greensmtp.client.message import PreparedMessage, Sendable
from greensmtp.client.options import UNVERIFIED, ConnectOptions, PoolSettings, check_options
from greensmtp.client.pool_connections import ThreadConnections
from greensmtp.client.pool_login import PoolLogin, Secret
from greensmtp.client.pool_opener import ConnectionOpener, Host, PoolHost
from greensmtp.client.pool_pace import Pace
from greensmtp.client.signing import Signer, check_signer
from greensmtp.errors import Disconnected
from greensmtp.protocol.sasl.client import MECHANISMS
from greensmtp.protocol.send_result import SendResult


class Pool:
    """``with Pool("mx.example.com", 25, size=10) as pool: pool.send(message)``, from any number of greenlets.

    A connection is opened when one is needed and none is idle. When ``size`` are busy, ``send`` waits. A connection is
    reused, with RSET before the next message, until it is ``max_age`` seconds old, has carried ``max_messages``, or has
    been idle for ``max_idle`` seconds. If it turns out to be dead, or the server sends 421, it is replaced, and the
    message is sent again, but only where no server can have accepted it.

    Several native threads may use a pool; each has its own ``size`` connections. After a fork, the child opens new
    connections and leaves those of the parent alone.

    Credentials that a server refuses (5xx) are not tried on other hosts. For five minutes, or until a callable returns
    other credentials, every send that needs a new connection raises AuthenticationFailed at once.

    :param host: a host; or several, of which the first that accepts a connection is used. Each may have a port of its
        own (``"mx1.example.com:2525"``).
    :param size: maximum number of connections in each native thread.
    :param acquire_timeout: seconds that ``send`` waits for a connection while all are busy, and for its turn by
        ``rate``; None for no limit.
    :param rate: messages per second, at even intervals, of all native threads together; None for no limit.
    :param retries: how often ``send`` tries again after a 4xx or a connection error, if no server can have accepted
        the message (``transient`` and ``safe_to_retry``). It is sent again only to recipients that may still get it.
    :param retry_delay: seconds before the first retry; it doubles with each retry, up to 300 s, and a random 50 to
        100 % of it is waited. No connection is held meanwhile.
    :param sign: signs every message, unless ``send`` is given another signer; see ``SMTPClient.send``.
    :param username: for ``login``, with ``password`` or ``token`` (a callable is called for each new connection),
        ``mechanism`` and ``allow_plaintext``. ``starttls`` is ``"require"`` by default then, except for unix sockets
        and with ``allow_plaintext``.
    :param options: options of ``connect``: ``starttls="require"``, ``tls=True``, ``lmtp=True``, ``timeout=...``.
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
        rate: float | None = None,
        retries: int = 0,
        retry_delay: float = 1.0,
        sign: Signer | None = None,
        username: str | None = None,
        password: Secret = None,
        token: Secret = None,
        mechanism: str | None = None,
        allow_plaintext: bool = False,
        **options: Unpack[ConnectOptions],
    ) -> None:
        self._settings = PoolSettings(
            size, max_age, max_messages, max_idle, acquire_timeout, rate, retries, retry_delay
        )
        self._pace = Pace(rate)
        self._sign = None if sign is None else check_signer(sign)
        check_options(options)
        one = isinstance(host, str | Path) or (isinstance(host, tuple) and len(host) == 2 and isinstance(host[1], int))
        places: Any = (host,) if one else host
        if not places:
            raise ValueError("expected at least one host; got none")
        if (username is None) != (password is None and token is None):
            raise ValueError("expected a username with a password or a token, or none of them; got one alone")
        if mechanism is not None and mechanism.upper() not in MECHANISMS:
            raise ValueError(f"expected a mechanism, one of {', '.join(MECHANISMS)}; got {mechanism!r}")
        self._hosts = [PoolHost(each, port) for each in places]
        self._login: PoolLogin | None = None
        if username is not None:
            if options.get("starttls") in UNVERIFIED:
                policy = options["starttls"]
                raise ValueError(f'starttls="{policy}" verifies no server, so it cannot be used with a username')
            self._login = PoolLogin(username, password, token, mechanism, allow_plaintext=allow_plaintext)
            if options.get("starttls") is None and not allow_plaintext:
                for place in self._hosts:
                    place.options["starttls"] = None if "path" in place.options else "require"
        self._options = options
        #: Has the attribute ``connections`` in each native thread.
        self._local = native("threading", "local")()
        #: The connections of all native threads.
        self._all: set[ThreadConnections] = set()

    @property
    def closed(self) -> bool:
        """True once ``close`` has been called."""
        return self._settings.closed

    @property
    def idle(self) -> int:
        """The number of connections that are open and not in use."""
        return sum(connections.idle for connections in self._of_this_process())

    @property
    def busy(self) -> int:
        """The number of connections that are in use."""
        return sum(connections.busy for connections in self._of_this_process())

    def send(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        from_ext: MailExt = None,
        to_ext: RcptExt | Sequence[RcptExt] = None,
        raise_on_partial: bool = False,
        add_fields: bool | None = None,
        sign: Signer | None = None,
        **options: Unpack[SendKeywords],
    ) -> SendResult:
        """Send a message as ``SMTPClient.send`` does, on a connection of the pool; wait while all are busy.

        :raises PoolClosed: the pool is closed.
        :raises PoolTimeout: all connections have been busy for ``acquire_timeout`` seconds.
        :raises CannotConnect: no host accepts a connection; the error raised is that of the last host.
        """
        prepared = PreparedMessage(
            message,
            sender,
            recipients,
            from_ext=from_ext,
            to_ext=to_ext,
            add_fields=add_fields,
            sign=self._sign if sign is None else sign,
            options=options,
        )
        try:
            return self._connections().send(prepared, raise_on_partial=raise_on_partial)
        finally:
            prepared.close()

    @contextmanager
    def connection(self) -> Iterator[SMTPClient]:
        """``with pool.connection() as mail:`` lends a connection for the block, after EHLO, STARTTLS and login.

        Afterwards it returns to the pool, with RSET if a transaction is open. It is closed instead if it is out of
        step: in the middle of a message, or when the block was killed or timed out. If the block ends with
        Disconnected on a new connection, the host is avoided for a while.

        :raises PoolClosed, PoolTimeout, CannotConnect: as ``send``.
        """
        connections = self._connections()
        connection = connections.check_out()
        completed = False
        try:
            yield connection.client
            completed = True
        except Exception as error:
            completed = True
            if isinstance(error, Disconnected) and not connection.messages:
                connection.host.avoid()
            raise
        finally:
            connections.check_in(connection, completed=completed)

    def close(self, timeout: float = 30.0) -> None:
        """Accept no more messages, wait for those in progress, and close all connections with QUIT.

        A ``send`` that is still waiting for a connection raises PoolClosed; one that is not done in time raises
        Disconnected. Other native threads close their connections in the same way, but are not waited for.

        :param timeout: seconds to wait for messages in progress.
        """
        self._settings.closed = True
        mine = getattr(self._local, "connections", None)
        for connections in self._of_this_process():
            if connections is not mine or not connections.is_current():
                connections.close_in_own_thread(timeout)
        if mine is not None and mine.is_current():
            mine.close(timeout)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pool of {self._settings.size}: {self.busy} busy, {self.idle} idle{', closed' if self.closed else ''}>"

    # Native threads and processes

    def _connections(self) -> ThreadConnections:
        """Return the connections of this native thread in this process."""
        mine: ThreadConnections | None = getattr(self._local, "connections", None)
        return mine if mine is not None and mine.is_current() else self._new_connections(mine)

    def _new_connections(self, before: ThreadConnections | None) -> ThreadConnections:
        self._settings.check_open()
        if before is not None:  # they belong to the parent process, or to a destroyed hub
            before.abandon()
        # One by one, since another native thread may add its own at the same time.
        for connections in set(self._all).difference(self._of_this_process()):
            self._all.discard(connections)
        opener = ConnectionOpener(self._hosts, self._login, self._options)
        mine = ThreadConnections(self._settings, opener, self._pace, self._all.discard)
        self._all.add(mine)
        self._local.connections = mine
        self._local.end = end = _ThreadEnd()
        finalize(end, mine.abandon).atexit = False
        return mine

    def _of_this_process(self) -> list[ThreadConnections]:
        pid = os.getpid()
        return [connections for connections in list(self._all) if connections.pid == pid]


class _ThreadEnd:
    """A thread-local variable, which is garbage-collected when its native thread ends."""
