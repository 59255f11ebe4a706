"""A message in as many transactions as the server's limits require, over one connection or several.

Usually one transaction is enough, and its outcome is passed on unchanged. There are more if

- the server announces LIMITS (RFC 9422): a maximum number of recipients in a transaction, of messages in a session, or
  of recipients' domains in a session;
- it announces nothing, but refuses recipients with 452 after it has accepted others (RFC 5321 section 4.5.3.1.10);
- some recipients have addresses that need SMTPUTF8, which it does not offer: these are refused here.

A recipient whose reply is known is never sent again, so another connection can continue after one has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from greensmtp.client.envelope_lines import takes_utf8
from greensmtp.client.exchange import CommandExchange
from greensmtp.client.message import PreparedMessage
from greensmtp.client.transaction import representative, transact
from greensmtp.errors import (
    ClientError,
    Disconnected,
    PartiallyRefused,
    PeerProtocolError,
    RecipientsRefused,
    Refused,
    SenderRefused,
)
from greensmtp.protocol.ehlo_parameters import OfferedLimits
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import SendResult

#: The reply for a recipient whose address cannot be sent to this server (RFC 6531 section 3.5).
NEEDS_SMTPUTF8 = Reply(553, "5.6.7 this address needs SMTPUTF8, which the server does not offer")


class Transactions:
    """The transactions of one message, and the outcome for each recipient."""

    # These rarely change, so their defaults are set here, and not for each message.
    _results: tuple[SendResult, ...] = ()
    _refusals: tuple[Refused, ...] = ()
    #: Each recipient's reply, once there was a transaction for only some of them.
    _replies: Mapping[str, Reply] = MappingProxyType({})

    def __init__(self, prepared: PreparedMessage) -> None:
        self._prepared = prepared
        #: The message for the recipients that are left; None when there are none.
        self._left: PreparedMessage | None = prepared

    def send(
        self,
        exchange: CommandExchange,
        *,
        reset_first: bool = False,
        beyond_limits: bool = False,
        following: PreparedMessage | None = None,
    ) -> bool:
        """Send to the remaining recipients; return False if a limit of the session requires another one to continue.

        :param reset_first: send RSET first.
        :param beyond_limits: True if there can be no other session: ignore the limits, and let the server decide.
        :param following: the next message, whose envelope may be sent behind the end of this one.
        :raises Refused: the only transaction was refused; or the server ends the connection with that reply, 421.
        :raises ClientError: as ``SMTPClient.send``.
        """
        while self._left is not None:
            left = self._left
            if left.utf8_recipients and not takes_utf8(exchange.extensions):
                left = self._refuse_unnameable(left)
            group = left
            if exchange.limits is not None:
                allowed = _allowed(left, exchange, exchange.limits, beyond_limits=beyond_limits)
                if allowed is None:
                    return False
                group = allowed
            try:
                result = transact(
                    exchange, group, reset_first=reset_first, following=following if group is self._prepared else None
                )
            except Refused as error:
                if exchange.transport.closed or not (group is not left or self._replies):
                    raise
                self._keep_refusal(left, group, error)
            else:
                self._results = (*self._results, result)
                self._left = None
                if len(left.recipients) > 1 or self._replies:
                    self._left = self._after(left, group, result, lmtp=exchange.lmtp)
            reset_first = False
        return True

    def _after(
        self, left: PreparedMessage, group: PreparedMessage, result: SendResult, *, lmtp: bool
    ) -> PreparedMessage | None:
        """Return the message for the recipients that are left after a transaction."""
        again = {
            recipient
            for recipient, reply in result.recipients.items()
            if reply.code >= 400 and _is_too_many(reply, lmtp=lmtp)
        }
        if group is left and not again and not self._replies:
            return None
        self._replies = {**self._replies, **result.recipients}
        return _part(left, set(left.recipients).difference(set(group.recipients) - again))

    def _keep_refusal(self, left: PreparedMessage, group: PreparedMessage, error: Refused) -> None:
        """Record that a transaction for some of the recipients was refused."""
        self._refusals = (*self._refusals, error)
        # If the sender is refused, it will be in the next transaction too.
        concerned = left if isinstance(error, SenderRefused) else group
        self._replies = {**self._replies, **_replies(error, concerned.recipients)}
        self._left = _part(left, set(left.recipients).difference(concerned.recipients))

    def _refuse_unnameable(self, left: PreparedMessage) -> PreparedMessage:
        """Leave out the recipients whose addresses need SMTPUTF8, unless nothing remains."""
        nameable = _part(left, set(left.recipients).difference(left.utf8_recipients))
        if nameable is None:
            return left  # transact() raises NotOffered
        self._replies = {**self._replies, **dict.fromkeys(left.utf8_recipients, NEEDS_SMTPUTF8)}
        self._left = nameable
        return nameable

    def try_again(self, error: ClientError | None) -> bool:
        """Prepare another ``send`` for the recipients that may still get the message; return False if there are none.

        :param error: the error of the last ``send``; None if it returned.
        """
        left = self._left
        if error is None:
            replies = self._replies or self._results[0].recipients
            again = {recipient for recipient, reply in replies.items() if reply.is_transient_failure}
            if again:
                self._replies = replies
                self._left = _part(self._prepared, again)
        elif left is None or not (error.transient and error.safe_to_retry):
            return False
        elif not isinstance(error, SenderRefused):  # after which the replies to RCPT mean nothing
            refused = {each: reply for each, reply in error.recipients.items() if reply.is_permanent_failure}
            self._replies = {**self._replies, **refused}
            self._left = _part(left, set(left.recipients).difference(refused))
        return self._left is not None

    # The outcome

    def result(self, *, raise_on_partial: bool) -> SendResult:
        """Return the outcome of all transactions.

        :raises Refused: no recipient got the message; PartiallyRefused if some did not.
        """
        if not self._results:
            raise self._all_refused()
        sent = self._results[0]
        if self._replies:
            sent = SendResult(
                self._prepared.sender,
                self._in_order(),
                sent.reply,
                further_replies=tuple(result.reply for result in self._results[1:]),
                dsn=all(result.dsn for result in self._results),
            )
        if raise_on_partial and sent.refused:
            raise _partial(sent)
        return sent

    def result_after(self, error: ClientError, *, raise_on_partial: bool) -> SendResult:
        """Return the outcome after an error if every recipient has a reply; else raise the error.

        An error after a transaction that has succeeded leaves some recipients with the message, and others without.
        """
        left = self._left
        if left is None or not self._results:
            raise error
        if isinstance(error, Refused):
            self._replies = {**self._replies, **_replies(error, left.recipients)}
        elif isinstance(error, (Disconnected, PeerProtocolError)) and error.after_content:
            # The server may have accepted the message for them, whatever it replied before.
            self._replies = {each: reply for each, reply in self._replies.items() if each not in left.recipients}
        if not self._replies.keys() >= set(left.recipients):
            error.safe_to_retry = False
            error.recipients = {**self._replies, **error.recipients}
            raise error
        return self.result(raise_on_partial=raise_on_partial)

    def _in_order(self) -> dict[str, Reply]:
        return {recipient: self._replies[recipient] for recipient in self._prepared.recipients}

    def _all_refused(self) -> Refused:
        """Return the error that represents the refusals of all transactions."""
        replies = self._in_order()
        for error in self._refusals:
            if not isinstance(error, RecipientsRefused):
                error.recipients = replies
                error.transient = any(reply.is_transient_failure for reply in replies.values())
                return error
        worst = representative(list(replies.values()))
        return RecipientsRefused(f"all {len(replies)} recipients were refused, one with", worst, replies)


def _replies(error: Refused, recipients: Iterable[str]) -> dict[str, Reply]:
    """Return each recipient's reply after a refusal: its own, if that was a refusal."""
    assert error.reply is not None
    own = error.recipients
    return {each: own[each] if each in own and not own[each].is_positive else error.reply for each in recipients}


