"""The greenlets that send the messages of a ``Spool``, in one process.

How it works. ``_scan`` finds messages in the folder. ``_run`` takes those that are due off a heap, and sends up to
``concurrency`` of them at once. With MX, if a domain has no free slot, its messages are parked until another one to it
is done.

Rules of this file:

- A message is locked while it is tried, so that several processes may share a folder.
- The results of an attempt are written before the lock is released: reports first, then the state. If the disk is
  full, the message stays locked until they are written; otherwise its recipients would get it twice.
- Times are on the monotonic clock, except those in a message's state.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Literal

from gevent import Greenlet, spawn
from gevent.event import Event
from gevent.pool import Pool

from greensmtp.delivery.mx import MX
from greensmtp.delivery.next_hop import NextHop, answer_to
from greensmtp.delivery.report import Action
from greensmtp.delivery.spool_folder import Busy, Entry, Folder, Gone, arrival
from greensmtp.delivery.spool_metrics import SpoolMetrics
from greensmtp.delivery.spool_reports import Outcome, add_report, is_wanted
from greensmtp.errors import ClientError, Disconnected, ProtocolError, Refused
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply
from greensmtp.thread_pool import in_thread_pool

logger = logging.getLogger("greensmtp")

#: Seconds between two scans of the folder, for messages of other processes, and for ``greensmtp spool``.
SCAN_SECONDS = 5.0

#: Seconds that deliveries in progress have when the server stops.
STOP_SECONDS = 10.0

#: Seconds after which the state of a message that goes to several next hops is written between two of them.
SAVE_SECONDS = 5.0

#: Maximum number of messages whose state cannot be written (a full disk, for example). At this number, no others are
#: sent.
MAX_UNSETTLED = 100

_CANNOT_BE_SENT = Reply(554, "5.6.0 The message cannot be sent as it is")
_FAILED = Reply(451, "4.3.0 The message could not be sent now")

#: How a message was delivered, if this spool must report that; None: the next hop reports it.
Success = Literal["delivered", "relayed"] | None


@dataclass(frozen=True)
class Sending:
    """The options for sending the messages of a spool."""

    folder: Folder
    #: Seconds between attempts.
    schedule: Sequence[float]
    at_the_end: Literal["report", "dead-letter"]
    #: Maximum number of messages sent at once.
    concurrency: int
    #: Maximum number of messages sent to one domain at once; 0: no limit.
    domain_concurrency: int
    #: Seconds after which a delay is reported; None: never.
    delay_after: float | None


@dataclass
class Tried:
    """The results of one attempt, by recipient."""

    sent: int = 0
    failed: list[Outcome] = field(default_factory=list)
    deferred: list[Outcome] = field(default_factory=list)
    #: Recipients that were sent, and whose success must be reported.
    relayed: list[Outcome] = field(default_factory=list)
    delivered: list[Outcome] = field(default_factory=list)


class Sender:
    """Send the messages of a spool, in this process."""

    def __init__(self, options: Sending, next_hop: NextHop | MX, hostname: str) -> None:
        self._options = options
        self.next_hop = next_hop
        self._folder = options.folder
        self._hostname = hostname
        self._longest = max(options.schedule) + 60.0
        self._metrics = SpoolMetrics(str(options.folder.path))
        self._per_domain = options.domain_concurrency
        #: Domain -> number of messages being sent to it; and domain -> messages that wait for a free slot.
        self._busy: Counter[str] = Counter()
        self._parked: dict[str, deque[str]] = {}
        #: Messages that were tried, but whose state could not be written. They stay locked.
        self._unsettled: dict[str, tuple[Entry, Tried]] = {}
        #: When each known message is due, ``(time, name)``, and the names. On the monotonic clock, which is never set
        #: back.
        self._due: list[tuple[float, str]] = []
        self._known: set[str] = set()
        self._changed = Event()
        self._woken = 0.0
        self._stops = False
        self._sending = Pool(options.concurrency)
        self._scanner: Greenlet[..., None] = spawn(self._scan)
        self._runner: Greenlet[..., None] = spawn(self._run)

    def add(self, name: str, due: float = 0.0) -> None:
        """Schedule a message.

        :param due: on the monotonic clock.
        """
        if name not in self._known and not self._stops:
            self._known.add(name)
            heapq.heappush(self._due, (due, name))
            self._changed.set()

    def stop(self) -> None:
        """Stop, after the deliveries in progress."""
        self._stops = True
        for each in (self._scanner, self._runner):
            each.kill()
        self._sending.join(timeout=STOP_SECONDS)
        self._sending.kill()
        for name, (entry, _) in self._unsettled.items():
            logger.error("%s: spool: cannot write the state of the message; the next start sends it again", name)
            entry.close()

    def _scan(self) -> None:
        """Find messages of other processes, and of processes that have ended."""
        pause = Event()
        while True:
            try:
                woken = in_thread_pool(self._folder.woken)
                if woken != self._woken:  # a command has changed states
                    self._woken = woken
                    waiting, self._due = self._due, []
                    self._known.difference_update(name for _, name in waiting)
                self._settle_late()
                self._unpark()
                names = in_thread_pool(self._folder.names)
                for name in names:
                    self.add(name)
                self._metrics.set_waiting(len(names), max(0.0, time.time() - arrival(names[0])) if names else 0.0)
            except OSError as error:
                logger.error("spool: cannot scan %s: %s", self._folder.path, error)
            pause.wait(SCAN_SECONDS)

    def _run(self) -> None:
        while True:
            now = monotonic()
            while self._due and self._due[0][0] <= now and len(self._unsettled) < MAX_UNSETTLED:
                _, name = heapq.heappop(self._due)
                self._sending.spawn(self._try, name)  # waits while all are busy
                now = monotonic()
            self._changed.clear()
            pause = 1.0 if len(self._unsettled) >= MAX_UNSETTLED else 0.05
            self._changed.wait(max(pause, self._due[0][0] - now) if self._due else None)

    def _try(self, name: str) -> None:
        """Send a message, if it is due and not locked by another process."""
        due: float | None = None
        try:
            due = self._send(name)
        except (Gone, Busy):
            pass  # the next scan finds out
        except Exception:
            logger.exception("spool: %s failed; it stays", name)
            due = monotonic() + self._options.schedule[0]
        if not any(name in each for each in self._parked.values()):
            self._known.discard(name)
        if due is not None:
            self.add(name, due)

    def _send(self, name: str) -> float | None:
        """Try a message, and return its next due time on the monotonic clock; None: it is not due until added again."""
        entry = in_thread_pool(self._folder.open, name)
        try:
            state = entry.state
            if state.held:
                return monotonic() + 3600.0  # until the folder's ``wake``
            now = time.time()
            if now < state.due <= now + self._longest:  # later only if the clock was set back
                return monotonic() + state.due - now
            domains = {each.ascii_domain for each in entry.waiting} if self._per_domain else set()
            full = next((each for each in domains if self._busy[each] >= self._per_domain), None)
            if full is not None:
                self._parked.setdefault(full, deque()).append(name)
                return None
            self._busy.update(domains)
            try:
                tried = self._try_all(entry)
            finally:
                self._release(domains)
            try:
                return self._settle(entry, tried)
            except OSError as error:
                # A second try would deliver it twice, so it stays locked until its state can be written.
                logger.error("%s: spool: cannot write the result of the try: %s; retrying", name, error)
                self._unsettled[name] = entry, tried
                return None
        finally:
            if name not in self._unsettled:
                entry.close()

    def _release(self, domains: Collection[str]) -> None:
        """Free a slot of each of these domains, and try the messages that wait for one."""
        self._busy.subtract(domains)
        for each in domains:
            if not self._busy[each]:
                del self._busy[each]
        self._unpark()

    def _unpark(self) -> None:
        """Schedule waiting messages, as many as their domains have free slots for."""
        for domain, names in list(self._parked.items()):
            for _ in range(min(len(names), self._per_domain - self._busy[domain])):
                name = names.popleft()
                self._known.discard(name)
                self.add(name)
            if not names:
                del self._parked[domain]

    def _try_all(self, entry: Entry) -> Tried:
        """Send a message to all waiting recipients, and return the results."""
        state, waiting = entry.state, entry.waiting
        tried = Tried()
        if not waiting:  # the process was killed before the message was removed
            return tried
        state.attempts += 1
        is_last = state.attempts > len(self._options.schedule)
        saved = monotonic()
        for next_hop, recipients in self._groups(entry, waiting):
            if saved + SAVE_SECONDS < monotonic():
                with suppress(OSError):  # it is written again at the end
                    in_thread_pool(entry.save, without=[recipient for recipient, _ in tried.relayed + tried.delivered])
                saved = monotonic()
            replies, success = (
                (dict.fromkeys(map(str, recipients), next_hop), None)
                if isinstance(next_hop, Reply)
                else _pass_on(entry, next_hop, recipients)
            )
            for recipient in recipients:
                reply = replies[recipient]
                state.replies[str(recipient)] = str(reply)
                outcome = Outcome(recipient, reply)
                if reply.is_positive:
                    tried.sent += 1
                    state.done.append(str(recipient))
                    if success is not None and is_wanted("SUCCESS", recipient):
                        (tried.relayed if success == "relayed" else tried.delivered).append(outcome)
                elif reply.code >= 500 or is_last:
                    tried.failed.append(outcome)
                else:
                    tried.deferred.append(outcome)
        text = "%s: spool: try %d: %d sent, %d failed, %d wait"
        counts = {"sent": tried.sent, "failed": len(tried.failed), "deferred": len(tried.deferred)}
        logger.info(text, entry.log_id, state.attempts, *counts.values())
        for result, count in counts.items():
            self._metrics.count(result, count)
        return tried

    def _groups(self, entry: Entry, waiting: list[Address]) -> Iterator[tuple[NextHop | Reply, list[Address]]]:
        """Yield each next hop and its recipients. An error yields a temporary refusal, and counts as a try."""
        left = set(waiting)
        try:
            for next_hop, recipients in self.next_hop.next_hops(waiting):
                left.difference_update(recipients)
                yield next_hop, recipients
        except Exception:
            logger.exception("%s: spool: cannot find the next hop; counting it as a temporary failure", entry.log_id)
            yield _FAILED, [each for each in waiting if each in left]

    def _settle(self, entry: Entry, tried: Tried) -> float | None:
        """Write the results of a try, reports first; return when the message is due next, None: it is finished.

        :raises OSError: something cannot be written. Call this again later; finished steps are not repeated.
        """
        state = entry.state
        if tried.failed:
            self._give_up(entry, tried)
        self._report(entry, "relayed", tried.relayed)
        self._report(entry, "delivered", tried.delivered)
        if not entry.waiting:
            in_thread_pool(entry.bury if state.lost else entry.remove)
            return None
        left = sum(self._options.schedule[state.attempts - 1 :])
        if self._options.delay_after is not None and time.time() - entry.arrived >= self._options.delay_after:
            late = [
                each for each in tried.deferred if str(each[0]) not in state.delayed and is_wanted("DELAY", each[0])
            ]
            names = [str(recipient) for recipient, _ in late]
            self._report(entry, "delayed", late, will_retry_until=time.time() + left)
            state.delayed += names
        pause = self._options.schedule[state.attempts - 1]
        state.due = time.time() + pause
        in_thread_pool(entry.save)
        return monotonic() + pause

    def _give_up(self, entry: Entry, tried: Tried) -> None:
        """Count the recipients as done, after a report to the sender; without one, the message is a dead letter."""
        addresses = [str(recipient) for recipient, _ in tried.failed]
        if self._options.at_the_end == "dead-letter" or not entry.sender:
            logger.error("%s: spool: failed for %s; kept in %s/dead", entry.log_id, addresses, self._folder.path)
            entry.state.lost += addresses
        else:
            self._report(entry, "failed", [each for each in tried.failed if is_wanted("FAILURE", each[0])])
        entry.state.done += addresses
        tried.failed.clear()

    def _report(
        self, entry: Entry, action: Action, outcomes: list[Outcome], *, will_retry_until: float | None = None
    ) -> None:
        """Add a report to the spool, if there are outcomes and a sender, and clear ``outcomes``."""
        if not outcomes or not entry.sender or self._options.at_the_end == "dead-letter":
            return
        call = partial(add_report, hostname=self._hostname, will_retry_until=will_retry_until)
        self.add(in_thread_pool(call, self._folder, entry, action, outcomes))
        self._metrics.count_report(action)
        outcomes.clear()

    def _settle_late(self) -> None:
        """Write the results that could not be written before."""
        for name, (entry, tried) in list(self._unsettled.items()):
            try:
                due = self._settle(entry, tried)
            except OSError:
                return  # the others would fail too
            del self._unsettled[name]
            entry.close()
            logger.warning("%s: spool: the result of the try is written now; unlocking the message", name)
            self._known.discard(name)
            if due is not None:
                self.add(name, due)


def _pass_on(entry: Entry, next_hop: NextHop, recipients: Sequence[Address]) -> tuple[Mapping[str, Reply], Success]:
    """Send a message; return the reply for each recipient, and the kind of success if this spool must report it."""
    success: Success = "delivered" if next_hop.lmtp else "relayed"
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
        # RFC 3461 section 5.2.1: a next hop with DSN was told what to report.
        return dict(sent.recipients), None if sent.dsn else success
    except ClientError as error:
        logger.info("%s: spool: %s: %s", entry.log_id, next_hop.name, error)
        usual = error.reply.handed_on() if isinstance(error, Refused) and error.reply is not None else answer_to(error)
        # In LMTP, some of the replies to the message may have come before the connection was lost.
        is_final = isinstance(error, Disconnected) and error.after_content
        known = {each: reply for each, reply in error.recipients.items() if is_final or not reply.is_positive}
        return {str(each): known.get(each, usual) for each in recipients}, success
    except (ProtocolError, ValueError) as error:  # an address, or a header section, that cannot be sent
        logger.warning("%s: spool: cannot be sent: %s", entry.log_id, error)
        reply = _CANNOT_BE_SENT
    except Exception:
        logger.exception("%s: spool: unexpected error while sending; counting it as a temporary failure", entry.log_id)
        reply = _FAILED
    return dict.fromkeys(map(str, recipients), reply), None
