"""AccessList: which networks may connect, from lists and from files that are read again when they change."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path
from time import monotonic
from typing import Literal

from gevent import Timeout, get_hub

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError
from greensmtp.middleware._validate import check_choice, check_number, make_refusal
from greensmtp.middleware.auth.credentials import check_flag
from greensmtp.networks import IPAddress, IPNetwork, client_address, read_network
from greensmtp.protocol.command import ACCEPT, Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

logger = logging.getLogger("greensmtp.access")

Verdict = Literal["allow", "deny"]
News = deque[tuple[int, str]]

_DENIED = Reply(554, "5.7.1 Access denied")

#: Seconds that a connection waits for files to be looked at; it goes by the old lists when that takes longer.
_PATIENCE = 5.0

#: What begins a comment: our own sign, and that of the lists which others publish.
_COMMENTS = ("#", ";")


class AccessList:
    """Lets some networks in and keeps others out, with 554 5.7.1 at ACCEPT: before TLS, and without a place
    in ``max_connections``.

    The most specific network that holds the client's address decides; where one network is in both lists, it is
    denied. Looking an address up takes a step for each length of prefix there is, however many networks there are. An
    IPv4-mapped IPv6 address is the IPv4 address.

    A file has a network or an address a line; what follows ``#`` or ``;`` is a comment. It is looked at once in
    ``check_seconds`` at most, when somebody connects, and read again when it has changed, in gevent's thread pool. A
    file that cannot be read, or has a line that is no network, leaves in force what was read before, and is logged
    once.

    :param allow, deny: networks and addresses: ``"192.0.2.0/24"``, ``"2001:db8::/32"``, ``"198.51.100.7"``.
    :param allow_file, deny_file: files of them.
    :param otherwise: what becomes of those in no list: ``"allow"`` or ``"deny"``; when not given, they are denied
        where there is something to allow and nothing to deny, else allowed.
    :param allow_unix: clients on unix sockets may connect.
    :param check_seconds: how old the knowledge of a file may be.
    :param code, message: the reply, instead of ``554 5.7.1 Access denied``.
    :raises ValueError: no network, or an argument out of range; for a file, with its name and line.
    :raises OSError: a file cannot be read.
    """

    verbs = (ACCEPT,)

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        *,
        allow_file: str | Path | None = None,
        deny_file: str | Path | None = None,
        otherwise: Verdict | None = None,
        allow_unix: bool = True,
        check_seconds: float = 5.0,
        code: int | None = None,
        message: str | None = None,
    ) -> None:
        allowed, denied = _read_list("allow", allow), _read_list("deny", deny)
        if not (allowed or denied or allow_file is not None or deny_file is not None or otherwise is not None):
            raise ValueError(
                "AccessList takes allow, deny, allow_file, deny_file or otherwise; without, it does nothing"
            )
        #: Those in no list are ``"allow"`` or ``"deny"``.
        self.otherwise: Verdict
        if otherwise is None:
            self.otherwise = "deny" if (allowed or allow_file) and not (denied or deny_file) else "allow"
        else:
            check_choice("otherwise", otherwise, ("allow", "deny"))
            self.otherwise = otherwise
        self.allow_unix = check_flag("allow_unix", allow_unix)
        self.check_seconds = check_number("check_seconds", check_seconds)
        self._refusal = make_refusal(code, message, _DENIED)
        self._allowed, self._denied = allowed, denied
        self._allow_file = None if allow_file is None else _NetworkFile(Path(allow_file))
        self._deny_file = None if deny_file is None else _NetworkFile(Path(deny_file))
        self._files = [file for file in (self._allow_file, self._deny_file) if file is not None]
        for file in self._files:
            file.read()
        self._table = self._compile()
        self._look_at = monotonic() + self.check_seconds
        self._looking = False
        #: What is to be logged.
        self._news: News = deque()

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Let it in, or not."""
        address = client_address(session)
        if address is None:
            return proceed(session, command) if self.allow_unix else self._refusal
        if self._files and not self._looking and monotonic() >= self._look_at:
            self._look()
        return proceed(session, command) if self._verdict(address) == "allow" else self._refusal

    def allows(self, address: IPAddress) -> bool:
        """This address may connect, by the lists as they were read last."""
        return self._verdict(address) == "allow"

    def _verdict(self, address: IPAddress) -> Verdict:
        number = int(address)
        for shift, networks in self._table[address.version]:
            verdict = networks.get(number >> shift)
            if verdict is not None:
                return verdict
        return self.otherwise

    def _compile(self) -> dict[int, list[tuple[int, dict[int, Verdict]]]]:
        """IP version -> the networks of each length of prefix, longest first: bits to drop, what is left -> verdict."""
        tables: dict[int, dict[int, dict[int, Verdict]]] = {4: {}, 6: {}}
        for verdict, networks in self._lists():
            for network in networks:
                shift = network.max_prefixlen - network.prefixlen
                table = tables[network.version].setdefault(shift, {})
                table[int(network.network_address) >> shift] = verdict
        return {version: sorted(table.items(), key=lambda item: item[0]) for version, table in tables.items()}

    def _lists(self) -> Iterator[tuple[Verdict, Iterable[IPNetwork]]]:
        # What is denied comes last, and so has the last word on a network that is in both.
        yield "allow", self._allowed
        if self._allow_file is not None:
            yield "allow", self._allow_file.networks
        yield "deny", self._denied
        if self._deny_file is not None:
            yield "deny", self._deny_file.networks

    def _look(self) -> None:
        """Read what has changed. One connection waits for it; all others go by what is known."""
        self._looking = True
        result = None
        patience = Timeout(_PATIENCE)
        try:
            with patience:
                result = get_hub().threadpool.spawn(self._read_changed)
                result.get()
        except Timeout as expired:
            if expired is not patience:
                raise  # somebody else's
            # It goes on there, and counts for those who come later.
        finally:
            if result is None:
                self._looking = False
        while self._news:
            level, text = self._news.popleft()
            logger.log(level, "access list: %s", text)

    def _read_changed(self) -> None:
        """Runs in the thread pool, and raises and logs nothing: loggers belong to the thread of the hub."""
        try:
            changed = [file.read_if_changed(self._news) for file in self._files]
            if any(changed):
                self._table = self._compile()
        finally:
            self._look_at = monotonic() + self.check_seconds
            self._looking = False

    def __repr__(self) -> str:
        shown: list[str] = []
        for name, networks in (("allow", self._allowed), ("deny", self._denied)):
            if networks:
                few = f"[{', '.join(repr(str(network)) for network in networks)}]"
                shown.append(f"{name}={few if len(networks) <= 3 else f'<{len(networks)} networks>'}")
        for name, file in (("allow_file", self._allow_file), ("deny_file", self._deny_file)):
            if file is not None:
                shown.append(f"{name}={str(file.path)!r}")
        return f"AccessList({', '.join((*shown, f'otherwise={self.otherwise!r}'))})"


