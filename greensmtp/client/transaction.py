"""One message, from MAIL to the reply at its end: what ``send`` does with a connection that has been greeted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from greensmtp.client.exchange import CommandExchange
from greensmtp.client.message import PreparedMessage, SendResult
from greensmtp.errors import (
    ClientError,
    DataRefused,
    Disconnected,
    PartiallyRefused,
    RecipientsRefused,
    Refused,
    SenderRefused,
)
from greensmtp.protocol.reply import Reply

#: Octets in a chunk, and chunks that are sent before their replies are read.
CHUNK = 512 * 1024
CHUNKS_AHEAD = 16


def transact(
    dialogue: CommandExchange, outgoing: PreparedMessage, *, raise_on_partial: bool, reset_first: bool
) -> SendResult:
    """Send it. See ``SMTPClient.send`` for what is raised; the connection stays usable after a refusal, but for 421."""
    extensions = dialogue.extensions
    mail_line = outgoing.mail_line(extensions)
    chunked = outgoing.in_chunks(extensions)
    reset = reset_first or dialogue.open_transaction
    envelope = _envelope if "PIPELINING" in extensions else _envelope_one_by_one
    recipients = envelope(dialogue, outgoing, mail_line, reset=reset, chunked=chunked)
    try:
        replies = _send_chunked(dialogue, outgoing) if chunked else _send_data(dialogue, outgoing)
    except Disconnected as lost:
        if lost.after_content:
            lost.recipients = _by_recipient(recipients, lost.replies)
            raise
        # Who hung up in the middle of a message may have said why: that is the reply to it.
        if lost.reply is None or lost.reply.code < 400:
            raise
        replies = [lost.reply]
    except BaseException:
        dialogue.wire.close()  # half a message must not pass for a whole one
        raise
    return _result(dialogue, outgoing, recipients, replies, raise_on_partial=raise_on_partial)


# The envelope


def _envelope(
    dialogue: CommandExchange, outgoing: PreparedMessage, mail_line: bytes, *, reset: bool, chunked: bool
) -> dict[str, Reply]:
    """All of it in one write. Each recipient's reply, when the server is ready to take the message for somebody."""
    lines = [b"RSET\r\n", mail_line, *outgoing.rcpt_lines] if reset else [mail_line, *outgoing.rcpt_lines]
    if not chunked:
        lines.append(b"DATA\r\n")
    data: Reply | None = None
    try:
        # What has to be done to the message is done while the server works.
        replies = dialogue.ask_lines(lines, None if chunked else outgoing.prepare)
    except Disconnected as lost:
        # (Of a connection from before, it may be for its age or number of messages: a new one tells.)
        refusal = None if reset else _last_words(outgoing, lost.replies)
        if refusal is None:
            raise
        raise refusal from lost
    if not chunked:
        data = replies.pop()
    mail = replies[reset]
    recipients = dict(zip(outgoing.recipients, replies[reset + 1 :], strict=True))
    dialogue.open_transaction = True
    dialogue.accepted = accepted = len([reply for reply in recipients.values() if reply.code < 300])
    if mail.code < 300 and accepted and (replies[-1].code != 421 if data is None else data.code == 354):
        return recipients
    if data is not None and data.code == 354:
        _send_to_nobody(dialogue)
    raise _refusal(outgoing, mail, recipients, data)


def _last_words(outgoing: PreparedMessage, replies: Sequence[Reply]) -> Refused | None:
    """Return the refusal of a server that hung up behind it, as far as it is for good; None where there is none."""
    if not replies:
        return None
    mail, recipients = replies[0], dict(zip(outgoing.recipients, replies[1:], strict=False))
    refused = [reply.is_permanent_failure for reply in recipients.values()]
    if mail.is_permanent_failure or (len(refused) == len(outgoing.recipients) and all(refused)):
        return _refusal(outgoing, mail, recipients, None)
    return None


def _send_to_nobody(dialogue: CommandExchange) -> None:
    """RFC 2920 section 3.1: DATA was pipelined, and the server agrees to it though there is nobody to send to. What it
    gets is a message without content; what becomes of that changes nothing about the refusal."""
    dialogue.accepted = 0
    try:
        dialogue.end_message(b".\r\n")
    except ClientError:
        pass  # the connection has been closed


