"""RateLimit: how much one client, sender or account may send in a time, by the ``limits`` library."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from gevent.monkey import get_original

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError, ConnectionLost
from greensmtp.middleware._pause import waiting
from greensmtp.middleware._validate import check_choice, check_count, check_number, make_refusal
from greensmtp.middleware.auth.credentials import check_flag
from greensmtp.middleware.rate_limit.store import Unavailable, import_limits, open_store
from greensmtp.networks import network_around
from greensmtp.protocol.command import ACCEPT, END_OF_DATA, Command, PathCommand
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.session import Session
from greensmtp.signals import handler_name

if TYPE_CHECKING:
    from limits import RateLimitItem

By = Literal["address", "network", "identity", "sender", "recipient"]
On = Literal["connections", "messages", "recipients", "bytes", "auth_failures"]
Strategy = Literal["moving-window", "fixed-window", "sliding-window-counter"]

#: What is counted -> by what it can be counted: what is known at that moment.
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "connections": ("address", "network"),
    "messages": ("address", "network", "identity", "sender"),
    "recipients": ("address", "network", "identity", "sender", "recipient"),
    "bytes": ("address", "network", "identity", "sender"),
    "auth_failures": ("address", "network"),
}

#: What is counted -> the refusal, when there has been enough of it.
_SPENT: Mapping[str, Reply] = {
    "connections": Reply(421, "4.7.0 Too many connections in a short time, try again later"),
    "messages": Reply(450, "4.7.1 Too many messages in a short time, try again later"),
    "recipients": Reply(450, "4.7.1 Too many recipients in a short time, try again later"),
    "bytes": Reply(450, "4.7.1 Too many octets in a short time, try again later"),
    "auth_failures": Reply(454, "4.7.0 Too many failed attempts to authenticate, try again later"),
}
_NEVER = Reply(552, "5.3.4 Message exceeds your byte quota")

#: The refusals when the storage cannot be asked and ``fail_open`` is false.
_UNKNOWN = Reply(451, "4.3.0 Limits cannot be checked just now, try again later")
_UNKNOWN_AT_AUTH = Reply(454, "4.7.0 Limits cannot be checked just now, try again later")

#: What is counted -> the bits of an address that count for ``by="address"``: the whole of an IPv4 address, and of an
#: IPv6 address what its host cannot choose (RFC 6177).
_PREFIXES = {"address": (32, 64), "network": (24, 64)}

#: A moving window remembers every hit.
_MAX_MOVING = 100_000

#: A key that is longer is hashed: what a client says of itself must not fill a storage.
_MAX_KEY = 128

#: Replies to AUTH behind which there may have been a guess. (An OAuth client that is told of its token's failure by a
#: challenge may answer what it likes, ``*`` or no base64: RFC 7628 section 3.2.3.)
_FAILED = frozenset({421, 500, 501, 535})

_GREETED = State.GREETED

_numbers = itertools.count(1)

#: ``(session, command) -> key``; None: this one is not limited.
Key = Callable[[Session, Command], str | None]


class RateLimit:
    """Refuses what is more than so much in a time.

    ``RateLimit("100/minute")`` takes a hundred messages a minute from each address. Limits are written as the
    ``limits`` library has them, several with a semicolon: ``"100/minute; 1000/hour"``.

    ``on`` says what is counted, and so when the refusal comes:

    - ``"connections"``: 421 at ACCEPT, which comes before TLS.
    - ``"messages"``: 450 at MAIL once there were enough. Each MAIL in its place counts, as it does in Postfix: one who
      tries addresses and never sends has had his share, too.
    - ``"recipients"``: 450 at RCPT. Those who are refused count, too: guessing addresses has its price.
    - ``"bytes"``: 450 at MAIL when there is nothing left, or less than SIZE announces; 552 where SIZE announces more
      than would ever be left. What the message really had is counted at the end of its data; if that is more than is
      left, it is refused there, and all is spent.
    - ``"auth_failures"``: 454 at AUTH once there were enough attempts that failed: with 535, with an answer that is
      malformed, or ``*``, or because the client has gone away in the midst of it. Those under way at the moment are
      taken for failures, so that trying many at once gets no further than one by one; further ones wait for them, up to
      ten seconds.

    ``by`` says who is counted: ``"address"``, ``"network"``, ``"identity"`` (who has authenticated), ``"sender"``,
    ``"recipient"`` (only on recipients), or a function of the session that gives a str. Who has none is not limited:
    a client on a unix socket has no address, one that has not authenticated no identity, the null sender no name, and
    the function may give None.

    :param limit: one or several limits: ``"10/second"``, ``"100 per 5 minutes"``.
    :param strategy: ``"moving-window"`` (exact, and the default), ``"fixed-window"``, or ``"sliding-window-counter"``
        (the default for bytes, of which a moving window would have to remember each).
    :param storage: ``"memory://"`` counts in this process; ``"redis://host:6379"`` for all machines that use it.
    :param fail_open: whether what is to be limited passes when the storage cannot be asked. Mail must flow: true, but
        for ``on="auth_failures"``, where it would give guessing free.
    :param name: limits of the same name, text, ``by`` and ``on`` count together where they share a storage. In memory
        one that has no name counts alone.
    :param ipv4_prefix, ipv6_prefix: how many bits of an address count: 32 and 64 by ``"address"``, since an IPv6 host
        has a /64 to choose its addresses from; 24 and 64 by ``"network"``.
    :param timeout: seconds that connecting to the storage may take, and a question to it as well.
    :param code, message: the refusal, instead of the usual one. (421 closes the connection.)
    :raises ValueError: an argument is out of range, or one does not go with another.
    :raises ModuleNotFoundError: a library is missing; the text says which extra to install.
    """

    def __init__(
        self,
        limit: str,
        by: By | Callable[[Session], str | None] = "address",
        on: On = "messages",
        *,
        strategy: Strategy | None = None,
        storage: str = "memory://",
        fail_open: bool | None = None,
        name: str = "",
        ipv4_prefix: int | None = None,
        ipv6_prefix: int | None = None,
        timeout: float = 1.0,
        code: int | None = None,
        message: str | None = None,
    ) -> None:
        self.limit = limit
        self.on = check_choice("on", on, _SPENT)
        self.by = by if callable(by) else check_choice("by", by, _PREFIXES | dict.fromkeys(_KNOWN["recipients"]))
        self._key = self._make_key(ipv4_prefix, ipv6_prefix)
        self.fail_open = on != "auth_failures" if fail_open is None else check_flag("fail_open", fail_open)
        self._refusal = make_refusal(code, message, _SPENT[on])
        self._unknown = _UNKNOWN_AT_AUTH if on == "auth_failures" else _UNKNOWN

        check_number("timeout", timeout, least=0.01, most=60.0)
        import_limits()
        from limits.strategies import STRATEGIES

        strategy = strategy or ("sliding-window-counter" if on == "bytes" else "moving-window")
        self.strategy = check_choice("strategy", strategy, STRATEGIES)
        self._items = _read_limits(limit)
        self._largest = min(item.amount for item in self._items)
        if strategy == "moving-window":
            if on == "bytes":
                raise ValueError(
                    'on="bytes" takes "sliding-window-counter" or "fixed-window": no window remembers octets'
                )
            if max(item.amount for item in self._items) > _MAX_MOVING:
                raise ValueError(f'a "moving-window" takes up to {_MAX_MOVING}; take "sliding-window-counter" for more')
        if not name and str(storage).startswith("memory:"):
            name = f"#{next(_numbers)}"
        self._by_name = self.by if isinstance(self.by, str) else handler_name(self.by)
        #: What its keys begin with in the storage.
        self._name = f"{name}/{self.on}/{self._by_name}"
        self._store = open_store(storage, timeout, self._name)
        self._limiter = STRATEGIES[strategy](self._store.storage)

        #: Key -> attempts to authenticate that are under way here. (The real lock, in a patched process too; never held
        #: across a switch.)
        self._under_way: dict[str, int] = {}
        self._counting = get_original("_thread", "allocate_lock")()

        self._stages = self._make_stages()
        #: The commands that it wants to see.
        self.verbs = tuple(self._stages)

    def _make_key(self, ipv4_prefix: int | None, ipv6_prefix: int | None) -> Key:
        by = self.by
        if callable(by):
            function = by
            return lambda session, command: function(session)
        if by not in _KNOWN[self.on]:
            known = ", ".join(map(repr, _KNOWN[self.on]))
            raise ValueError(f"on={self.on!r} takes by={known} or a function: {by!r} is not known then")
        if by not in _PREFIXES:
            return _KEYS[by]
        prefixes = _PREFIXES[by]
        ipv4 = prefixes[0] if ipv4_prefix is None else check_count("ipv4_prefix", ipv4_prefix, most=32)
        ipv6 = prefixes[1] if ipv6_prefix is None else check_count("ipv6_prefix", ipv6_prefix, most=128)

        def network(session: Session, command: Command) -> str | None:
            host = session.peer_host
            return None if host is None else network_around(host, ipv4, ipv6)

        return network

    def _make_stages(self) -> Mapping[str, Callable[[Session, Command, Proceed], Reply]]:
        """Verb -> what is done then."""
        if self.on == "connections":
            return {ACCEPT: self._count}
        if self.on == "recipients":
            return {"RCPT": self._count_recipient}
        if self.on == "auth_failures":
            return {"AUTH": self._count_failure}
        if self.on == "messages":
            return {"MAIL": self._count_message}
        return {
            "MAIL": self._look_ahead,
            "DATA": self._expect_octets,
            "BDAT": self._expect_octets,
            END_OF_DATA: self._count_octets,
        }

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Count, and let pass or refuse."""
        return self._stages[command.verb](session, command, proceed)

    # What is done at each stage

    def _count(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return self._ask(session, command, self._hit) or proceed(session, command)

    def _count_recipient(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.from_ is None or command.error is not None:
            return proceed(session, command)  # it is refused, and was no attempt
        return self._count(session, command, proceed)

    def _look_ahead(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """MAIL: is there room for what it announces?"""
        if command.error is not None or session.state is not _GREETED:
            return proceed(session, command)
        cost = _announced_size(command)
        if cost > self._largest and self._key(session, command) is not None:
            return _NEVER
        return self._ask(session, command, self._test, cost) or proceed(session, command)

    def _count_message(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.error is not None or session.state is not _GREETED:
            return proceed(session, command)  # it is refused, and begins nothing
        return self._ask(session, command, self._hit) or proceed(session, command)

    def _expect_octets(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """DATA: forget how the last message was counted."""
        if session.state is State.RECIPIENTS and command.error is None:  # it is in its place
            session.notes.pop(self, None)
        return proceed(session, command)

    def _count_octets(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """END-OF-DATA: LMTP has one for each recipient, of one and the same message."""
        if self not in session.notes:
            size = max(1, session.message.size) if session.message is not None else 1
            session.notes[self] = self._ask(session, command, self._spend, size)
        refusal: Reply | None = session.notes[self]
        return refusal or proceed(session, command)

    def _count_failure(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        key = self._key(session, command)
        if key is None:
            return proceed(session, command)
        refusal = self._begin_attempt(session, command, key)
        if refusal is not None:
            return refusal
        try:
            try:
                reply = proceed(session, command)
            except ConnectionLost:
                self._ask(session, command, self._hit)
                raise
            if reply.code in _FAILED:
                self._ask(session, command, self._hit)  # what is too much is told next time
            return reply
        finally:
            self._add(key, -1)

    def _begin_attempt(self, session: Session, command: Command, key: str) -> Reply | None:
        """Count an attempt in; the refusal, if there is no room for it.

        Where attempts under way take all the room, it waits for them: several users may log in at the same time.
        """
        wait = waiting(session)
        while True:
            try:
                refusal = self._ask(session, command, self._test, self._add(key, 1))
            except BaseException:
                self._add(key, -1)
                raise
            if refusal is None:
                return None
            others = self._add(key, -1)
            if not others or self._ask(session, command, self._test) is not None or not wait():
                return refusal

    def _add(self, key: str, number: int) -> int:
        """Count an attempt in, or out; gives how many are under way."""
        with self._counting:
            count = self._under_way.pop(key, 0) + number
            if count:
                self._under_way[key] = count
            return count

    # Questions to the storage

    def _ask(
        self, session: Session, command: Command, question: Callable[[str, int], bool], cost: int = 1
    ) -> Reply | None:
        """The refusal; None: it may pass."""
        key = self._key(session, command)
        if key is None:
            return None
        if len(key) > _MAX_KEY:
            key = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            return None if self._store.ask(question, key, cost) else self._refusal
        except Unavailable:
            return None if self.fail_open else self._unknown

    def _test(self, key: str, cost: int) -> bool:
        return all(self._limiter.test(item, self._name, key, cost=cost) for item in self._items)

    def _hit(self, key: str, cost: int) -> bool:
        items = self._items
        if len(items) == 1:
            return self._limiter.hit(items[0], self._name, key, cost=cost)
        # What one of several limits refuses must not use the others up.
        return self._test(key, cost) and all(self._limiter.hit(item, self._name, key, cost=cost) for item in items)

    def _spend(self, key: str, cost: int) -> bool:
        """A hit that has been taken already: what is too much for the limit uses it up."""
        if self._hit(key, cost):
            return True
        for item in self._items:
            left = self._limiter.get_window_stats(item, self._name, key).remaining
            if left > 0:
                self._limiter.hit(item, self._name, key, cost=min(left, cost))
        return False

    def __repr__(self) -> str:
        shown = [repr(self.limit), f"by={self._by_name!r}"]
        if self.on != "messages":
            shown.append(f"on={self.on!r}")
        if self._store.shown != "memory://":
            shown.append(f"storage={self._store.shown!r}")
        return f"RateLimit({', '.join(shown)})"


def _read_limits(limit: str) -> list[RateLimitItem]:
    from limits import parse_many

    try:
        items = parse_many(limit)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise ArgumentError("limit", f"takes '100/minute', or several: '100/minute; 1000/hour', not {limit!r}")
    return items


def _announced_size(command: Command) -> int:
    """What SIZE= announces (RFC 1870 section 6.1), or 1."""
    size = command.address.parameters.get("SIZE") if isinstance(command, PathCommand) else None
    return max(1, int(size)) if size is not None and size.isascii() and size.isdigit() and len(size) <= 20 else 1


def _identity(session: Session, command: Command) -> str | None:
    identity = session.identity
    return None if identity is None else str(getattr(identity, "authcid", identity)).casefold()


def _sender(session: Session, command: Command) -> str | None:
    sender = command.address if command.verb == "MAIL" and isinstance(command, PathCommand) else session.from_
    return sender.casefold() if sender else None


def _recipient(session: Session, command: Command) -> str | None:
    return command.address.casefold() if isinstance(command, PathCommand) else None


#: Who is counted -> the key.
_KEYS: Mapping[str, Key] = {"identity": _identity, "sender": _sender, "recipient": _recipient}
