"""RateLimit: limits on connections, messages, recipients, bytes and failed logins, by the ``limits`` library."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Literal

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ConnectionLost
from greensmtp.middleware._in_flight import InFlight
from greensmtp.middleware._pause import waiting
from greensmtp.middleware._validate import check_choice, check_flag, check_number, make_refusal
from greensmtp.middleware.rate_limit.keys import BY, By, On, make_key
from greensmtp.middleware.rate_limit.quota import Quota
from greensmtp.middleware.rate_limit.store import Unavailable, import_limits, open_store
from greensmtp.protocol.command import ACCEPT, END_OF_DATA, Command, PathCommand
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.session import Session
from greensmtp.signals import handler_name

Strategy = Literal["moving-window", "fixed-window", "sliding-window-counter"]

#: on -> the refusal
_REFUSALS: Mapping[str, Reply] = {
    "connections": Reply(421, "4.7.0 Too many connections in a short time, try again later"),
    "messages": Reply(450, "4.7.1 Too many messages in a short time, try again later"),
    "recipients": Reply(450, "4.7.1 Too many recipients in a short time, try again later"),
    "bytes": Reply(450, "4.7.1 Too many bytes in a short time, try again later"),
    "auth_failures": Reply(454, "4.7.0 Too many failed attempts to authenticate, try again later"),
}
_NEVER = Reply(552, "5.3.4 Message exceeds your byte quota")

#: The refusals where the storage cannot be asked and ``fail_open`` is false.
_UNKNOWN = Reply(451, "4.3.0 Limits cannot be checked just now, try again later")
_UNKNOWN_AT_AUTH = Reply(454, "4.7.0 Limits cannot be checked just now, try again later")

#: Longer keys are hashed: text from a client must not fill a storage.
_MAX_KEY = 128

#: Replies to AUTH that count as a failed attempt. Not 535 alone: an OAuth client that learns of the failure from a
#: challenge may answer anything, such as ``*`` or no base64 (RFC 7628 section 3.2.3).
_FAILED = frozenset({421, 500, 501, 535})

_GREETED = State.GREETED

_numbers = itertools.count(1)


class RateLimit:
    """Refuses what exceeds a limit in a window of time.

    ``RateLimit("100/minute")`` accepts a hundred messages a minute from each address. Limits have the syntax of the
    ``limits`` library, several with a semicolon between them: ``"100/minute; 1000/hour"``.

    ``on`` is what is counted, which determines where the refusal comes:

    - ``"connections"``: 421 at ACCEPT, which comes before TLS.
    - ``"messages"``: 450 at MAIL. Every MAIL in its place counts, as in Postfix, whether or not a message follows.
    - ``"recipients"``: 450 at RCPT. Refused recipients count as well, since they may be guesses.
    - ``"bytes"``: 450 at MAIL when nothing is left, or less than SIZE announces; 552 when SIZE exceeds the limit
      itself. The size of the message is counted at the end of its data. If it exceeds what is left, the message is
      refused, and the limit is used up.
    - ``"auth_failures"``: 454 at AUTH. An attempt fails with 535, with a malformed answer or ``*``, or when the client
      disconnects before its end. Attempts under way count as failures, so that many at once get no further than one
      after the other; further attempts wait for them, up to ten seconds.

    ``by`` is the key: ``"address"``, ``"network"``, ``"identity"`` (the authenticated user), ``"sender"``,
    ``"recipient"`` (on recipients only), or a function of the session that returns a str. What has no key is not
    limited: clients on unix sockets have no address, clients that have not authenticated no identity, the null sender
    has no name, and the function may return None.

    :param limit: one or several limits: ``"10/second"``, ``"100 per 5 minutes"``.
    :param strategy: ``"moving-window"`` (exact, and the default), ``"fixed-window"``, or ``"sliding-window-counter"``
        (the default for bytes, since a moving window remembers every hit).
    :param storage: ``"memory://"`` counts in this process, ``"redis://host:6379"`` over all machines that use it.
    :param fail_open: pass commands on when the storage cannot be asked. Default: True, so that mail flows; False for
        ``on="auth_failures"``, where it would allow guessing.
    :param name: limits with the same name, text, ``by``, ``on`` and strategy count together if they share a storage. In
        memory a limit without a name counts alone.
    :param ipv4_prefix: the prefix length of an IPv4 key: 32 by ``"address"``, 24 by ``"network"``.
    :param ipv6_prefix: the prefix length of an IPv6 key: 64, since a host chooses its own address within a /64.
    :param timeout: seconds to connect to the storage, and again seconds for its answer.
    :param code: the code of the refusal; None: the usual one. 421 closes the connection.
    :param message: its text.
    :raises ValueError: an argument is out of range, or two do not go together.
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
        self.on = check_choice("on", on, _REFUSALS)
        self.by = by if callable(by) else check_choice("by", by, BY)
        self._key = make_key(self.on, self.by, ipv4_prefix, ipv6_prefix)
        self.fail_open = on != "auth_failures" if fail_open is None else check_flag("fail_open", fail_open)
        self._refusal = make_refusal(code, message, _REFUSALS[on])
        self._unknown = _UNKNOWN_AT_AUTH if on == "auth_failures" else _UNKNOWN
        check_number("timeout", timeout, least=0.01, most=60.0)
        import_limits()
        if not name and str(storage).startswith("memory:"):
            name = f"#{next(_numbers)}"
        self._by_name = self.by if isinstance(self.by, str) else handler_name(self.by)
        prefix = f"{name}/{self.on}/{self._by_name}"
        self._store = open_store(storage, timeout, prefix)
        self._quota = Quota(limit, strategy, self._store.storage, prefix, of_bytes=on == "bytes")
        #: Attempts to authenticate.
        self._in_flight = InFlight()
        self._handlers = self._make_handlers()
        #: The commands that pass through here.
        self.verbs = tuple(self._handlers)

    def _make_handlers(self) -> Mapping[str, Callable[[Session, Command, Proceed], Reply]]:
        """Return verb -> handler."""
        if self.on == "connections":
            return {ACCEPT: self._count_connection}
        if self.on == "recipients":
            return {"RCPT": self._count_recipient}
        if self.on == "auth_failures":
            return {"AUTH": self._count_failure}
        if self.on == "messages":
            return {"MAIL": self._count_message}
        return {
            "MAIL": self._check_size,
            "DATA": self._begin_data,
            "BDAT": self._begin_data,
            END_OF_DATA: self._count_bytes,
        }

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Count the command, and pass it on or refuse it."""
        return self._handlers[command.verb](session, command, proceed)

    # The commands. One that is out of its place will be refused, and counts for nothing.

    def _count_connection(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return self._ask(self._quota.hit, self._key(session, command)) or proceed(session, command)

    def _count_message(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.error is not None or session.state is not _GREETED:
            return proceed(session, command)
        return self._ask(self._quota.hit, self._key(session, command)) or proceed(session, command)

    def _count_recipient(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.error is not None or session.from_ is None:
            return proceed(session, command)
        return self._ask(self._quota.hit, self._key(session, command)) or proceed(session, command)

    def _check_size(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """MAIL: compare the announced size with what is left."""
        if command.error is not None or session.state is not _GREETED:
            return proceed(session, command)
        key, cost = self._key(session, command), _announced_size(command)
        if key is not None and cost > self._quota.largest:
            return _NEVER
        return self._ask(self._quota.test, key, cost) or proceed(session, command)

    def _begin_data(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """DATA and BDAT: forget the verdict on the last message."""
        if command.error is None and session.state is State.RECIPIENTS:
            session.notes.pop(self, None)
        return proceed(session, command)

    def _count_bytes(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """END-OF-DATA: count a message once, even though LMTP has one END-OF-DATA for each recipient."""
        if self not in session.notes:
            size = max(1, session.message.size) if session.message is not None else 1
            session.notes[self] = self._ask(self._quota.spend, self._key(session, command), size)
        refusal: Reply | None = session.notes[self]
        return refusal or proceed(session, command)

    def _count_failure(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        key = self._key(session, command)
        if key is None:
            return proceed(session, command)
        refusal = self._begin_attempt(session, key)
        if refusal is not None:
            return refusal
        try:
            try:
                reply = proceed(session, command)
            except ConnectionLost:
                self._ask(self._quota.hit, key)
                raise
            if reply.code in _FAILED:
                self._ask(self._quota.hit, key)  # a limit that is reached shows at the next attempt
            return reply
        finally:
            self._in_flight.end(key)

    def _begin_attempt(self, session: Session, key: str) -> Reply | None:
        """Begin an attempt; return the refusal when the limit is reached.

        Where attempts under way use up the limit, wait for them: several users may log in at the same time.
        """
        wait = waiting(session)
        while True:
            try:
                refusal = self._ask(self._quota.test, key, self._in_flight.begin(key))
            except BaseException:
                self._in_flight.end(key)
                raise
            if refusal is None:
                return None
            others = self._in_flight.end(key)
            if not others or self._ask(self._quota.test, key) is not None or not wait():
                return refusal

    def _ask(self, question: Callable[[str, int], bool], key: str | None, cost: int = 1) -> Reply | None:
        """Ask the storage; return the refusal, None if the command may pass."""
        if key is None:
            return None
        if len(key) > _MAX_KEY:
            key = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            return None if self._store.ask(question, key, cost) else self._refusal
        except Unavailable:
            return None if self.fail_open else self._unknown

    def __repr__(self) -> str:
        shown = [repr(self.limit), f"by={self._by_name!r}"]
        if self.on != "messages":
            shown.append(f"on={self.on!r}")
        if self._store.shown != "memory://":
            shown.append(f"storage={self._store.shown!r}")
        return f"RateLimit({', '.join(shown)})"


def _announced_size(command: Command) -> int:
    """Return the value of SIZE= (RFC 1870 section 6.1), or 1."""
    size = command.address.parameters.get("SIZE") if isinstance(command, PathCommand) else None
    return max(1, int(size)) if size is not None and size.isascii() and size.isdigit() and len(size) <= 20 else 1
