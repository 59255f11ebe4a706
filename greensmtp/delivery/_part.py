"""One transfer of one message: its steps, each called once, and its result for each recipient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gevent import GreenletExit, get_hub, getcurrent, spawn

from greensmtp.delivery.contract import Delivery, Envelope, Result, Transfer
from greensmtp.errors import Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply
from greensmtp.session.body_pipes import reply_to_failure

logger = logging.getLogger("greensmtp")


class Part:
    """The part of one delivery in a message.

    If a step fails, ``failure`` is the reply to all of its recipients from then on. A step that is interrupted by a
    timeout or a kill has failed, too, and the exception propagates.
    """

    def __init__(self, delivery: Delivery, envelope: Envelope) -> None:
        self.delivery = delivery
        self.envelope = envelope
        self.failure: Reply | None = None
        self._transfer: Transfer | None = None
        self._prepared = False
        #: Refusals of single recipients.
        self._refusals: dict[str, Reply] = {}
        #: Positive replies of the delivery, by recipient.
        self._accepted: dict[str, Reply] = {}
        #: The recipients for whom it is delivered.
        self._committed: set[str] = set()
        #: True if a commit has failed when it was too late to refuse, so the content is kept.
        self._kept = False

    # The steps

    def begin(self) -> None:
        """Begin the transfer."""
        self._transfer = self._step("begin", self.delivery.begin, self.envelope)

    def write(self, data: bytes, /) -> None:
        """Write to the transfer.

        :raises Reject: it has failed. In LMTP other transfers go on without this one.
        """
        if self.failure is None:
            assert self._transfer is not None
            self._step("write", self._transfer.write, data)
            if self.failure is not None and not self.envelope.session.server.lmtp:
                raise Reject(self.failure)

    def prepare(self) -> None:
        """Prepare the transfer, once."""
        if self.failure is None and not self._prepared:
            assert self._transfer is not None
            self._prepared = True
            self._take(self._step("prepare", self._transfer.prepare), ())

    def commit(self, recipient: Address | None) -> None:
        """Commit the transfer: for one recipient if the delivery is ``per_recipient``; else once, for all not refused.

        In LMTP that is at the first recipient that is accepted, so those before it have been refused.

        :param recipient: in LMTP, the recipient whose reply comes next.
        """
        transfer = self._transfer
        if self.failure is not None or (recipient in self._committed if recipient is not None else self._committed):
            return
        assert transfer is not None
        recipients = self.envelope.recipients
        if recipient is not None:
            # Search and copy the list for the first one only, else the cost is quadratic.
            one_by_one = self.delivery.per_recipient
            recipients = (recipient,) if one_by_one else recipients[recipients.index(recipient) :]
        recipients = tuple(each for each in recipients if each not in self._refusals)
        shielded = not (transfer.settles or self.delivery.answers)
        result = self._step("commit", uninterrupted if shielded else _call, transfer.commit, recipients)
        if self.failure is None:
            self._committed.update(recipients)
            self._take(result, recipients)

    def commit_late(self, recipient: Address | None) -> None:
        """Commit the transfer after another one's commit. A failure is logged, since it is too late to refuse."""
        if self._transfer is not None:
            self._transfer.late = True
        uninterrupted(self.commit, recipient)
        refusal = self.refusal(recipient)
        if refusal is not None:
            self._kept = True
            logger.critical(
                "%s: %s failed to commit when another delivery had the message already; the client gets 250, this "
                "delivery has not delivered, and what it has prepared is kept: %s",
                self.envelope.session.log_id,
                type(self.delivery).__name__,
                refusal,
            )

    def end(self) -> None:
        """Discard the transfer, unless it is delivered to all."""
        if self._transfer is None or self._kept or self._committed.issuperset(self.envelope.recipients):
            return
        try:
            self._transfer.discard()
        except Exception:
            logger.exception("%s: %s.discard raised", self.envelope.session.log_id, type(self._transfer).__name__)

    # The result

    def refusal(self, recipient: Address | None) -> Reply | None:
        """Return the reply that refuses a recipient; without a recipient, the first refusal."""
        if self.failure is not None or not self._refusals:
            return self.failure
        return self._refusals.get(recipient) if recipient is not None else next(iter(self._refusals.values()))

    def positive_reply(self, recipient: Address | None) -> Reply | None:
        """Return the positive reply of the delivery to a message; None if it has given no reply.

        Without a recipient, return the reply to all recipients; None if their replies differ.
        """
        if recipient is not None:
            said = self._accepted.get(recipient)
        else:
            replies = {self._accepted.get(each) for each in self.envelope.recipients}
            said = replies.pop() if len(replies) == 1 else None
        if said is None:
            return None
        # RFC 5321 section 4.3.2 allows only 250. A 221, for example, would end the client's connection.
        return Reply(250, *said.lines, enhanced=said.enhanced or "2.0.0")

    def _take(self, result: Result, recipients: Sequence[Address]) -> None:
        """Record the result of a step.

        :param recipients: the recipients of the step; those that the result does not refuse are delivered.
        """
        if isinstance(result, Reply):
            if result.code >= 400:
                self.failure = result
                return
            result = dict.fromkeys(recipients, result)
        delivered = set(recipients)
        for each, reply in result.items() if isinstance(result, Mapping) else ():
            if reply is not None and reply.code >= 400:
                self._refusals[each] = reply
            elif reply is not None and each in delivered:
                self._accepted[each] = reply

    def _step(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call a step, and record its failure."""
        self.failure = canned.LOCAL_ERROR  # stays, if it is interrupted
        try:
            result = call(*arguments)
        except Exception as error:
            session = self.envelope.session
            if error is session.close_error:
                raise
            if isinstance(error, Reject):
                self.failure = reply_of(error)
                return None
            self.failure = reply_to_failure(error)
            what = f"{type(self.delivery).__name__} failed to {name}"
            if isinstance(error, OSError):
                logger.error("%s: %s: %s; replying %s", session.log_id, what, error, self.failure.code)
            else:
                logger.exception("%s: %s; replying %s", session.log_id, what, self.failure.code)
            return None
        self.failure = None
        return result


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def uninterrupted(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new greenlet, and wait for its end, even if the wait is interrupted.

    A timeout comes too late then. A kill is raised in this greenlet afterwards, when it waits the next time.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((function(*arguments), None))
        except BaseException as error:
            outcome.extend((None, error))

    work = spawn(run)
    wait_for(work.join, lambda: bool(outcome))
    result, error = outcome
    if error is not None:
        raise error
    return result


def wait_for(wait: Callable[[], object], done: Callable[[], bool]) -> None:
    """Call ``wait`` until ``done``, even if it is interrupted.

    A kill is raised in this greenlet afterwards, when it waits the next time.
    """
    killed: GreenletExit | None = None
    while not done():
        try:
            wait()
        except GreenletExit as kill:
            killed = kill
        except BaseException:
            pass  # a timeout
    if killed is not None:
        get_hub().loop.run_callback(getcurrent().throw, killed)