class _NetworkFile:
    """A file of networks, as it was when it was last good."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.networks: list[IPNetwork] = []
        #: What tells one version of the file from another; None: there is none that could be looked at.
        self._version: tuple[int, int, int] | None = None
        self._complaint: str | None = None

    def read(self) -> None:
        """Read it.

        :raises ValueError: a line is no network; the text names file and line.
        :raises OSError: it cannot be read.
        """
        # The version first: what is written in the meantime is then read again, rather than missed.
        self._version = self._look()
        self.networks = list(self._parse(self.path.read_text("utf-8-sig", "replace")))

    def read_if_changed(self, news: News) -> bool:
        """Read it when it has changed; True: it was, and it was good. What is wrong with it is told, and once."""
        try:
            if self._look() == self._version:
                return False
            self.read()
        except Exception as error:
            if isinstance(error, OSError):
                self._version = None  # there may be no new version to tell that it can be read again
            if str(error) != self._complaint:
                self._complaint = str(error)
                news.append((logging.ERROR, f"{error}; what was read before stays in force"))
            return False
        self._complaint = None
        news.append((logging.INFO, f"read {self.path} again: {len(self.networks)} networks"))
        return True

    def _look(self) -> tuple[int, int, int]:
        found = self.path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _parse(self, text: str) -> Iterator[IPNetwork]:
        for number, line in enumerate(text.splitlines(), 1):
            for comment in _COMMENTS:
                line = line.partition(comment)[0]  # noqa: PLW2901 - the line, less what does not count
            line = line.strip()  # noqa: PLW2901
            if line:
                try:
                    yield read_network(line)
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number}: {_what_is_wrong(line, error)}") from None


def _read_list(name: str, networks: Iterable[str]) -> list[IPNetwork]:
    if isinstance(networks, str):
        raise ArgumentError(name, f"takes several networks: [{networks!r}]")
    read = []
    for network in networks:
        try:
            read.append(read_network(network))
        except ValueError as error:
            raise ArgumentError(name, f"has a wrong entry: {_what_is_wrong(network, error)}") from None
    return read


def _what_is_wrong(text: str, error: ValueError) -> str:
    """Say what is taken, and what was meant where that can be told."""
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        return f"not a network like 192.0.2.0/24 or 2001:db8::/32: {text!r}"
    return f"{error}; did you mean {meant}?"
