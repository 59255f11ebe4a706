"""The interface of a delivery, a destination of accepted mail. It has two phases, so that several can take a message.

A third-party package provides a delivery by an entry point of the group ``greensmtp.delivery``, and ``[[deliveries]]``
names it. There are two classes: a ``Delivery``, which exists as long as the server, and a ``Transfer`` per message.

The life of a transfer:

    begin(envelope)         at DATA, before 354. It may raise Reject.
    write(chunk) ...        the body as it arrives, without the fields that ``add_header`` added
    prepare()               everything that may fail: afterwards the content is durable
    commit(recipients)      the message is delivered
    discard()               instead of commit, at any moment: nothing of the message is left

Rules of this contract:

- All methods are called in the connection's greenlet. File operations belong in ``in_thread_pool``.
- All transfers of a message are prepared before one is committed. So a refusal by one of them delivers nothing.
- With ``answers``, another system decides on the commit, such as the next hop, so the commit may fail. Such a
  delivery commits first, and its refusal discards the others.
- A recipient may have at most one delivery that ``answers``: of two, one could accept the message and the other refuse
  it. In SMTP the whole message has one reply. So the first accepted recipient with such a delivery fixes it for the
  transaction. A recipient that needs another one gets 452 4.5.3, and the client sends it in another transaction (RFC
  5321 section 4.5.3.1.10). In LMTP several take part, since each recipient has its own reply.
- If a recipient has one delivery only, and it ``answers``, its positive reply is passed to the client.
- Any other commit must not fail once ``prepare`` has returned, unless the message is ``envelope.alone``. If one fails
  after another's commit, the failure is logged and the client still gets 250, since a repeat would be a duplicate. Its
  content is not discarded.
- A commit is not interrupted: a timeout or a kill has to wait for it, unless the delivery ``answers``, or its transfers
  have ``settles``.
- Methods refuse by ``raise Reject(...)``. ``prepare`` and ``commit`` may instead return a result for each recipient,
  which LMTP sends to each of them. In SMTP the first refusal is the reply to the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO, ClassVar

from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import joint
from greensmtp.protocol.reply import Reply
from greensmtp.session.server_info import ServerInfo
from greensmtp.session.session import Session
from greensmtp.session.spool import Spool
from greensmtp.session.stream import MessageStream

#: None: delivered to all recipients. A Reply: the reply for all; a 4xx or 5xx refuses. A mapping: by recipient; one
#: that is missing, or has None, is delivered. A positive reply is passed on as 250 if the delivery ``answers``.
Result = Reply | Mapping[str, Reply | None] | None


class Envelope:
    """A message and the recipients that one delivery was chosen for.

    It can be used until the transaction is over.
    """

    __slots__ = ("alone", "recipients", "session", "stream")

    def __init__(
        self, session: Session, stream: MessageStream, recipients: Sequence[Address], *, alone: bool = True
    ) -> None:
        self.session = session
        self.stream = stream
        #: True if no other delivery has this message. Then ``commit`` may refuse as ``prepare`` does.
        self.alone = alone
        #: In the order of their RCPT commands.
        self.recipients: tuple[Address, ...] = tuple(recipients)

    @property
    def id(self) -> str:
        """``session.transaction_id``, as in the reply ``queued as ID``. It is a valid atom and file name."""
        return self.session.transaction_id

    @property
    def sender(self) -> Address:
        """The reverse-path; ``""`` for the null sender."""
        return self.session.from_ or Address("", "", "")

    def take_fields(self) -> bytes:
        """Return the header fields that were added, to be written before the body. Call it in ``prepare``.

        After that, no field can be added.
        """
        return self.stream.take_fields()


class Transfer:
    """One message on its way to one delivery. Subclasses define at least ``write`` and ``commit``."""

    #: True: the runner calls ``commit`` in the connection's greenlet, where a timeout or a kill may be raised, and the
    #: transfer handles it: either it delivers and returns, or it does not deliver and raises.
    settles: ClassVar[bool] = False
    #: True while it is committed after another delivery's commit: if it fails, it must keep the content.
    late: bool = False

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope

    def write(self, data: bytes, /) -> None:
        """Process the next piece of the body.

        :raises OSError: it cannot be stored; the reply is 452 if the disk is full, else 451.
        """
        raise NotImplementedError

    def prepare(self) -> Result:
        """Do everything that may fail. Afterwards, the content survives a crash."""
        return None

    def commit(self, recipients: Sequence[Address]) -> Result:
        """Deliver the message.

        It is called once. In LMTP, ``recipients`` excludes those that have been refused; with ``per_recipient`` it is
        called for each recipient separately.
        """
        raise NotImplementedError

    def discard(self) -> None:
        """Remove everything. It is called at the end of a transaction if ``commit`` has not returned."""


class SpooledTransfer(Transfer):
    """A transfer that collects the message for ``prepare`` or ``commit``: a small one in memory, others in a file."""

    def __init__(self, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._spool = Spool()
        self._head: bytes | None = None
        envelope.stream.at_end(self._spool.close)

    def write(self, data: bytes, /) -> None:
        """Collect the next piece of the body."""
        self._spool.write(data)

    def open(self) -> BinaryIO:
        """Return the message as a new binary file at its beginning: added fields, then the body.

        The first call is made in the connection's greenlet. The file may be read in any thread, for as long as the
        transaction lasts.
        """
        if self._head is None:
            self._spool.finish()
            self._head = self.envelope.take_fields()
            if self._head:
                self._head += joint(self._spool.beginning)
        return self._spool.open(self._head)


class Delivery:
    """A destination of accepted mail. Subclasses define at least ``begin``.

    The arguments of the constructor are the options of its ``[[deliveries]]`` table.
    """

    #: True: another system decides on ``commit``, so it may refuse.
    answers: bool = False
    #: True: in LMTP, ``commit`` is called for each recipient separately.
    per_recipient: bool = False

    def begin(self, envelope: Envelope) -> Transfer:
        """Return a transfer for a message, which is about to arrive.

        :raises Reject: the message is refused.
        """
        raise NotImplementedError

    def start(self, server: ServerInfo) -> None:
        """Open resources that outlast a connection. It is called for each server that starts."""

    def stop(self, server: ServerInfo) -> None:
        """Close these resources. It is called when the server has stopped."""

    # Hooks for a delivery that decides at MAIL and RCPT, by asking the next hop for example

    def mail(self, session: Session, sender: Address) -> Reply | None:
        """Decide on a sender: a 4xx or 5xx reply refuses, and a 2xx is the client's reply.

        It is called at MAIL, if this delivery takes all recipients and has no ``group``. Otherwise it is called before
        the first ``rcpt``, and a refusal is the reply to that RCPT. If a middleware refuses the sender
        afterwards, ``reset`` comes before the next ``mail``.
        """
        return None

    def group(self, session: Session, recipient: Address) -> object:
        """Return a key that all recipients of one message must share, such as the address to connect from.

        A recipient with another key than the first accepted one gets 452 4.5.3, as if it needed another delivery. This
        is called only if the delivery ``answers``.
        """
        return None

    def rcpt(self, session: Session, recipient: Address) -> Reply | None:
        """Decide on a recipient that this delivery was chosen for, as ``mail`` does.

        A middleware may refuse the recipient afterwards, so use ``envelope.recipients`` in ``begin``.
        """
        return None

    def reset(self, session: Session) -> None:
        """Undo ``mail``: the transaction is over, or goes on without this delivery."""
