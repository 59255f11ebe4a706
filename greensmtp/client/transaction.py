"""One transaction on a connection after EHLO: MAIL, RCPT, the message, and the outcome.

With PIPELINING, the envelope and DATA are sent in one write (``_send_together``); else each command waits for its reply
(``_send_one_by_one``).
"""

from __future__ import annotations

from collections.abc import Sequence

from greensmtp.client.chunks import send_in_chunks
from greensmtp.client.envelope_lines import takes_utf8
from greensmtp.client.exchange import MAX_GROUP, CommandExchange
from greensmtp.client.message import PreparedMessage
from greensmtp.errors import (
    ClientError,
    DataRefused,
    Disconnected,
    NotOffered,
    RecipientsRefused,
    Refused,
    SenderRefused,
)
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.send_result import SendResult


def transact(
    exchange: CommandExchange,
    prepared: PreparedMessage,
    *,
    reset_first: bool,
    following: PreparedMessage | None = None,
) -> SendResult:
    """Send the message; for the errors see ``SMTPClient.send``. After any refusal but 421 the connection is usable.

    :param reset_first: send RSET first.
    :param following: the next message, whose envelope may be sent behind the end of this one.
    """
    extensions = exchange.extensions
    if prepared.requires_tls:
        exchange.check_secure()
    mail_line = prepared.mail_line(extensions)
    chunked = prepared.in_chunks(extensions)
    reset = reset_first or exchange.open_transaction
    recipients = _send_envelope(exchange, prepared, mail_line, reset=reset, chunked=chunked)
    try:
        if chunked:
            replies = send_in_chunks(exchange, prepared.chunks())
        else:
            replies = _send_data(exchange, prepared, following)
    except Disconnected as error:
        if error.after_content:
            error.recipients = _by_recipient(recipients, error.replies)
            raise
        # A server that closes the connection in the middle of a message may send a reply first: it is the final one.
        if error.reply is None or error.reply.code < 400:
            raise
        replies = [error.reply]
    except BaseException:
        exchange.transport.close()  # the server must not accept part of a message as a whole one
        raise
    return _result(exchange, prepared, recipients, replies)


# The envelope

#: The replies to MAIL, to each recipient, and to DATA if it was sent.
_Envelope = tuple[Reply, dict[str, Reply], Reply | None]


def _send_envelope(
    exchange: CommandExchange, prepared: PreparedMessage, mail_line: bytes, *, reset: bool, chunked: bool
) -> dict[str, Reply]:
    """Send the envelope, and return each recipient's reply; raise Refused if the message may not follow."""
    exchange.mails += 1
    send = _send_together if "PIPELINING" in exchange.extensions else _send_one_by_one
    is_ahead = exchange.in_flight is not None
    mail, recipients, data = send(exchange, prepared, mail_line, reset=reset, chunked=chunked)
    if is_ahead and mail.code == 503 and (data is None or data.code >= 400):
        # Haraka, for one, discards what follows a message before its reply, lest it be smuggled in: send it again.
        exchange.may_send_ahead = False
        mail, recipients, data = send(exchange, prepared, mail_line, reset=reset, chunked=chunked)
    exchange.open_transaction = True
    accepted = 0
    for reply in recipients.values():
        if reply.code < 300:
            accepted += 1
    exchange.accepted = accepted
    if data is not None and data.code == 354:
        exchange.data_reply = data  # so that no other greenlet's command becomes part of the message
        if mail.code < 300 and accepted:
            return recipients
        _end_empty_message(exchange)
    elif chunked and mail.code < 300 and accepted and not exchange.transport.closed:
        return recipients
    raise _refusal(prepared, mail, recipients, data)


def _send_together(
    exchange: CommandExchange, prepared: PreparedMessage, mail_line: bytes, *, reset: bool, chunked: bool
) -> _Envelope:
    lines = [b"RSET\r\n", mail_line, *prepared.rcpt_lines] if reset else [mail_line, *prepared.rcpt_lines]
    if not chunked:
        lines.append(b"DATA\r\n")
    try:
        # Prepare the message while waiting for the server.
        replies = exchange.send_lines(lines, None if chunked else prepared.prepare)
    except Disconnected as error:
        # The server may have closed a kept connection because of its age: try a new one, whatever the reply says.
        refusal = None if reset else _permanent_refusal(prepared, error.replies)
        if refusal is None:
            raise
        raise refusal from error
    data = None if chunked else replies.pop()
    if reset:
        del replies[0]
    recipients = prepared.recipients
    if len(replies) == 2:  # zip takes longer, and most messages have one recipient
        return replies[0], {recipients[0]: replies[1]}, data
    return replies[0], dict(zip(recipients, replies[1:], strict=True)), data


def _send_one_by_one(
    exchange: CommandExchange, prepared: PreparedMessage, mail_line: bytes, *, reset: bool, chunked: bool
) -> _Envelope:
    """Send the envelope as long as it is accepted. After 421 nothing more is sent; it counts as all further replies."""
    recipients: dict[str, Reply] = {}
    last = exchange.send_lines([b"RSET\r\n"])[0] if reset else None
    if last is None or last.code != 421:
        last = exchange.send_lines([mail_line])[0]
    mail = last
    if mail.is_positive:
        for recipient, line in zip(prepared.recipients, prepared.rcpt_lines, strict=True):
            if last.code != 421:
                last = exchange.send_lines([line])[0]
            recipients[recipient] = last
    wanted = not chunked and last.code != 421 and any(reply.is_positive for reply in recipients.values())
    return mail, recipients, exchange.send_lines([b"DATA\r\n"])[0] if wanted else None


