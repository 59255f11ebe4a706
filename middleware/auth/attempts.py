"""Attempts to authenticate: the limits on failures by client, by account and network, and by account alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from greensmtp.middleware._accounts import account_of, without_domain
from greensmtp.middleware.auth.attempt_limiter import AttemptLimiter, CountedAttempt
from greensmtp.networks import network_around

#: How many past successes (account and client) are remembered, and for how many seconds.
_MAX_KNOWN = 100_000
_KNOWN_FOR = 7 * 86400.0

#: Failures of one account from all networks delay attempts from this many times the limit of one network on: each
#: further one adds DELAY_STEP seconds, up to MAX_DELAY. A client waits five minutes for a reply (RFC 5321 section
#: 4.5.3.2); a user waits less.
SLOW_FROM = 5
DELAY_STEP = 0.5
MAX_DELAY = 10.0


class AttemptLimits:
    """The limits on failed attempts, none of which lets an attacker lock a user out.

    - By client: one client's failures; beyond the limit it is refused.
    - By account and network: failures at one account from one network (IPv4 /24, IPv6 /64); beyond the limit, that
      network is refused at that account. A client that has lately logged in to the account is counted apart. Accounts
      are counted by the local part of their names.
    - By account alone: failures from all networks; beyond ``SLOW_FROM`` times the limit, attempts are delayed. Clients
      that have lately logged in to the account are not.

    :param by_client: the limit by client; None: failures are not counted.
    :param by_account: the limit by account; None: failures are not counted.
    """

    def __init__(
        self, by_client: str | None, by_account: str | None, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self.by_client = None if by_client is None else AttemptLimiter(by_client, "failures_by_client", clock=clock)
        self.by_account = None if by_account is None else AttemptLimiter(by_account, "failures_by_account", clock=clock)
        self.everywhere = None if by_account is None else AttemptLimiter(by_account, clock=clock)
        self._clock = clock
        #: (account, client) -> time of the last login; the latest at the end.
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()

    def knows(self, account: str, client: str) -> bool:
        """True if this client has lately logged in to this account."""
        then = self._known.get((account, client))
        return then is not None and self._clock() - then < _KNOWN_FOR

    def remember(self, account: str, client: str) -> None:
        """Note that this client has logged in to this account."""
        self._known.pop((account, client), None)
        self._known[account, client] = self._clock()
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)


class Attempt:
    """One attempt. It counts as a failure from its beginning, and is given back at its end if it was none.

    :param host: the client's address; None: a unix socket, whose clients are not counted.
    :param wait: called while attempts under way use up what is left of a limit, since users behind one address may log
        in at the same time. It waits a little; False: stop waiting.
    """

    def __init__(self, limits: AttemptLimits, host: str | None, wait: Callable[[], bool] = lambda: False) -> None:
        self._limits = limits
        self._host = host
        self._wait = wait
        self._client = "" if host is None else network_around(host, 32, 64)
        self._counted: list[CountedAttempt] = []
        self._accounts: list[str] = []

    def begin(self) -> bool:
        """Count the attempt for its client; False after too many failures."""
        return self._host is None or self._take(self._limits.by_client, self._client)

    def count_for_account(self, username: str) -> float | None:
        """Count the attempt for an account; return the seconds that it must wait, None after too many failures.

        An empty name is not counted: a token may come without one.
        """
        limits = self._limits
        if not username or limits.by_account is None or limits.everywhere is None:
            return 0.0
        account = account_of(username)
        # Names are counted by their local part: a directory that drops the domain takes all of them for one user.
        counted = account_of(without_domain(username))
        known = limits.knows(account, self._client)
        place = self._client if known or self._host is None else network_around(self._host, 24, 64)
        if not self._take(limits.by_account, f"{counted}\0{place}"):
            return None
        self._accounts.append(account)
        everywhere = limits.everywhere.add(counted)
        self._counted.append(everywhere)
        excess = everywhere.failures - SLOW_FROM * limits.everywhere.count
        return 0.0 if known else min(max(0, excess) * DELAY_STEP, MAX_DELAY)

    def give_back(self) -> None:
        """Subtract the attempt from all counts: it was not a failure."""
        for each in self._counted:
            each.give_back()

    def end(self) -> None:
        """End the attempt, whether it failed or not."""
        for each in self._counted:
            each.end()

    def succeed(self) -> None:
        """Give the attempt back, and remember the client for its account."""
        self.give_back()
        for account in self._accounts:
            self._limits.remember(account, self._client)

    def _take(self, limiter: AttemptLimiter | None, key: str) -> bool:
        if limiter is not None:
            while (counted := limiter.take(key)) is None:
                if not limiter.has_attempts_in_flight(key) or not self._wait():
                    return False
            self._counted.append(counted)
        return True
