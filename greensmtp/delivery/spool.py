"""``Spool``: accept mail now, and pass it on to a next hop in its own time, for those who have no other queue.

How it works. A message is a file of a ``Folder``; the client gets 250 when it is on the disk. One greenlet knows when
each message is due, and has up to ``concurrency`` of them sent. What is refused for now is due again by the schedule;
what is refused for good, or whose schedule is over, is reported to its sender, by a message of the same spool.

Rules of this file:

- A message leaves its folder only when nothing is left to do for it. The state is written after each try: if the
  process is killed between the next hop's 250 and that, the message is sent again. Its ID, in Received, tells.
- A report is in the folder before the recipients that it is about are done.
- A message with the null sender gets no report (RFC 5321 section 4.5.5). It becomes a dead letter.
"""

from __future__ import annotations

import heapq
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gevent import Greenlet, spawn
from gevent.event import Event
from gevent.pool import Pool

from greensmtp import health
from greensmtp.client.options import StartTLS
from greensmtp.delivery import trace
from greensmtp.delivery._disk import DiskThread
from greensmtp.delivery._maildir_file import MaildirFile
from greensmtp.delivery.contract import Delivery, Envelope
from greensmtp.delivery.mx import MX
from greensmtp.delivery.next_hop import NextHop, answer_to
from greensmtp.delivery.report import RecipientStatus, delivery_report
from greensmtp.delivery.resolver import DNSResolver
from greensmtp.delivery.schedule import parse_schedule
from greensmtp.delivery.spool_folder import Busy, Entry, Folder, Gone, arrival, describe, envelope_line
from greensmtp.delivery.spool_metrics import SpoolMetrics
from greensmtp.errors import ArgumentError, ClientError, Disconnected, ProtocolError, Refused
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.session.server_info import ServerInfo
from greensmtp.thread_pool import BoundedPool, in_thread_pool

logger = logging.getLogger("greensmtp")

#: About five days (RFC 5321 section 4.5.4.1).
SCHEDULE = "1m, 5m*3, 15m*3, 1h*6, 4h*28"

#: Seconds between two looks at the folder, for messages of other processes, and for ``greensmtp spool``.
SCAN_SECONDS = 5.0

#: Seconds that messages which are being sent have when the server stops.
STOP_SECONDS = 10.0

#: gevent's threads that large messages may take.
_THREADS = 4

#: Bytes of a message that a report returns.
_RETURNED = 1024 * 1024

_CANNOT_BE_SENT = Reply(554, "5.6.0 The message cannot be sent as it is")