def _permanent_refusal(prepared: PreparedMessage, replies: Sequence[Reply]) -> Refused | None:
    """Return the error for a server that sent a permanent refusal and closed the connection; None if it sent none."""
    if not replies:
        return None
    mail, recipients = replies[0], dict(zip(prepared.recipients, replies[1:], strict=False))
    refused = [reply.is_permanent_failure for reply in recipients.values()]
    if mail.is_permanent_failure or (len(refused) == len(prepared.recipients) and all(refused)):
        return _refusal(prepared, mail, recipients, None)
    return None


def _end_empty_message(exchange: CommandExchange) -> None:
    """Send an empty message: DATA was pipelined and accepted although there is no recipient (RFC 2920 section 3.1).

    Its reply does not change the refusal. A server that has a recipient, since only MAIL was refused, might deliver the
    empty message. How many replies an LMTP server sends is unknown: RFC 2033 does not allow this 354.
    """
    if exchange.accepted or exchange.lmtp:
        exchange.transport.close()
        return
    try:
        exchange.end_message(b".\r\n")
    except ClientError:
        pass  # the connection has been closed


def _refusal(prepared: PreparedMessage, mail: Reply, recipients: dict[str, Reply], data: Reply | None) -> Refused:
    """Return the error to raise when the message may not follow the envelope."""
    if not mail.is_positive:
        return SenderRefused(f"the sender {prepared.sender!r} was refused", mail)
    replies = list(recipients.values())
    if any(reply.is_positive for reply in replies):
        return DataRefused("the message was refused", replies[-1] if data is None else data, recipients)
    if len(replies) == 1:
        return RecipientsRefused(f"the recipient {prepared.recipients[0]!r} was refused", replies[0], recipients)
    return RecipientsRefused(
        f"all {len(replies)} recipients were refused, one with", representative(replies), recipients
    )


# The message


def _send_data(exchange: CommandExchange, prepared: PreparedMessage, following: PreparedMessage | None) -> list[Reply]:
    last = b""
    for piece in prepared.data():
        if last:
            exchange.send_body(last)
        last = piece
    ahead = None if following is None else _envelope_ahead(exchange, prepared, following)
    if following is None or ahead is None:
        return exchange.end_message(last)
    return exchange.end_message(last, ahead, following.prepare)


def _envelope_ahead(
    exchange: CommandExchange, prepared: PreparedMessage, following: PreparedMessage
) -> list[bytes] | None:
    """Return the envelope of the next message, DATA included, if it may be sent before the reply to this one.

    That is if this message needs no other transaction, and the next one begins with just these lines.
    """
    extensions, limits = exchange.extensions, exchange.limits
    count = len(following.recipients)
    if (
        "PIPELINING" not in extensions
        or not exchange.may_send_ahead
        or exchange.accepted < len(prepared.recipients)
        or (exchange.lmtp and exchange.accepted > 1)
        or count > MAX_GROUP - 2
        or following.requires_tls
        or (following.utf8_recipients and not takes_utf8(extensions))
        or (
            limits is not None
            and (
                exchange.mails >= exchange.mail_max
                or limits.rcpt_domain_max is not None
                or (limits.rcpt_max is not None and count > limits.rcpt_max)
            )
        )
    ):
        return None
    try:
        mail_line = following.mail_line(extensions)
    except NotOffered:
        return None  # raised when it is that message's turn
    if following.in_chunks(extensions):
        return None
    return [mail_line, *following.rcpt_lines, b"DATA\r\n"]


# The outcome


def _result(
    exchange: CommandExchange, prepared: PreparedMessage, recipients: dict[str, Reply], replies: Sequence[Reply]
) -> SendResult:
    reply = replies[0]
    if exchange.lmtp:
        # One reply for each recipient; but a refused chunk has one reply for all of them.
        recipients.update(_by_recipient(recipients, replies if len(replies) > 1 else [reply] * len(recipients)))
        reply = next((each for each in replies if each.is_positive), representative(replies))
    if reply.code >= 300:
        raise DataRefused("the message was refused", reply, recipients)
    return SendResult(prepared.sender, recipients, reply, dsn="DSN" in exchange.extensions)


def _by_recipient(recipients: dict[str, Reply], replies: Sequence[Reply]) -> dict[str, Reply]:
    """Assign LMTP's replies to a message to the accepted recipients, in their order (RFC 2033 section 4.2)."""
    accepted = [recipient for recipient, reply in recipients.items() if reply.is_positive]
    return dict(zip(accepted, replies, strict=False))


def representative(refusals: Sequence[Reply]) -> Reply:
    """Return the refusal to report: a transient one if there is any, since the message should then be tried again."""
    return next((reply for reply in refusals if reply.is_transient_failure), refusals[0])
