"""Run the deliveries of a server: choose them, write each message to them, and commit it in two phases.

How it works. ``tap`` (a handler of ``message``) begins a transfer with each delivery that takes a recipient, and the
body flows into them. ``store`` (a handler of ``received``) prepares them, and stages the commit: that runs when all
handlers and middleware have accepted. In LMTP both happen for each recipient; a transfer is prepared once.

Rules of this file:

- Anything that is the same for every transaction is decided when the runner is made: handlers of ``from`` and ``to``
  are connected only if a delivery uses them, or does not take all recipients.
- The delivery that ``answers`` commits first. After the first commit the message cannot be refused any more.
- Only a recipient that the whole stack has accepted fixes that delivery (in LMTP, those deliveries) and its ``group``,
  so the change is staged. ``tap`` checks again, since a predicate may return another result the second time.
- A failure is final: a transfer is not prepared or committed again for LMTP's other recipients.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from greensmtp.delivery._part import Part
from greensmtp.delivery.contract import Delivery, Envelope
from greensmtp.delivery.routing import Route, Routing
from greensmtp.errors import Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.address import Address
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.server_info import ServerInfo
from greensmtp.session.stream import MessageStream

if TYPE_CHECKING:
    from greensmtp.chain.chain import Proceed
    from greensmtp.protocol.command import Command

logger = logging.getLogger("greensmtp")

#: RFC 5321 section 3.6.2, RFC 3463 section 3.2
_NO_SUCH_MAILBOX = Reply(550, "5.1.1 No such mailbox here")
#: RFC 5321 section 4.5.3.1.10, RFC 3463 section 3.6
_ANOTHER_TRANSACTION = Reply(452, "4.5.3 This recipient needs another transaction")
#: RFC 3463 section 3.4
_TWO_ANSWERS = Reply(451, "4.3.5 This recipient cannot be served")


class Server(ServerInfo, Protocol):
    """The interface of a server that deliveries use."""

    def use(self, middleware: Any) -> Any:
        """Add a middleware."""


class Deliveries:
    """Several deliveries, each for all recipients or for some: ``Deliveries([...]).attach(server)``.

    A recipient that none of them takes is refused with 550.

    :param routes: the deliveries; ``Route(delivery, "*@inbox.example")`` for one that takes only some recipients.
    :raises ValueError: there is no delivery, or a recipient would have two that ``answers``.
    """

    def __init__(self, routes: Iterable[Route | Delivery]) -> None:
        if isinstance(routes, Delivery | Route):
            raise TypeError(f"expected a list of deliveries and routes; got {routes!r} alone: write [...] around it")
        given = [each if isinstance(each, Route) else Route(each) for each in routes]
        if not given:
            raise ValueError("expected at least one delivery")
        self._routing = Routing(given)
        self._routing.check()
        deliveries = self._routing.deliveries
        answering = [each for each in deliveries if each.answers]
        grouping = [each for each in answering if _defines(each, "group")]
        #: True if some recipients cannot share a transaction.
        self._keeps_apart = len(answering) > 1 or bool(grouping)
        #: Key in the transaction's notes: the deliveries that answer, and their groups.
        self._fixed = object()
        self._asks_mail = frozenset(each for each in deliveries if _defines(each, "mail"))
        self._asks_rcpt = frozenset(each for each in deliveries if _defines(each, "rcpt"))
        self._lives = [each for each in deliveries if _defines(each, "start") or _defines(each, "stop")]
        #: Key in the transaction's notes.
        self._asked = object()
        #: The deliveries that are asked at MAIL, since they take every recipient.
        self._asks_at_mail = [
            each
            for each in deliveries
            if each in self._asks_mail and each in self._routing.for_all and each not in grouping
        ]

    def attach(self, server: Server) -> None:
        """Deliver the mail of this server. Call it before the server starts.

        Attach deliveries after handlers that may refuse, and before handlers that read the body. If a handler does
        both, connect ``tap`` to ``message`` yourself, then the handler, and call ``attach_rest`` at the end.
        """
        server.signals.on("message", self.tap)
        self.attach_rest(server)

    def attach_rest(self, server: Server) -> None:
        """Connect all handlers except ``tap``, and start and stop the deliveries with the server."""
        signals = server.signals
        if self._asks_at_mail:
            signals.on("from", self.mail)
        if self._asks_mail or self._asks_rcpt or self._keeps_apart or not self._routing.takes_all:
            signals.on("to", self.rcpt)
        signals.on("message", self.accept)
        signals.on("received", self.store)
        if self._lives:
            server.use(_Life(self._lives))

    # Handlers

    def mail(self, session: Session, address: Address, ack: Ack) -> None:
        """Ask the deliveries that take every recipient; a handler of ``from``."""
        if ack.decided and not ack.accepted:
            return
        asked = self._begin_asking(session)
        for delivery in self._asks_at_mail:
            _decide(ack, _ask_mail(asked, delivery, session, address))
        if not ack.decided:
            ack.accept()

    def rcpt(self, session: Session, address: Address, ack: Ack) -> None:
        """Refuse a recipient that no delivery takes, and ask those that do; a handler of ``to``.

        It also refuses a recipient that another handler has accepted, since the message would be lost.
        """
        if ack.decided and not ack.accepted:
            return
        chosen = self._routing.choose(session, address)
        if not chosen:
            raise Reject(_NO_SUCH_MAILBOX)
        if self._keeps_apart:
            self._keep_apart(session, address, chosen)
        for delivery in chosen:
            if delivery in self._asks_mail:
                self._check_mail(delivery, session)
            if delivery in self._asks_rcpt:
                _decide(ack, delivery.rcpt(session, address))
        if not ack.decided:
            ack.accept()

    def _keep_apart(self, session: Session, address: Address, chosen: Sequence[Delivery]) -> None:
        """Refuse a recipient that cannot share the transaction with earlier ones; else stage the choice that it makes.

        :raises Reject: the recipient needs another transaction, or has two deliveries that answer.
        """
        answering = [each for each in chosen if each.answers]
        if not answering:
            return
        if len(answering) > 1:
            raise _two_answers(session, address, answering)
        (delivery,) = answering
        group = delivery.group(session, address)
        fixed: dict[Delivery, object] = session.transaction_notes.get(self._fixed) or {}
        if fixed.get(delivery, group) != group or (fixed and delivery not in fixed and not session.server.lmtp):
            raise Reject(_ANOTHER_TRANSACTION)
        session.stage(self._fix, session, address, delivery, group)

    def _fix(self, session: Session, address: Address, delivery: Delivery, group: object) -> None:
        """Fix the delivery that answers for the transaction (in LMTP, one of them), since a recipient was accepted.

        :raises Reject: another one is fixed already, since a middleware has turned one RCPT into two recipients.
        """
        fixed: dict[Delivery, object] = session.transaction_notes.setdefault(self._fixed, {})
        if delivery in fixed and fixed[delivery] == group:
            return
        if delivery in fixed or (fixed and not session.server.lmtp):
            raise _two_answers(session, address, [*fixed, delivery])
        fixed[delivery] = group
        asked: _Asked | None = session.transaction_notes.get(self._asked)
        if asked is not None and not session.server.lmtp:
            # Reset deliveries without accepted recipients, which would hold a connection until the end.
            asked.reset(each for each in asked.replies if each.answers and each is not delivery)

    def tap(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Begin the transfers, and write the body to them; a handler of ``message``.

        :raises Reject: a delivery refuses the message; in LMTP, all of them do.
        :raises RuntimeError: a part of the body has been read already.
        """
        if ack.decided and not ack.accepted:
            return
        by_delivery, untaken = self._routing.by_delivery(session)
        if not by_delivery or (untaken and not session.server.lmtp):
            raise Reject(_NO_SUCH_MAILBOX)
        if self._keeps_apart:
            self._check_apart(session, by_delivery)
        message = session.transaction_notes[self] = _Message()
        stream.at_end(message.end)
        for delivery, recipients in by_delivery.items():
            part = Part(delivery, Envelope(session, stream, recipients, alone=len(by_delivery) == 1))
            message.parts.append(part)
            part.begin()
            if part.failure is not None and not session.server.lmtp:
                raise Reject(part.failure)
            try:
                stream.pipe(part, fields=False)
            except RuntimeError:
                raise RuntimeError("connect Deliveries.tap before the handlers that read the body") from None
        failures = [part.failure for part in message.parts]
        if failures[0] is not None and all(failures):
            raise Reject(failures[0])

    def _check_apart(self, session: Session, by_delivery: Mapping[Delivery, Sequence[Address]]) -> None:
        """Check that each recipient has at most one delivery that answers; in SMTP, the whole message."""
        answering = [each for each in by_delivery if each.answers]
        if len(answering) > 1:
            addresses = [address for each in answering for address in by_delivery[each]]
            if not session.server.lmtp or len(set(addresses)) < sum(len(set(by_delivery[each])) for each in answering):
                raise _two_answers(session, addresses[0], answering)

    def accept(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Accept, unless another handler has decided; a handler of ``message``."""
        if not ack.decided:
            ack.accept()

    def store(self, session: Session, ack: Ack, recipient: Address | None = None) -> None:
        """Prepare the message and stage its commit, unless another handler has refused it; of ``received``.

        :raises Reject: a delivery refuses the message.
        """
        if ack.decided and not ack.accepted:
            return
        message: _Message = session.transaction_notes[self]
        message.prepare(recipient)
        session.stage(message.commit, recipient)
        if not ack.decided:
            ack.accept()  # the server's usual reply, which has the ID

    # Asking at MAIL and RCPT

    def _begin_asking(self, session: Session) -> _Asked:
        """Return an empty record of the deliveries' replies to a sender."""
        asked = session.transaction_notes[self._asked] = _Asked(session)
        session.at_transaction_end(asked.reset)
        return asked

    def _check_mail(self, delivery: Delivery, session: Session) -> None:
        """Ask a delivery about the sender, unless it has been asked.

        :raises Reject: it refuses.
        """
        asked: _Asked = session.transaction_notes.get(self._asked) or self._begin_asking(session)
        sender = session.from_
        assert sender is not None
        reply = _ask_mail(asked, delivery, session, sender)
        if reply is not None and reply.code >= 400:
            raise Reject(reply)


def _two_answers(session: Session, address: Address, deliveries: Iterable[Delivery]) -> Reject:
    """Log that a recipient has two deliveries that answer, and return the refusal."""
    names = " and ".join(type(each).__name__ for each in deliveries)
    logger.error(
        "%s: %s would be delivered by %s, but only one of them can decide on the reply; replying 451",
        session.log_id,
        shown(address) or "a recipient",
        names,
    )
    return Reject(_TWO_ANSWERS)


def _defines(delivery: Delivery, method: str) -> bool:
    return getattr(getattr(delivery, method), "__func__", None) is not getattr(Delivery, method)


def _decide(ack: Ack, reply: Reply | None) -> None:
    if reply is not None:
        if reply.code >= 400:
            raise Reject(reply)
        if not ack.decided:
            ack.accept(reply)


def _ask_mail(asked: _Asked, delivery: Delivery, session: Session, sender: Address) -> Reply | None:
    if delivery not in asked.replies:
        asked.replies[delivery] = canned.LOCAL_ERROR  # stays, if it raises
        try:
            asked.replies[delivery] = delivery.mail(session, sender)
        except Reject as reject:
            asked.replies[delivery] = reply_of(reject)
    return asked.replies[delivery]


class _Asked:
    """The replies of deliveries to the sender of a transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.replies: dict[Delivery, Reply | None] = {}

    def reset(self, deliveries: Iterable[Delivery] | None = None) -> None:
        """Reset deliveries, these or all, each once."""
        for delivery in list(self.replies if deliveries is None else deliveries):
            del self.replies[delivery]
            delivery.reset(self._session)


class _Message:
    """A message on its way to one or several deliveries."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        #: Recipient -> its parts; built once, since LMTP looks up each recipient.
        self._by_recipient: dict[str, list[Part]] | None = None

    def _parts_of(self, recipient: Address | None) -> list[Part]:
        if recipient is None:
            return self.parts
        if self._by_recipient is None:
            self._by_recipient = {}
            for part in self.parts:
                for each in dict.fromkeys(part.envelope.recipients):
                    self._by_recipient.setdefault(each, []).append(part)
        return self._by_recipient.get(recipient, [])

    def prepare(self, recipient: Address | None) -> None:
        """Prepare all transfers; in LMTP, those of a recipient.

        :raises Reject: one of them refuses.
        """
        parts = self._parts_of(recipient)
        if not parts:
            raise Reject(_NO_SUCH_MAILBOX)
        for part in parts:
            part.prepare()
            _check(part, recipient)

    def commit(self, recipient: Address | None) -> Reply | None:
        """Commit the prepared transfers. It is staged, so that the 250 follows immediately.

        :return: the reply of the next hop, if no other delivery has the message.
        :raises Reject: the first one refuses, so that nothing is delivered.
        """
        first, *others = self._parts_of(recipient)
        first.commit(recipient)
        _check(first, recipient)
        for part in others:
            part.commit_late(recipient)
        return first.positive_reply(recipient) if first.delivery.answers and not others else None

    def end(self) -> None:
        """Discard the transfers that were not delivered."""
        parts, self.parts, self._by_recipient = self.parts, [], None
        for part in parts:
            part.end()


def _check(part: Part, recipient: Address | None) -> None:
    refusal = part.refusal(recipient)
    if refusal is not None:
        raise Reject(refusal)


class _Life:
    """Start and stop deliveries with a server; a middleware that sees no command."""

    verbs = ()

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self._deliveries = deliveries

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass the command on."""
        return proceed(session, command)

    def start(self, server: ServerInfo) -> None:
        """Start each delivery; if one raises, those before it are stopped."""
        started: list[Delivery] = []
        try:
            for each in self._deliveries:
                try:
                    each.start(server)
                except BaseException as error:
                    error.add_note(f"delivery {type(each).__name__}")  # for the error of a service
                    raise
                started.append(each)
        except BaseException:
            for each in reversed(started):
                each.stop(server)
            raise

    def stop(self, server: ServerInfo) -> None:
        """Stop each delivery."""
        for each in reversed(self._deliveries):
            each.stop(server)
