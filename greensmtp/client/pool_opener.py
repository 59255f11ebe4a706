"""Open the connections of a pool: the first host that accepts one, after EHLO, STARTTLS and login."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from gevent.lock import Semaphore

from greensmtp._hostport import is_unix_path
from greensmtp.client import dial
from greensmtp.client.client import SMTPClient
from greensmtp.client.connect import connect
from greensmtp.client.options import ConnectOptions
from greensmtp.client.pool_login import PoolLogin
from greensmtp.errors import AuthenticationFailed, ClientError
from greensmtp.protocol import hosts

#: Seconds for which a host that failed is tried after all others.
AVOID_SECONDS = 30.0

#: ``"mx.example.com"``, ``"mx.example.com:2525"``, ``("mx.example.com", 25)``, ``"/run/lmtp.sock"``.
Host = str | Path | tuple[str, int]


class PoolHost:
    """A host of a pool, and whether it has failed recently."""

    __slots__ = ("avoid_until", "options")

    def __init__(self, host: Host, port: int | None) -> None:
        self.avoid_until = 0.0
        #: The options of ``connect`` for this host.
        self.options: dict[str, Any]
        if not isinstance(host, tuple) and is_unix_path(host):
            self.options = {"path": dial.check_path(host)}
            return
        place = dial.read_place(*host) if isinstance(host, tuple) else hosts.read(str(host))
        own_port = port if place[1] is None else place[1]
        self.options = {"host": place[0], "port": own_port}
        if own_port is not None:
            hosts.check_port(own_port)

    def avoid(self) -> None:
        """Try the other hosts first for AVOID_SECONDS."""
        self.avoid_until = monotonic() + AVOID_SECONDS


@dataclass(slots=True, eq=False)
class PooledConnection:
    """A connection of the pool. Times are in seconds, on the monotonic clock."""

    client: SMTPClient
    host: PoolHost
    opened_at: float
    used_at: float
    messages: int = 0


class ConnectionOpener:
    """Open connections for one native thread."""

    def __init__(self, hosts: Sequence[PoolHost], login: PoolLogin | None, options: ConnectOptions) -> None:
        self.hosts = hosts
        self._login = login
        self._options = options
        #: Held while credentials that no server has accepted yet are tried.
        self._first_login = Semaphore(1)

    def open(self, failed: Set[PoolHost]) -> PooledConnection:
        """Return a new connection; one greenlet at a time tries while the credentials are unproven.

        :param failed: the hosts not to try.
        :raises ClientError: the error of the last host.
        """
        login = self._login
        if login is None:
            return self._open_to_any(failed)
        login.check()
        if login.proven:
            return self._open_to_any(failed)
        # Ten greenlets with a wrong password would be ten failed logins at once, and might lock the account.
        with self._first_login:
            login.check()
            return self._open_to_any(failed)

    def _open_to_any(self, failed: Set[PoolHost]) -> PooledConnection:
        """Open a connection to the first host that accepts it; hosts to avoid come last."""
        now = monotonic()
        failure: ClientError | None = None
        for host in sorted(self.hosts, key=lambda host: host.avoid_until > now):
            if host in failed:
                continue
            try:
                client = self._open_to(host)
            except ClientError as error:
                if isinstance(error, AuthenticationFailed) and self._login is not None and self._login.refused:
                    raise
                host.avoid()
                failure = error
                continue
            host.avoid_until = 0.0
            now = monotonic()
            return PooledConnection(client, host, opened_at=now, used_at=now)
        assert failure is not None
        raise failure

    def _open_to(self, host: PoolHost) -> SMTPClient:
        client = connect(**{**self._options, **host.options})
        try:
            client.begin()
            if self._login is not None:
                self._login.log_in(client)
        except BaseException:
            client.close()
            raise
        return client
