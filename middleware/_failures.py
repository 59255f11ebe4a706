"""Counting failed attempts to authenticate: so many in a time for each key, in memory that is bounded."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any
from unicodedata import category, decimal, normalize

from greensmtp.middleware._addresses import network_around

_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_LIMIT = re.compile(r"([0-9]{1,9}) ?(?:/|per) ?(?:([0-9]{1,6}) ?)?(second|minute|hour|day)s?")


#: Accounts and addresses of past successes that are remembered, and for how many seconds.
_MAX_KNOWN = 100_000
_KNOWN_FOR = 7 * 86400.0

#: Failures of one account, over all networks, are slowed down from so many times the limit of one network: each further
#: one waits so many seconds longer, up to the last number. (A client has five minutes for a reply, RFC 5321 section
#: 4.5.3.2; a user has less patience.)
SLOW_FROM = 5
DELAY_STEP = 0.5
MAX_DELAY = 10.0

_A_LABEL = re.compile(r"\bxn--([a-z0-9-]{1,59})", re.IGNORECASE)

#: Small letters that look like Latin ones, or that collations of databases take for them, and that Unicode does not
#: decompose.
_ALIKE = str.maketrans(
    {
        **dict(zip("авеѕіјкмнорстухүһԁԛԝӏґѵԍ", "abesijkmhopctyxyhdqwlrvg", strict=True)),  # Cyrillic
        **dict(zip("αβεηικμνορτυχγωϲϳ", "abenikmvoptyxywcj", strict=True)),  # Greek
        **dict(zip("օոսցհյզԼ", "onugqjql", strict=True)),  # Armenian
        **dict(zip("łøđħŧıȷɑɡɩɨƀ", "lodhtijagiib", strict=True)),
        **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True)),
        **{"æ": "ae", "œ": "oe", "ð": "d", "þ": "th"},
        **dict.fromkeys("\u115f\u1160", ""),  # fillers of Hangul: letters that show nothing
    }
)


def account_of(name: str) -> str:
    """Return the key that a user's failures are counted by: the letters and digits of the name, folded.

    Directories and databases take many names for one: in either case, with blanks, accents and dots and without, in
    wide or invisible letters, with letters that look like others. What may be the same user counts as the same, or
    each way to write a name would have guesses of its own. That two users may share a key does little harm, since
    their clients are told apart by address.
    """
    name = _A_LABEL.sub(_u_label, name)
    folded = _fold(_fold(name))  # what the first round comes to may have compatibility forms of its own
    return folded or normalize("NFKC", name).casefold()


def _u_label(match: re.Match[str]) -> str:
    """What an A-label stands for (RFC 5891), if it is one."""
    try:
        return match[1].encode().decode("punycode")
    except UnicodeError:
        return match[0]


def _fold(name: str) -> str:
    kept = "".join(map(_letter_or_digit, normalize("NFKD", name)))
    return kept.casefold().translate(_ALIKE)


def _letter_or_digit(char: str) -> str:
    kind = category(char)
    if kind == "Nd":
        return str(decimal(char))  # databases take the digits of all scripts for the same
    return char if kind[0] in "LN" else ""


class Failures:
    """Allows ``"10/minute"`` (``"5/15 minutes"``, ``"100/hour"``, ``"1000/day"``) failures for each key.

    An attempt counts as a failure from its beginning, and is given back when it is none: whoever tries many at once
    gets no further than one by one. The time begins with a key's first failure. At most ``max_keys`` keys are kept;
    beyond, the one that would be forgotten next is forgotten early.

    :raises ValueError: that is no limit; the text says what is taken.
    """

    def __init__(
        self, limit: Any, name: str = "limit", *, max_keys: int = 100_000, clock: Callable[[], float] = monotonic
    ) -> None:
        match = _LIMIT.fullmatch(limit) if isinstance(limit, str) else None
        self._count = int(match[1]) if match else 0
        self._seconds = int(match[2] or 1) * _UNITS[match[3]] if match else 0.0
        if not self._count or not self._seconds:
            raise ValueError(f"{name} takes so many in a time, like '10/minute' or '5/15 minutes', not {limit!r}")
        self._limit = limit
        self._max_keys = max_keys
        self._clock = clock
        #: key -> how many, and until when they count; in the order of that.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @property
    def count(self) -> int:
        """How many failures are allowed."""
        return self._count

    def take(self, key: str) -> bool:
        """Begin an attempt; False: there have been too many, and this is none."""
        count, until = self._failures.get(key, (0, 0.0))
        if count >= self._count and until > self._clock():
            return False
        self.add(key)
        return True

    def add(self, key: str) -> int:
        """Begin an attempt, however many there have been; give their number, with this one."""
        now = self._clock()
        count, until = self._failures.get(key, (0, 0.0))
        if until <= now:
            self._failures.pop(key, None)
            self._make_room(now)
            self._failures[key] = (1, now + self._seconds)
            return 1
        self._failures[key] = (count + 1, until)
        return count + 1

    def give_back(self, key: str) -> None:
        """That attempt was no failure."""
        count, until = self._failures.get(key, (0, 0.0))
        if count > 1:
            self._failures[key] = (count - 1, until)
        else:
            self._failures.pop(key, None)

    def _make_room(self, now: float) -> None:
        failures = self._failures
        while failures:
            _, until = next(iter(failures.values()))
            if until > now and len(failures) < self._max_keys:
                return
            failures.popitem(last=False)

    def __len__(self) -> int:
        return len(self._failures)

    def __repr__(self) -> str:
        return f"Failures({self._limit!r})"


class AttemptLimits:
    """What is counted of attempts to authenticate: by client, by account and network, and by account alone.

    - So many failures of one client, and it is refused.
    - So many failures at one account from one network (IPv4 /24, IPv6 /64), and that network is refused there. An
      address from which somebody has lately logged in to the account has a count of its own. So an attacker elsewhere
      locks no user out.
    - Failures at one account from everywhere: beyond ``SLOW_FROM`` times as many, attempts wait, but not those from an
      address of the kind above. So many networks together get slower, and still lock no user out.

    :param by_client, by_account: the limits; None: that is not counted.
    """

    def __init__(
        self, by_client: str | None, by_account: str | None, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self.by_client = None if by_client is None else Failures(by_client, "failures_by_client", clock=clock)
        self.by_account = None if by_account is None else Failures(by_account, "failures_by_account", clock=clock)
        self.everywhere = None if by_account is None else Failures(by_account, clock=clock)
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
    """

    def __init__(self, limits: AttemptLimits, host: str | None) -> None:
        self._limits = limits
        self._host = host
        self._client = "" if host is None else _around(host, 32, 64)
        self._taken: list[tuple[Failures, str]] = []
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

    def succeed(self) -> None:
        """It was a success."""
        self.give_back()
        for account in self._accounts:
            self._limits.remember(account, self._client)

    def _take(self, failures: Failures | None, key: str) -> bool:
        if failures is not None:
            if not failures.take(key):
                return False
            self._taken.append((failures, key))
        return True


def _around(host: str, ipv4: int, ipv6: int) -> str:
    try:
        return network_around(host, ipv4, ipv6)
    except ValueError:
        return host