def _envelope_one_by_one(
    dialogue: CommandExchange, outgoing: PreparedMessage, mail_line: bytes, *, reset: bool, chunked: bool
) -> dict[str, Reply]:
    """Without PIPELINING there is no need to go on when all is lost."""
    if reset:
        said = dialogue.ask_lines([b"RSET\r\n"])[0]
        if said.code == 421:
            raise _refusal(outgoing, said, {}, None)
    mail = dialogue.ask_lines([mail_line])[0]
    dialogue.open_transaction = True
    dialogue.accepted = 0
    recipients: dict[str, Reply] = {}
    data: Reply | None = None
    if mail.is_positive:
        for recipient, line in zip(outgoing.recipients, outgoing.rcpt_lines, strict=True):
            # (Behind a 421 nobody is asked any more.)
            last = next(reversed(recipients.values()), mail)
            reply = recipients[recipient] = last if last.code == 421 else dialogue.ask_lines([line])[0]
            dialogue.accepted += reply.is_positive
        if dialogue.accepted and reply.code != 421:
            if chunked:
                return recipients
            data = dialogue.ask_lines([b"DATA\r\n"])[0]
            if data.code == 354:
                return recipients
    raise _refusal(outgoing, mail, recipients, data)


def _refusal(outgoing: PreparedMessage, mail: Reply, recipients: dict[str, Reply], data: Reply | None) -> Refused:
    """What to raise when the server is not ready to take the message."""
    if not mail.is_positive:
        return SenderRefused(f"the sender {outgoing.sender!r} was refused", mail)
    replies = list(recipients.values())
    if any(reply.is_positive for reply in replies):
        return DataRefused("the message was refused", replies[-1] if data is None else data, recipients)
    if len(replies) == 1:
        return RecipientsRefused(f"the recipient {outgoing.recipients[0]!r} was refused", replies[0], recipients)
    return RecipientsRefused(f"all {len(replies)} recipients were refused, one with", _gravest(replies), recipients)


# The message


def _send_data(dialogue: CommandExchange, outgoing: PreparedMessage) -> list[Reply]:
    last = b""
    for piece in outgoing.data():
        if last:
            dialogue.send_body(last)
        last = piece
    return dialogue.end_message(last)


def _send_chunked(dialogue: CommandExchange, outgoing: PreparedMessage) -> list[Reply]:
    window: list[bytes] = []
    ahead = CHUNKS_AHEAD if "PIPELINING" in dialogue.extensions else 1
    for chunk in _cut(outgoing.chunks()):
        if len(window) == ahead:
            replies = dialogue.send_chunks(window, last=False)
            if not replies[0].is_positive:
                return replies  # and the next transaction begins with RSET
            window = []
        window.append(chunk)
    return dialogue.send_chunks(window or [b""], last=True)


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            yield piece[start : start + CHUNK] if len(piece) > CHUNK else piece


# What became of it


def _result(
    dialogue: CommandExchange,
    outgoing: PreparedMessage,
    recipients: dict[str, Reply],
    replies: Sequence[Reply],
    *,
    raise_on_partial: bool,
) -> SendResult:
    reply = replies[0]
    if dialogue.lmtp:
        # One for each; but a refused chunk is refused for all of them.
        recipients.update(_by_recipient(recipients, replies if len(replies) > 1 else [reply] * len(recipients)))
        reply = next((said for said in replies if said.is_positive), _gravest(replies))
    if reply.code >= 300:
        raise DataRefused("the message was refused", reply, recipients)
    sent = SendResult(outgoing.sender, recipients, reply)
    if raise_on_partial and sent.refused:
        refused = sent.refused
        said = _gravest(list(refused.values()))
        name = next(recipient for recipient, each in refused.items() if each is said)
        what = f"sent, but {len(refused)} of {len(recipients)} recipients were refused, {name!r} with"
        raise PartiallyRefused(what, said, recipients, sent)
    return sent


def _by_recipient(recipients: dict[str, Reply], replies: Sequence[Reply]) -> dict[str, Reply]:
    """LMTP: the replies to a message come in the order of the recipients that were accepted (RFC 2033 section 4.2)."""
    accepted = [recipient for recipient, said in recipients.items() if said.is_positive]
    return dict(zip(accepted, replies, strict=False))


def _gravest(refusals: Sequence[Reply]) -> Reply:
    """The one to tell of several: one that may be otherwise later, if there is one, since that asks for another try."""
    return next((reply for reply in refusals if reply.is_transient_failure), refusals[0])
