"""``Spool``: accept mail now, keep it on the disk, and send it to a next hop with retries.

How it works. A message is a file of a ``Folder``; the client gets 250 when it is on the disk. A ``Sender`` sends it
when it is due. After a temporary refusal, it is due again by the schedule. A permanent refusal, or one after the last
attempt, is reported to the message's sender, by a message of the same spool.

Rules of this file:

- A message leaves its folder only when nothing is left to do for it. The state is written after each attempt: if the
  process is killed between the next hop's 250 and that, the message is sent again, with the same ID in Received.
- A report is in the folder before its recipients are marked as done.
- A message with the null sender gets no report (RFC 5321 section 4.5.5). It becomes a dead letter.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from greensmtp import health
from greensmtp.client.options import StartTLS
from greensmtp.delivery import trace
from greensmtp.delivery._disk import DiskThread
from greensmtp.delivery._maildir_file import MaildirFile
from greensmtp.delivery.contract import Delivery, Envelope
from greensmtp.delivery.mx import MX
from greensmtp.delivery.next_hop import NextHop
from greensmtp.delivery.resolver import DNSResolver
from greensmtp.delivery.schedule import parse_duration, parse_schedule
from greensmtp.delivery.spool_folder import Folder, describe, envelope_line
from greensmtp.delivery.spool_sender import Sender, Sending
from greensmtp.errors import ArgumentError
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.session import Session
from greensmtp.session.server_info import ServerInfo
from greensmtp.thread_pool import BoundedPool, in_thread_pool

logger = logging.getLogger("greensmtp")

#: About five days (RFC 5321 section 4.5.4.1).
SCHEDULE = "1m, 5m*3, 15m*3, 1h*6, 4h*28"

#: Maximum number of gevent's threads for large messages.
_THREADS = 4


class Spool(Delivery):
    """Store messages, and send them on: ``Spool("/var/spool/greensmtp", to="smtp://mx.example.net:25")``.

    The client gets 250 when the message is on the disk. It is sent at once, then by ``schedule``. If the next hop
    refuses a recipient permanently (5xx), or still refuses it at the last attempt, the sender gets a report
    (RFC 3464), unless DSN's NOTIFY forbids it. Delays are reported too, and success if NOTIFY asks for it.
    ``greensmtp spool`` shows and changes the waiting messages.

    :param path: the folder. Several processes may share it, on one machine.
    :param to: as for ``Forward``; so are ``starttls``, ``username``, ``password``, ``token``, ``rate``, ``timeout``,
        ``source_address`` and ``local_hostname``.
    :param mx: instead of ``to``: send to the MX hosts of each recipient's domain; see ``MX``. It needs
        ``greensmtp[dns]``.
    :param mta_sts: with ``mx``, apply the MTA-STS policies of domains (RFC 8461).
    :param nameservers: with ``mx``, addresses of name servers; None: those of the system.
    :param port: with ``mx``, the port of all hosts.
    :param schedule: the intervals between attempts: ``"1m, 5m*2, 1h*3"``; by default about five days.
    :param at_the_end: ``"report"`` to the sender, or keep a ``"dead-letter"``.
    :param concurrency: maximum number of messages sent at once, in each process.
    :param domain_concurrency: with ``mx``, maximum number of messages sent to one domain at once, so that a slow domain
        does not block the others. None: a quarter of ``concurrency``.
    :param delay_report: age of a message, like ``"4h"``, after which the next failed attempt is reported to the sender
        as a delay; False: never.
    :raises ArgumentError, ValueError: an argument is invalid, or the folder cannot be created.
    """

    # For MaildirFile: one folder for all.
    per_recipient = False

    def __init__(
        self,
        path: str | Path,
        *,
        to: str | Sequence[str] | None = None,
        mx: bool = False,
        mta_sts: bool = True,
        nameservers: Sequence[str] | None = None,
        port: int = 25,
        schedule: str = SCHEDULE,
        at_the_end: Literal["report", "dead-letter"] = "report",
        concurrency: int = 20,
        domain_concurrency: int | None = None,
        delay_report: str | Literal[False] = "4h",
        starttls: StartTLS | None = None,
        username: str | None = None,
        password: str | Callable[[], str] | None = None,
        token: str | Callable[[], str] | None = None,
        rate: float | None = None,
        timeout: float = 60.0,
        source_address: str | None = None,
        local_hostname: str | None = None,
    ) -> None:
        if at_the_end not in ("report", "dead-letter"):
            raise ArgumentError("at_the_end", f"expected 'report' or 'dead-letter'; got {at_the_end!r}")
        if concurrency < 1:
            raise ArgumentError("concurrency", f"expected at least 1; got {concurrency!r}")
        if domain_concurrency is not None and domain_concurrency < 1:
            raise ArgumentError("domain_concurrency", f"expected at least 1; got {domain_concurrency!r}")
        if not str(path):
            raise ArgumentError("path", "expected the name of a folder; got an empty one")
        times = parse_schedule(schedule)
        delay_after = None if delay_report is False else parse_duration("delay_report", delay_report)
        if (to is None) != mx:
            raise ArgumentError("to", "or mx=True must be given, and not both")
        if mx and (username is not None or nameservers == []):
            raise ArgumentError("mx", "cannot be used with a username, or without a name server")
        options: dict[str, Any] = {
            "size": concurrency,
            "rate": rate,
            "timeout": timeout,
            "source_address": None if source_address is None else (source_address, 0),
            "local_hostname": local_hostname,
        }
        if starttls is not None:
            options["starttls"] = starttls
        self._make_next_hop: Callable[[str], NextHop | MX]
        if to is None:
            resolver = DNSResolver(nameservers)
            self._make_next_hop = partial(MX, resolver=resolver, port=port, sts=mta_sts, **options)
        else:
            next_hop = NextHop(to, username=username, password=password, token=token, **options)
            self._make_next_hop = lambda hostname: next_hop
        self.path = Path(path).absolute()
        self.folder = Folder(self.path)
        self._sending = Sending(
            self.folder,
            times,
            at_the_end,
            concurrency,
            (domain_concurrency or max(1, concurrency // 4)) if mx else 0,
            delay_after,
        )
        self.pool = BoundedPool(_THREADS)
        self.disk = DiskThread()
        self._device = 0
        self._servers = 0
        self._sender: Sender | None = None

    def __repr__(self) -> str:
        return f"<Spool {str(self.path)!r}>"

    def start(self, server: ServerInfo) -> None:
        """Begin to send the waiting messages."""
        if self._sender is None:
            in_thread_pool(self.folder.make)
            in_thread_pool(self.folder.sweep, time.time())
            health.add_store(self.path)
            weakref.finalize(self, health.remove_store, self.path).atexit = False
            next_hop = self._make_next_hop(server.hostname)
            next_hop.open(server.hostname)
            self._sender = Sender(self._sending, next_hop, server.hostname)
        self._servers += 1  # only now, since what has failed to start is not stopped

    def stop(self, server: ServerInfo) -> None:
        """Stop sending, with the last server. Unsent messages stay."""
        self._servers -= 1
        if not self._servers and self._sender is not None:
            sender, self._sender = self._sender, None
            sender.stop()
            sender.next_hop.close()

    def begin(self, envelope: Envelope) -> SpoolFile:
        """Begin the file of a message."""
        return SpoolFile(self, envelope)

    def added(self, name: str) -> None:
        """Schedule a new message."""
        if self._sender is not None:
            self._sender.add(name)

    # For MaildirFile

    def folders(self, session: Session, recipients: Any) -> Sequence[Path]:
        """Return the folder."""
        return (self.path,)

    def envelope_to(self, recipients: Sequence[Address]) -> bytes:
        """Return nothing: the envelope is in the first line of the file."""
        return b""

    def make(self, folder: Path) -> int:
        """Return the device of the folder's file system. Called in a native thread."""
        if not self._device:
            self.folder.make()
            self._device = folder.stat().st_dev
        return self._device

    def forget(self, folder: Path) -> None:
        """Make the folder again for the next message."""
        self._device = 0


class SpoolFile(MaildirFile):
    """The file of one message on its way into the spool."""

    def __init__(self, spool: Spool, envelope: Envelope) -> None:
        super().__init__(spool, envelope)
        self._spool = spool
        self.name = self.name.split(".")[1]
        self._partial = f"{spool.path}/tmp/{self.name}"
        self._head = envelope_line(describe(envelope.sender, list(envelope.recipients))) + trace.received_field(
            envelope.session
        )
        self._section = HeaderSection()

    def commit(self, recipients: Sequence[Address]) -> None:
        """Move the message into the spool, and schedule it."""
        refused = [str(each) for each in self.envelope.recipients if each not in recipients]
        if refused:  # in LMTP, after the envelope was written
            in_thread_pool(self._leave_out, refused)
        super().commit(recipients)
        self._spool.added(self.name)

    def _leave_out(self, refused: list[str]) -> None:
        state = self._spool.folder.state(self.name)
        state.done = refused
        self._spool.folder.write_state(self.name, state)