class Spool(Delivery):
    """Stores messages, and passes them on: ``Spool("/var/spool/greensmtp", to="smtp://mx.example.net:25")``.

    The client gets 250 when the message is on the disk. It is sent at once, then by ``schedule``. A recipient that the
    next hop refuses for good (5xx), or that is still refused when the schedule is over, is reported to the sender
    (RFC 3464), unless DSN's NOTIFY says otherwise. ``greensmtp spool`` shows and changes what waits.

    :param path: the folder. Several processes may share it, on one machine.
    :param to: as of ``Forward``; so are ``starttls``, ``username``, ``password``, ``token``, ``rate``, ``timeout``,
        ``source_address`` and ``local_hostname``.
    :param mx: instead of ``to``: the hosts that each recipient's domain names in DNS; see ``MX``. It needs
        ``greensmtp[dns]``.
    :param mta_sts: with ``mx``, heed the policies of domains (RFC 8461).
    :param nameservers: with ``mx``, addresses of name servers; None: those of the system.
    :param port: with ``mx``, the port of all hosts.
    :param schedule: the times between tries: ``"1m, 5m*2, 1h*3"``; by default about five days.
    :param at_the_end: ``"report"`` to the sender, or keep a ``"dead-letter"``.
    :param concurrency: messages that are sent at once, in each process.
    :raises ArgumentError, ValueError: an argument is wrong, or the folder cannot be made.
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
        if not str(path):
            raise ArgumentError("path", "expected the name of a folder; got an empty one")
        self.schedule = parse_schedule(schedule)
        self.at_the_end = at_the_end
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
        self.concurrency = concurrency
        self.pool = BoundedPool(_THREADS)
        self.disk = DiskThread()
        self._device = 0
        self._servers = 0
        self._sender: Sender | None = None

    def __repr__(self) -> str:
        return f"<Spool {str(self.path)!r}>"

    def start(self, server: ServerInfo) -> None:
        """Begin to send what waits."""
        self._servers += 1
        if self._sender is None:
            in_thread_pool(self.folder.make)
            in_thread_pool(self.folder.sweep, time.time())
            health.add_store(self.path)
            weakref.finalize(self, health.remove_store, self.path).atexit = False
            next_hop = self._make_next_hop(server.hostname)
            next_hop.open(server.hostname)
            self._sender = Sender(self, next_hop, server.hostname)

    def stop(self, server: ServerInfo) -> None:
        """Stop sending, with the last server. What is not sent stays."""
        self._servers -= 1
        if not self._servers and self._sender is not None:
            sender, self._sender = self._sender, None
            sender.stop()
            sender.next_hop.close()

    def begin(self, envelope: Envelope) -> SpoolFile:
        """Begin the file of a message."""
        return SpoolFile(self, envelope)

    def added(self, name: str) -> None:
        """Have a new message sent."""
        if self._sender is not None:
            self._sender.add(name)

    # For MaildirFile

    def folders(self, session: Session, recipients: Any) -> Sequence[Path]:
        """Return the folder."""
        return (self.path,)

    def envelope_to(self, recipients: Sequence[Address]) -> bytes:
        """Return nothing: the envelope stands before the message."""
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
        """Put the message into the spool, and have it sent."""
        refused = [str(each) for each in self.envelope.recipients if each not in recipients]
        if refused:  # in LMTP, after the envelope was written
            in_thread_pool(self._leave_out, refused)
        super().commit(recipients)
        self._spool.added(self.name)

    def _leave_out(self, refused: list[str]) -> None:
        state = self._spool.folder.state(self.name)
        state.done = refused
        self._spool.folder.write_state(self.name, state)


class Sender:
    """Sends the messages of a spool, in this process."""

    def __init__(self, spool: Spool, next_hop: NextHop | MX, hostname: str) -> None:
        self._spool = spool
        self.next_hop = next_hop
        self._folder = spool.folder
        self._hostname = hostname
        self._longest = max(spool.schedule) + 60.0
        self._metrics = SpoolMetrics(str(spool.path))
        #: When each known message is due: ``(time, name)``, and the names.
        self._due: list[tuple[float, str]] = []
        self._known: set[str] = set()
        self._changed = Event()
        self._woken = 0.0
        self._stops = False
        self._sending = Pool(spool.concurrency)
        self._scanner: Greenlet[..., None] = spawn(self._scan)
        self._runner: Greenlet[..., None] = spawn(self._run)

    def add(self, name: str, due: float = 0.0) -> None:
        """Have a message sent when it is due."""
        if name not in self._known and not self._stops:
            self._known.add(name)
            heapq.heappush(self._due, (due, name))
            self._changed.set()

    def stop(self) -> None:
        """Stop, after what is being sent."""
        self._stops = True
        for each in (self._scanner, self._runner):
            each.kill()
        self._sending.join(timeout=STOP_SECONDS)
        self._sending.kill()

    def _scan(self) -> None:
        """Look for messages of other processes, and of those that have ended."""
        pause = Event()
        while True:
            try:
                woken = in_thread_pool(self._folder.woken)
                if woken != self._woken:  # somebody has changed states
                    self._woken = woken
                    waiting, self._due = self._due, []
                    self._known.difference_update(name for _, name in waiting)
                names = in_thread_pool(self._folder.names)
                for name in names:
                    self.add(name)
                self._metrics.set_waiting(len(names), max(0.0, time.time() - arrival(names[0])) if names else 0.0)
            except OSError as error:
                logger.error("spool: cannot look into %s: %s", self._spool.path, error)
            pause.wait(SCAN_SECONDS)

    def _run(self) -> None:
        while True:
            now = time.time()
            while self._due and self._due[0][0] <= now:
                _, name = heapq.heappop(self._due)
                self._sending.spawn(self._try, name)  # waits while all are busy
                now = time.time()
            self._changed.clear()
            self._changed.wait(max(0.05, self._due[0][0] - now) if self._due else None)

    def _try(self, name: str) -> None:
        """Send a message, if it is due, and nobody else does."""
        due: float | None = None
        try:
            due = self._send(name)
        except (Gone, Busy):
            pass  # the next look tells
        except Exception:
            logger.exception("spool: %s failed; it stays", name)
            due = time.time() + self._spool.schedule[0]
        finally:
            self._known.discard(name)
        if due is not None:
            self.add(name, due)

    def _send(self, name: str) -> float | None:
        """Return when to look at the message again; None: it is gone."""
        with in_thread_pool(self._folder.open, name) as entry:
            state = entry.state
            if state.held:
                return time.time() + 3600.0  # until the folder's ``wake``
            now = time.time()
            if now < state.due <= now + self._longest:  # later only if the clock was set back
                return state.due
            waiting = entry.waiting
            replies: dict[str, Reply] = {}
            for next_hop, recipients in self.next_hop.next_hops(waiting):
                if isinstance(next_hop, Reply):
                    replies.update(dict.fromkeys(recipients, next_hop))
                else:
                    replies.update(_pass_on(entry, next_hop, recipients))
            state.attempts += 1
            failed: list[tuple[Address, Reply]] = []
            is_last = state.attempts > len(self._spool.schedule)
            for recipient in waiting:
                reply = replies[recipient]
                state.replies[recipient] = str(reply)
                if reply.is_positive:
                    state.done.append(recipient)
                elif reply.code >= 500 or is_last:
                    failed.append((recipient, reply))
            sent, waits = sum(each.is_positive for each in replies.values()), len(entry.waiting) - len(failed)
            text = "%s: spool: try %d: %d sent, %d failed, %d wait"
            logger.info(text, entry.log_id, state.attempts, sent, len(failed), waits)
            for result, count in (("sent", sent), ("failed", len(failed)), ("deferred", waits)):
                self._metrics.count(result, count)
            if failed:
                self._give_up(entry, failed)
            if not entry.waiting:
                in_thread_pool(entry.bury if state.lost else entry.remove)
                return None
            state.due = time.time() + self._spool.schedule[state.attempts - 1]
            in_thread_pool(entry.save)
            return state.due

    def _give_up(self, entry: Entry, failed: Sequence[tuple[Address, Reply]]) -> None:
        """Count the recipients as done, after a report to the sender; without one, the message is a dead letter."""
        addresses = [str(recipient) for recipient, _ in failed]
        if self._spool.at_the_end == "dead-letter" or not entry.sender:
            logger.error("%s: spool: given up for %s; see %s/dead", entry.log_id, addresses, self._spool.path)
            entry.state.lost += addresses
            entry.state.done += addresses
            return
        told = [
            (recipient, reply)
            for recipient, reply in failed
            if "FAILURE" in str(recipient.parameters.get("NOTIFY") or "FAILURE").upper()
        ]
        if told:
            self.add(in_thread_pool(self._report, entry, told))
        entry.state.done += addresses

    def _report(self, entry: Entry, failed: Sequence[tuple[Address, Reply]]) -> str:
        """Put a report into the spool; return its name. In a native thread."""
        parameters = entry.sender.parameters
        content = delivery_report(
            [RecipientStatus(recipient=str(each), action="failed", reply=reply) for each, reply in failed],
            sender=str(entry.sender),
            hostname=self._hostname,
            message=entry.read(0, _RETURNED),
            headers_only=str(parameters.get("RET") or "").upper() != "FULL" or entry.size > _RETURNED,
            envelope_id=parameters.get("ENVID"),
            arrival=datetime.fromtimestamp(entry.arrived).astimezone(),
        )
        needs: dict[str, str | None] = {} if content.isascii() else {"BODY": "8BITMIME"}
        if not str(entry.sender).isascii():
            needs["SMTPUTF8"] = None
        # The same name for the same try: a process that was killed behind it makes no second one.
        name = f"{entry.name.partition('_')[0]}_{1000 + entry.state.attempts}"
        to = Address(str(entry.sender), entry.sender.local_part, entry.sender.domain)
        self._folder.add(name, describe(Address("", "", "", needs), [to]), content)
        return name


def _pass_on(entry: Entry, next_hop: NextHop, recipients: Sequence[Address]) -> dict[str, Reply]:
    """Send a message, and return the reply to each recipient."""
    try:
        with entry.source() as source:
            sent = next_hop.pool.send(
                source,
                str(entry.sender),
                [str(each) for each in recipients],
                from_ext=entry.sender.parameters,
                to_ext=[each.parameters for each in recipients],
                add_fields=False,
            )
        return dict(sent.recipients)
    except ClientError as error:
        logger.info("%s: spool: %s: %s", entry.log_id, next_hop.places[0], error)
        usual = error.reply.handed_on() if isinstance(error, Refused) and error.reply is not None else answer_to(error)
        # In LMTP, some of the replies to the message may have come before the connection was lost.
        is_final = isinstance(error, Disconnected) and error.after_content
        known = {each: reply for each, reply in error.recipients.items() if is_final or not reply.is_positive}
        return {str(each): known.get(each, usual) for each in recipients}
    except (ProtocolError, ValueError) as error:  # an address, or a header section, that cannot be sent
        logger.warning("%s: spool: cannot be sent: %s", entry.log_id, error)
        return dict.fromkeys(map(str, recipients), _CANNOT_BE_SENT)
