"""The data of one process for `greensmtp top`: counts since the first request, and the current connections.

The tally is an observer of the servers (``Routes.observe``) while a client is connected, and costs nothing otherwise.
Its size is bounded: clients choose senders and texts, so only the keys with the largest amounts are kept.
"""

from __future__ import annotations

import heapq
import os
import re
import resource
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greensmtp.chain.chain import Proceed
from greensmtp.protocol.command import CONNECT, DISCONNECT, END_OF_DATA, Command, EndOfData
from greensmtp.protocol.log_text import reply_text, shown
from greensmtp.protocol.reply import Reply
from greensmtp.server.handler import ConnectionHandler
from greensmtp.server.server import SMTPServer
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.server.registry import Registry

#: Maximum number of keys of a board; of rows and of connections in a snapshot.
MAX_KEYS = 2000
ROWS = 20
SESSIONS = 50

#: Maximum number of characters of an address or a reply in a snapshot.
WIDTH = 200

#: Parts of a reply that differ between refusals for the same reason: addresses and numbers.
_DETAIL = re.compile(r"<[^<>]*>|\b\d{3,}\b")

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Board:
    """The keys with the largest amounts, in bounded memory.

    :param columns: number of amounts per key; the sum of the first ``ranked`` determines the order.
    """

    def __init__(self, columns: int, ranked: int) -> None:
        self._rows: dict[Any, list[int]] = {}
        self._columns = columns
        self._ranked = ranked

    def add(self, key: Any, *amounts: int) -> None:
        """Add amounts to those of a key. When there are too many keys, the smaller half is dropped."""
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_KEYS:
                self._rows = dict(self._largest(MAX_KEYS // 2))
            row = self._rows[key] = [0] * self._columns
        for number, amount in enumerate(amounts):
            row[number] += amount

    def _largest(self, number: int) -> list[tuple[Any, list[int]]]:
        return heapq.nlargest(number, self._rows.items(), key=lambda item: sum(item[1][: self._ranked]))

    def top(self) -> list[tuple[Any, list[int]]]:
        """Return the keys with the largest amounts, and their amounts."""
        return self._largest(ROWS)


class Tally:
    """An observer that counts."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        #: The counts that `top` shows as rates.
        self.totals = dict.fromkeys(("connections", "commands", "messages", "recipients", "bytes", "rejections"), 0)
        #: Sender -> messages, refusals, bytes.
        self._senders = Board(3, 2)
        #: Client's address -> connections, messages, refusals.
        self._peers = Board(3, 3)
        #: (verb, reply code, text) -> number.
        self._reasons = Board(1, 1)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Count a command and its reply. This never raises."""
        if command.verb == END_OF_DATA:
            return self._count_message(session, command, proceed)
        totals = self.totals
        if command.verb == CONNECT:
            totals["connections"] += 1
            self._peers.add(_peer(session), 1)
        elif command.verb != DISCONNECT:
            totals["commands"] += 1
        reply = proceed(session, command)
        if reply.code >= 400:
            if command.verb == "MAIL":
                self._senders.add(_name(getattr(command, "address", "")), 0, 1)
            elif session.from_ is not None:
                self._senders.add(_name(session.from_), 0, 1)
            self._count_refusal(session, command.shown_verb, reply.code, reply_text(reply))
        return reply

    def _count_message(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        sender, recipients, stream = session.from_, session.to, session.message
        assert isinstance(command, EndOfData)
        lmtp = command.recipient is not None
        is_first = not lmtp or command.recipient is recipients[0]
        reply = proceed(session, command)
        size = stream.size if stream is not None and is_first else 0
        self.totals["bytes"] += size
        key = _name(sender)
        self._senders.add(key, 0, 0, size)
        if reply.code >= 400:
            self._senders.add(key, 0, 1)
            self._count_refusal(session, "message", reply.code, reply_text(reply))
            return reply
        # Staged last, since storing the message is staged before, and may fail.
        stored = False

        def accept() -> None:
            nonlocal stored
            stored = True
            self.totals["messages"] += is_first
            self.totals["recipients"] += 1 if lmtp else len(recipients)
            self._senders.add(key, int(is_first))
            self._peers.add(_peer(session), 0, int(is_first))

        def end() -> None:
            if not stored:
                self._senders.add(key, 0, 1)
                self._count_refusal(session, "message", 451, "could not be stored; the log says why")

        session.stage(accept)
        session.at_transaction_end(end)
        return reply

    def _count_refusal(self, session: Session, verb: str, code: int, text: str) -> None:
        self.totals["rejections"] += 1
        self._peers.add(_peer(session), 0, 0, 1)
        self._reasons.add((verb, code, _DETAIL.sub("...", text)[:WIDTH]), 1)

    def snapshot(self, servers: Iterable[SMTPServer]) -> dict[str, Any]:
        """Return the data of this process for `top`, except the hub's lag, as a JSON object."""
        connections = tls = messages = 0
        in_transaction: list[tuple[Registry[Any], ConnectionHandler]] = []
        others: list[tuple[Registry[Any], ConnectionHandler]] = []
        for server in servers:
            registry = server._registry
            for each in server.connections:  # one pass: there may be thousands
                if each.greenlet is None:
                    continue
                session = each.session
                connections += 1
                tls += session.tls
                messages += session.message is not None
                if session.from_ is not None:
                    in_transaction.append((registry, each))
                elif len(others) < SESSIONS:
                    others.append((registry, each))
        # Connections whose handlers are running come first.
        busiest = heapq.nsmallest(SESSIONS, in_transaction, key=lambda pair: bool(pair[1].transport.timeout))
        return {
            "pid": os.getpid(),
            "time": time.monotonic(),
            "seconds": time.monotonic() - self.began,
            "listeners": [_listener(server) for server in servers if server.started],
            "memory": _memory(),
            "cpu": time.process_time(),
            "connections": connections,
            "tls": tls,
            "transactions": len(in_transaction),
            "messages_in_flight": messages,
            "totals": dict(self.totals),
            "senders": [[key, *amounts] for key, amounts in self._senders.top()],
            "peers": [[key, *amounts] for key, amounts in self._peers.top()],
            "rejections": [[*key, *amounts] for key, amounts in self._reasons.top()],
            "sessions": [_session(registry, each) for registry, each in [*busiest, *others][:SESSIONS]],
        }


def _name(sender: str | None) -> str:
    return shown(sender, WIDTH) if sender else "<>"


def _peer(session: Session) -> str:
    return shown(session.peer_host or "unix", WIDTH)


def _listener(server: SMTPServer) -> str:
    address = server.address
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address)


def _session(registry: Registry[ConnectionHandler], handler: ConnectionHandler) -> Mapping[str, Any]:
    """Return a row of the table of connections."""
    session, transport = handler.session, handler.transport
    seconds = 0.0
    if transport.timeout:
        doing = "reading" if transport.in_body else "idle" if session.from_ is None else "waiting"
        if transport.wait_started:
            seconds = registry.monitor._now - transport.wait_started
    else:
        doing = handler.current.shown_verb if handler.current is not None else "busy"
        seconds = max(0.0, handler.spent)
    return {
        "id": session.id,
        "peer": _peer(session),
        "tls": session.tls,
        "identity": None if session.identity is None else shown(session.identity, WIDTH),
        "hello": None if session.hostname is None else shown(session.hostname, WIDTH),
        "doing": doing,
        "seconds": seconds,
        "sender": None if session.from_ is None else _name(session.from_),
        "recipients": len(session.to),
        "size": 0 if session.message is None else session.message.size,
        "messages": session.messages_accepted,
        "errors": session.errors,
    }


def _memory() -> int:
    """Return the memory of this process in bytes; the peak if the system does not report the current value."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