def _part(prepared: PreparedMessage, recipients: set[str]) -> PreparedMessage | None:
    return prepared.part(recipients) if recipients else None


def _allowed(
    left: PreparedMessage, exchange: CommandExchange, limits: OfferedLimits, *, beyond_limits: bool
) -> PreparedMessage | None:
    """Return the message for the recipients of the next transaction; None if no other transaction is allowed."""
    recipients: Sequence[str] = left.recipients
    if not beyond_limits:
        if exchange.mails >= exchange.mail_max:
            return None
        if limits.rcpt_domain_max is not None:
            recipients = _in_few_domains(recipients, exchange.domains, limits.rcpt_domain_max)
    recipients = recipients[: limits.rcpt_max]
    return left if len(recipients) == len(left.recipients) else _part(left, set(recipients))


def _in_few_domains(recipients: Sequence[str], domains: set[str], most: int) -> list[str]:
    """Return the recipients in known domains of the session, and in new ones up to the limit; record these."""
    chosen = []
    for recipient in recipients:
        domain = recipient.rpartition("@")[2].lower()
        if domain in domains or len(domains) < most:
            domains.add(domain)
            chosen.append(recipient)
    return chosen


def _is_too_many(reply: Reply, *, lmtp: bool) -> bool:
    """True if the reply refuses a recipient because the transaction has too many (RFC 5321 section 4.5.3.1.10).

    A 452 without an enhanced status code is interpreted in this way, except in LMTP, where it may be the reply to the
    message.
    """
    if reply.enhanced is None:
        return reply.code == 452 and not lmtp
    return reply.code in (452, 552) and reply.enhanced in ("4.5.3", "5.5.3")


def _partial(sent: SendResult) -> PartiallyRefused:
    refused = sent.refused
    worst = representative(list(refused.values()))
    name = next(recipient for recipient, reply in refused.items() if reply is worst)
    what = f"sent, but {len(refused)} of {len(sent.recipients)} recipients were refused, {name!r} with"
    return PartiallyRefused(what, worst, sent.recipients, sent)
