"""AccessList: the networks that may connect, from lists, and from files that are read again when they change."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from time import monotonic
from typing import Literal

from gevent import Timeout, get_hub

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError
from greensmtp.middleware._validate import check_choice, check_flag, check_number, make_refusal
from greensmtp.middleware._watched_file import WatchedFile
from greensmtp.networks import IPAddress, IPNetwork, client_address, read_network
from greensmtp.protocol.command import ACCEPT, Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

logger = logging.getLogger("greensmtp.access")

Verdict = Literal["allow", "deny"]

_DENIED = Reply(554, "5.7.1 Access denied")

#: Seconds that a connection waits for a check of the files; after that it is judged by the lists read before.
_CHECK_TIMEOUT = 5.0

#: What begins a comment: ``#``, and ``;`` as in published lists.
_COMMENT = re.compile("[#;]")


class AccessList:
    """Allows or denies connections by network, with 554 5.7.1 at ACCEPT: before TLS, and before ``max_connections``.

    The most specific network that contains the client's address decides. A network in both lists is denied. A lookup
    takes one step for each prefix length in use, however many networks there are. An IPv4-mapped IPv6 address counts as
    the IPv4 address.

    A file has one network or address a line; ``#`` and ``;`` begin a comment. Files are checked when a client connects,
    at most once in ``check_seconds``, and read again when they have changed, in gevent's thread pool. If a file cannot
    be read, or a line is malformed, what was read before stays in force, and the problem is logged once.

    :param allow: networks and addresses to allow: ``"192.0.2.0/24"``, ``"2001:db8::/32"``, ``"198.51.100.7"``.
    :param deny: networks and addresses to deny.
    :param allow_file: a file of networks to allow.
    :param deny_file: a file of networks to deny.
    :param otherwise: ``"allow"`` or ``"deny"`` for addresses in no list. Default: "deny" if there is something to allow
        and nothing to deny, else "allow".
    :param allow_unix: allow clients on unix sockets.
    :param check_seconds: seconds between two checks of the files.
    :param code: the code of the refusal; None: 554.
    :param message: its text; None: ``5.7.1 Access denied``.
    :raises ValueError: a network is malformed, or an argument is out of range. For a file the text names the line.
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
                "AccessList takes allow, deny, allow_file, deny_file or otherwise; with none of them it does nothing"
            )
        #: ``"allow"`` or ``"deny"`` for addresses in no list.
        self.otherwise: Verdict
        if otherwise is None:
            self.otherwise = "deny" if (allowed or allow_file) and not (denied or deny_file) else "allow"
        else:
            check_choice("otherwise", otherwise, ("allow", "deny"))
            self.otherwise = otherwise
        self.allow_unix = check_flag("allow_unix", allow_unix)
        self.check_seconds = check_number("check_seconds", check_seconds)
        self._refusal = make_refusal(code, message, _DENIED)
        #: Networks in the arguments, and in files.
        self._lists: list[tuple[Verdict, list[IPNetwork]]] = [("allow", allowed), ("deny", denied)]
        self._files: list[tuple[Verdict, WatchedFile[list[IPNetwork]]]] = []
        if allow_file is not None:
            self._files.append(("allow", WatchedFile(Path(allow_file), _read_file)))
        if deny_file is not None:
            self._files.append(("deny", WatchedFile(Path(deny_file), _read_file)))
        self._table = self._compile()
        self._check_at = monotonic() + self.check_seconds
        self._checking = False
        #: Log entries of the thread pool.
        self._read_again: deque[str] = deque()

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass ACCEPT on, or refuse it."""
        address = client_address(session)
        if address is None:
            return proceed(session, command) if self.allow_unix else self._refusal
        if self._files and not self._checking and monotonic() >= self._check_at:
            self._check_files()
        return proceed(session, command) if self._verdict(address) == "allow" else self._refusal

    def allows(self, address: IPAddress) -> bool:
        """Return whether this address may connect, by the lists as they were read last."""
        return self._verdict(address) == "allow"

    def _verdict(self, address: IPAddress) -> Verdict:
        number = int(address)
        for shift, networks in self._table[address.version]:
            verdict = networks.get(number >> shift)
            if verdict is not None:
                return verdict
        return self.otherwise

    def _compile(self) -> dict[int, list[tuple[int, dict[int, Verdict]]]]:
        """Return IP version -> a list by prefix length, longest first: bits to drop, other bits -> verdict."""
        tables: dict[int, dict[int, dict[int, Verdict]]] = {4: {}, 6: {}}
        lists = [*self._lists, *((verdict, file.content) for verdict, file in self._files)]
        for verdict, networks in sorted(lists, key=lambda each: each[0]):
            # "deny" comes last, and so replaces the verdict on a network that is in both lists.
            for network in networks:
                shift = network.max_prefixlen - network.prefixlen
                table = tables[network.version].setdefault(shift, {})
                table[int(network.network_address) >> shift] = verdict
        return {version: sorted(table.items(), key=lambda item: item[0]) for version, table in tables.items()}

    def _check_files(self) -> None:
        """Read files that have changed. One connection waits for it; all others are judged by the lists read before."""
        self._checking = True
        result = None
        timeout = Timeout(_CHECK_TIMEOUT)
        try:
            with timeout:
                result = get_hub().threadpool.spawn(self._read_changed)
                result.get()
        except Timeout as expired:
            if expired is not timeout:
                raise  # a timeout of an outer caller
            # The check goes on in its thread, and later connections use its result.
        finally:
            if result is None:
                self._checking = False
        for _, file in self._files:
            while file.problems:
                logger.error("access list: %s", file.problems.popleft())
        while self._read_again:
            logger.info("access list: %s", self._read_again.popleft())

    def _read_changed(self) -> None:
        """Read files that have changed. Runs in the thread pool; log entries are left for the hub's thread."""
        try:
            for _, file in self._files:
                before = file.content
                networks = file.refresh()
                if networks is not before:
                    self._table = self._compile()
                    self._read_again.append(f"read {file.path} again: {len(networks)} networks")
        finally:
            self._check_at = monotonic() + self.check_seconds
            self._checking = False

    def __repr__(self) -> str:
        shown = []
        for verdict, networks in self._lists:
            if networks:
                few = f"[{', '.join(repr(str(network)) for network in networks)}]"
                shown.append(f"{verdict}={few if len(networks) <= 3 else f'<{len(networks)} networks>'}")
        shown += (f"{verdict}_file={str(file.path)!r}" for verdict, file in self._files)
        return f"AccessList({', '.join((*shown, f'otherwise={self.otherwise!r}'))})"


def _read_file(path: Path) -> list[IPNetwork]:
    networks = []
    for number, line in enumerate(path.read_text("utf-8-sig", "replace").splitlines(), 1):
        entry = _COMMENT.split(line, maxsplit=1)[0].strip()
        if entry:
            try:
                networks.append(read_network(entry))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {_explain(entry, error)}") from None
    return networks


def _read_list(name: str, networks: Iterable[str]) -> list[IPNetwork]:
    if isinstance(networks, str):
        raise ValueError(f"{name} takes several networks: [{networks!r}]")
    read = []
    for network in networks:
        try:
            read.append(read_network(network))
        except ValueError as error:
            raise ArgumentError(name, f"has a wrong entry: {_explain(network, error)}") from None
    return read


def _explain(text: str, error: ValueError) -> str:
    """Return the text of an error, with the network that was probably meant."""
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        return f"not a network like 192.0.2.0/24 or 2001:db8::/32: {text!r}"
    return f"{error}; did you mean {meant}?"
