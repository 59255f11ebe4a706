"""Attempts to authenticate, and how many of them may fail: by client, by account and network, and by account alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from greensmtp.middleware._accounts import account_of
from greensmtp.middleware.auth.failure_counter import AttemptLimiter
from greensmtp.networks import network_around

#: Accounts and addresses of past successes that are remembered, and for how many seconds.
_MAX_KNOWN = 100_000
_KNOWN_FOR = 7 * 86400.0

#: Failures of one account, over all networks, are slowed down from so many times the limit of one network: each further
#: one waits so many seconds longer, up to the last number. (A client has five minutes for a reply, RFC 5321 section
#: 4.5.3.2; a user has less patience.)
SLOW_FROM = 5
DELAY_STEP = 0.5
MAX_DELAY = 10.0


class AttemptLimits:
    """What is counted of attempts to authenticate: by client, by account and network, and by account alone.

    - So many failures of one client, and it is refused.
    - So many failures at one account from one network (IPv4 /24, IPv6 /64), and that network is refused there. An
      address from which a client has lately logged in to the account has a count of its own. So an attacker elsewhere
      locks no user out.
    - Failures at one account from everywhere: beyond ``SLOW_FROM`` times as many, attempts wait, but not those from an
      address of the kind above. So many networks together get slower, and still lock no user out.

    :param by_client, by_account: the limits; None: that is not counted.
    """

    def __init__(
        self, by_client: str | None, by_account: str | None, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self.by_client = None if by_client is None else AttemptLimiter(by_client, "failures_by_client", clock=clock)
        self.by_account = None if by_account is None else AttemptLimiter(by_account, "failures_by_account", clock=clock)
        self.everywhere = None if by_account is None else AttemptLimiter(by_account, clock=clock)
        self._clock = clock
        #: Account and client -> when it logged in last; in the order of that.
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()

    def knows(self, account: str, client: str) -> bool:
        """True if this client has lately logged in to this account."""
        then = self._known.get((account, client))
        return then is not None and self._clock() - then < _KNOWN_FOR

    def remember(self, account: str, client: str) -> None:
        """It has logged in."""
        self._known.pop((account, client), None)
        self._known[account, client] = self._clock()
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)


class Attempt:
    """One attempt: it counts as a failure from its beginning, and is given back at its end if it was none.

    :param host: the client's address; None: a unix socket, whose clients are not told apart.
    :param wait: called while all that is left is taken by attempts under way: many users behind one address, or a
        program with many connections, may log in at the same time. It waits a little; False: no longer.
    """

    def __init__(self, limits: AttemptLimits, host: str | None, wait: Callable[[], bool] = lambda: False) -> None:
        self._limits = limits
        self._host = host
        self._wait = wait
        self._client = "" if host is None else _around(host, 32, 64)
        self._taken: list[tuple[AttemptLimiter, str]] = []
        self._accounts: list[str] = []

    def begin(self) -> bool:
        """Count it for the client; False: there have been too many. (Clients on a unix socket do not guess.)"""
        return self._host is None or self._take(self._limits.by_client, self._client)

    def claim(self, username: str) -> float | None:
        """Count it for an account; give the seconds that it has to wait. None: there have been too many.

        (A token without a name is nobody's account.)
        """
        limits = self._limits
        if not username or limits.by_account is None or limits.everywhere is None:
            return 0.0
        account = account_of(username)
        known = limits.knows(account, self._client)
        place = self._client if known or self._host is None else _around(self._host, 24, 64)
        if not self._take(limits.by_account, f"{account}\0{place}"):
            return None
        self._accounts.append(account)
        self._taken.append((limits.everywhere, account))
        excess = limits.everywhere.add(account) - SLOW_FROM * limits.everywhere.count
        return 0.0 if known else min(max(0, excess) * DELAY_STEP, MAX_DELAY)

    def give_back(self) -> None:
        """It was no failure."""
        for failures, key in self._taken:
            failures.give_back(key)

    def end(self) -> None:
        """It is over, a failure or not."""
        for failures, key in self._taken:
            failures.settle(key)

    def succeed(self) -> None:
        """It was a success."""
        self.give_back()
        for account in self._accounts:
            self._limits.remember(account, self._client)

    def _take(self, failures: AttemptLimiter | None, key: str) -> bool:
        if failures is not None:
            while not failures.take(key):
                if not failures.may_give_back(key) or not self._wait():
                    return False
            self._taken.append((failures, key))
        return True


def _around(host: str, ipv4: int, ipv6: int) -> str:
    try:
        return network_around(host, ipv4, ipv6)
    except ValueError:
        return host
