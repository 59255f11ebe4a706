"""The connections of a pool in one native thread: lent, reused, retired, closed.

- A greenlet takes a slot first (``_acquire``), and then a connection; there are ``size`` slots.
- A connection is idle (in ``_idle``), in use (in ``_busy`` while a message or a block uses it), or retired: a greenlet
  is sending QUIT (``_retire``).
- The connection used last is reused first, so that surplus ones reach ``max_idle``.
- A message is sent again on another connection only if no server can have accepted it (``safe_to_retry``). If a new
  connection fails, the next host is tried; each host gets at most one new connection per message.
- All methods except ``close_in_own_thread`` and ``abandon`` are called in the native thread of the connections' hub.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Set
from time import monotonic

from gevent import Greenlet, Timeout, get_hub, getcurrent, joinall, sleep, spawn, spawn_later
from gevent.lock import Semaphore
from greenlet import greenlet

from greensmtp.client.client import SMTPClient
from greensmtp.client.connection import QUIT_SECONDS
from greensmtp.client.message import PreparedMessage
from greensmtp.client.options import CLOSED, PoolSettings
from greensmtp.client.pool_opener import ConnectionOpener, PooledConnection, PoolHost
from greensmtp.client.pool_pace import Pace, retry_seconds
from greensmtp.client.transactions import Transactions
from greensmtp.errors import ClientError, Disconnected, PeerProtocolError, PoolClosed, PoolTimeout, Refused
from greensmtp.protocol.send_result import SendResult

logger = logging.getLogger("greensmtp")


class ThreadConnections:
    """The connections of a pool in one native thread."""

    def __init__(
        self,
        settings: PoolSettings,
        opener: ConnectionOpener,
        pace: Pace,
        on_abandon: Callable[[ThreadConnections], object],
    ) -> None:
        """
        :param on_abandon: called when these connections can no longer be used.
        """
        self._settings = settings
        self._opener = opener
        self._pace = pace
        self._on_abandon = on_abandon
        self.hub = get_hub()
        self.pid = os.getpid()
        #: One slot for each connection that may be in use.
        self._slots = Semaphore(settings.size)
        self._idle: deque[PooledConnection] = deque()
        self._busy: set[PooledConnection] = set()
        #: Greenlets that are waiting for a slot, or for a connection to be opened.
        self._waiting: set[greenlet] = set()
        #: Greenlets that send QUIT.
        self._quitting: set[Greenlet[..., None]] = set()
        #: The greenlet that will retire idle connections; None if there are none.
        self._retirer: Greenlet[..., None] | None = None
        #: True once the pool is closed and its grace period is over.
        self._abandoned = False

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        return self._settings.size - int(self._slots.counter)

    def is_current(self) -> bool:
        """True in the native thread, the hub and the process of these connections."""
        return self.hub is get_hub() and self.pid == os.getpid()

    # Closing

    def abandon(self) -> None:
        """Close all descriptors without sending anything."""
        self._on_abandon(self)
        for connection in [*self._idle, *self._busy]:
            connection.client._abandon()
        self._idle.clear()

    def close_in_own_thread(self, timeout: float) -> None:
        """Ask the native thread of these connections to close them."""
        try:
            self.hub.loop.run_callback_threadsafe(spawn, self.close, timeout)
        except Exception:  # that thread has destroyed its hub
            self.abandon()

    def close(self, timeout: float) -> None:
        """Wait for the messages in progress, then close everything. See ``Pool.close``."""
        if self._retirer is not None:
            self._retirer.kill(block=False)
            self._retirer = None
        taken = 0
        try:
            with Timeout(timeout, False):  # type: ignore[arg-type]
                for _ in range(self._settings.size):
                    self._slots.acquire()
                    taken += 1
        finally:
            self._abandoned = True
            for _ in range(taken):
                self._slots.release()
            for waiting in self._waiting:
                self.hub.loop.run_callback(self._cancel, waiting)
            for connection in list(self._busy):
                connection.client.close()
            while self._idle:
                self._retire(self._idle.pop())
        joinall(list(self._quitting), timeout=QUIT_SECONDS)

    def _cancel(self, waiting: greenlet) -> None:
        """End the wait of a greenlet. Call this in the hub only."""
        if waiting in self._waiting:
            waiting.throw(PoolClosed(CLOSED))

    # One message

    def send(self, prepared: PreparedMessage, *, raise_on_partial: bool) -> SendResult:
        """Send a message. See ``Pool.send``."""
        transactions = Transactions(prepared)
        settings = self._settings
        for tried in range(settings.retries + 1):
            failure: ClientError | None = None
            try:
                self._send_all(transactions)
            except ClientError as error:
                failure = error
            if tried == settings.retries or isinstance(failure, PoolTimeout) or not transactions.try_again(failure):
                break
            seconds = retry_seconds(tried, settings.retry_delay)
            reason = failure or "some recipients were deferred"
            logger.debug("a message from %r: %s; trying again in %.1f s", prepared.sender, reason, seconds)
            try:
                self._sleep(seconds)
                settings.check_open()
            except PoolClosed:
                break  # raise the more informative error of the last attempt
        if failure is not None:
            return transactions.result_after(failure, raise_on_partial=raise_on_partial)
        return transactions.result(raise_on_partial=raise_on_partial)

    def _sleep(self, seconds: float) -> None:
        """Wait; ``close`` ends it with PoolClosed."""
        current = getcurrent()
        self._waiting.add(current)
        try:
            sleep(seconds)
        finally:
            self._waiting.discard(current)

    def _send_all(self, transactions: Transactions) -> None:
        """Send a message to all its recipients, on as many connections as it needs, one after another."""
        self._acquire()
        try:
            #: Hosts whose new connection failed with this message.
            failed: set[PoolHost] = set()
            while True:
                connection, new = self._take(failed)
                try:
                    if self._send(connection, transactions, new=new):
                        return
                except (Disconnected, PeerProtocolError, Refused) as error:
                    gone = not isinstance(error, Refused) or (error.reply is not None and error.reply.code == 421)
                    if not gone or not error.safe_to_retry:
                        raise
                    # The server may close a kept connection at any time, so that is no reason to give up. If it
                    # closes a new one, try the next host.
                    if new:
                        connection.host.avoid()
                        failed.add(connection.host)
                        if len(failed) == len(self._opener.hosts):
                            raise
                    logger.debug("%r failed: %s; sending the message on another connection", connection.client, error)
        finally:
            self._slots.release()

    def _send(self, connection: PooledConnection, transactions: Transactions, *, new: bool) -> bool:
        """Send to the remaining recipients on this connection; return False if another connection must continue."""
        done = True
        client = connection.client
        self._busy.add(connection)
        try:
            done = transactions.send(client._exchange, reset_first=not new)
            return done
        except Refused:
            _end_transaction(client)
            raise
        except ClientError:
            raise  # the client has closed the connection if it is unusable
        except BaseException:
            client.close()  # killed or timed out in the middle of something
            raise
        finally:
            self._give_back(connection, is_over=not done)

    # One connection

    def check_out(self) -> PooledConnection:
        """Return a connection that is known to be alive, and take a slot. See ``Pool.connection``."""
        self._acquire()
        try:
            while True:
                connection, new = self._take(frozenset())
                self._busy.add(connection)
                if new or self._is_usable(connection):
                    return connection
        except BaseException:
            self._slots.release()
            raise

    def _is_usable(self, connection: PooledConnection) -> bool:
        """Send RSET on a kept connection; close it and return False if that fails."""
        usable = False
        try:
            usable = connection.client.reset().is_positive
        except ClientError:
            pass
        finally:
            if not usable:
                connection.client.close()
                self._busy.discard(connection)
        return usable

    def check_in(self, connection: PooledConnection, *, completed: bool) -> None:
        """Return a connection and its slot to the pool.

        :param completed: False if the block was killed or timed out, so that the connection may be out of step.
        """
        try:
            client = connection.client
            # After XCLIENT, the server would attribute the next message to that other client.
            if completed and not client.expects_message and not client._is_xclient:
                _end_transaction(client)
            else:
                client.close()
        finally:
            self._give_back(connection)
            self._slots.release()

    def _acquire(self) -> None:
        """Wait for a slot, which the caller releases."""
        settings = self._settings
        settings.check_open()
        free = self._slots.acquire(blocking=False)
        if free and settings.rate is None:
            return  # nothing has been waited for, so nothing has changed
        if not free:
            current = getcurrent()
            self._waiting.add(current)
            try:
                if not self._slots.acquire(timeout=settings.acquire_timeout):
                    raise PoolTimeout(
                        f"all {settings.size} connections have been busy for {settings.acquire_timeout:g} s"
                    )
            finally:
                self._waiting.discard(current)
        try:
            settings.check_open()
            self._wait_for_turn()
            if self.pid != os.getpid():
                raise RuntimeError("this process was forked while send() waited: the parent sends the message")
        except BaseException:
            self._slots.release()
            raise

    def _wait_for_turn(self) -> None:
        seconds = self._pace.take_turn(self._settings.acquire_timeout)
        if seconds is None:
            settings = self._settings
            raise PoolTimeout(f"{settings.rate:g} messages/s leave no turn within {settings.acquire_timeout:g} s")
        if seconds:
            self._sleep(seconds)
            self._settings.check_open()

    def _take(self, failed: Set[PoolHost]) -> tuple[PooledConnection, bool]:
        """Return a connection to a host that has not failed, and whether it is new."""
        if self._abandoned:
            self._settings.check_open()
        now = monotonic()
        while self._idle:
            connection = self._idle.pop()
            if connection.host in failed or self._is_over(connection, now):
                self._retire(connection)
                continue
            return connection, False
        current = getcurrent()
        self._waiting.add(current)
        try:
            return self._opener.open(failed), True
        finally:
            self._waiting.discard(current)

    def _is_over(self, connection: PooledConnection, now: float) -> bool:
        settings = self._settings
        return (
            connection.client.closed
            or now - connection.used_at >= settings.max_idle
            or now - connection.opened_at >= settings.max_age
            or connection.messages >= settings.max_messages
            or connection.client._exchange.mails >= connection.client._exchange.mail_max
        )

    def _give_back(self, connection: PooledConnection, *, is_over: bool = False) -> None:
        self._busy.discard(connection)
        connection.messages += 1
        if connection.client.closed:
            return
        connection.used_at = monotonic()
        settings = self._settings
        if is_over or settings.closed or self._is_over(connection, connection.used_at):
            self._retire(connection)
            return
        self._idle.append(connection)
        if self._retirer is None:
            self._retirer = spawn_later(min(settings.max_idle, settings.max_age), self._retire_idle)

    # Retiring

    def _retire_idle(self) -> None:
        """Retire connections that were idle for too long, and schedule the next check."""
        self._retirer = None
        now = monotonic()
        for connection in [connection for connection in self._idle if self._is_over(connection, now)]:
            self._idle.remove(connection)
            self._retire(connection)
        settings = self._settings
        if self._idle and not settings.closed:
            due = min(min(each.used_at + settings.max_idle, each.opened_at + settings.max_age) for each in self._idle)
            self._retirer = spawn_later(max(due - monotonic(), 0.01), self._retire_idle)

    def _retire(self, connection: PooledConnection) -> None:
        """Send QUIT and close the connection, in a separate greenlet."""
        if connection.client.closed:
            return
        quitting = spawn(_quit, connection.client)
        self._quitting.add(quitting)
        quitting.rawlink(self._quitting.discard)


def _end_transaction(client: SMTPClient) -> None:
    """Send RSET if a transaction is open, so that an idle connection has none."""
    if client.needs_reset and not client.closed:
        _within_quit_seconds(client.reset)


def _quit(client: SMTPClient) -> None:
    try:
        _within_quit_seconds(client.quit)
    finally:
        client.close()


def _within_quit_seconds(command: Callable[[], object]) -> None:
    """Send a command whose reply does not matter. If there is none in time, the connection is closed."""
    try:
        with Timeout(QUIT_SECONDS, False):  # type: ignore[arg-type]
            command()
    except ClientError:
        pass  # the connection is closed
