"""One message, from MAIL to the reply at its end: what ``send`` does with a connection that has been greeted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from greensmtp.errors import (
    DataRefused,
    Disconnected,
    PartiallyRefused,
    RecipientsRefused,
    Refused,
    SenderRefused,
)
from greensmtp.outgoing import Outgoing, Sent
from greensmtp.protocol.replies import Reply

if TYPE_CHECKING:
    from greensmtp.client import SMTPClient

#: Octets in a chunk, and chunks that are sent before their replies are read.
CHUNK = 512 * 1024
CHUNKS_AHEAD = 16


def transact(client: SMTPClient, outgoing: Outgoing, *, raise_on_partial: bool, reset_first: bool) -> Sent:
    """Send it. See ``SMTPClient.send`` for what is raised; the connection stays usable after a refusal, but for 421."""
    extensions = client.extensions
    mail_line = outgoing.mail_line(extensions)
    chunked = outgoing.in_chunks(extensions)
    reset = reset_first or client.needs_reset
    try:
        if "PIPELINING" in extensions:
            recipients = _envelope(client, outgoing, mail_line, reset=reset, chunked=chunked)
        else:
            recipients = _envelope_one_by_one(client, outgoing, mail_line, reset=reset, chunked=chunked)
        reply = _send_chunked(client, outgoing) if chunked else _send_data(client, outgoing)
        return _result(client, outgoing, recipients, reply, raise_on_partial=raise_on_partial)
    except Refused as refused:
        if refused.reply is not None and refused.reply.code == 421:
            client.close()
        raise


# The envelope


def _envelope(
    client: SMTPClient, outgoing: Outgoing, mail_line: bytes, *, reset: bool, chunked: bool
) -> dict[str, Reply]:
    """All of it in one write. Each recipient's reply, when the server is ready to take the message for somebody."""
    lines = [b"RSET\r\n", mail_line, *outgoing.rcpt_lines] if reset else [mail_line, *outgoing.rcpt_lines]
    if not chunked:
        lines.append(b"DATA\r\n")
    replies = client._ask_lines(lines)
    data = None if chunked else replies.pop()
    if reset:
        del replies[0]
    mail = replies[0]
    del replies[0]
    client._open_transaction = True
    recipients = dict(zip(outgoing.recipients, replies, strict=True))
    client._recipients = accepted = len([reply for reply in replies if reply.code < 300])
    if data is not None and data.code < 400 and data.code != 354:
        raise client._broken(f"DATA was answered {data}")
    if mail.code < 300 and accepted and (data is None or data.code == 354):
        return recipients
    if data is not None and data.code == 354:
        # RFC 2920 section 3.1: a server that agrees to DATA all the same gets a message that it sends to nobody.
        client._end_message(b".\r\n")
    raise _refusal(outgoing, mail, recipients, data)


def _envelope_one_by_one(
    client: SMTPClient, outgoing: Outgoing, mail_line: bytes, *, reset: bool, chunked: bool
) -> dict[str, Reply]:
    """Without PIPELINING there is no need to go on when all is lost."""
    if reset:
        client.reset()
    mail = client._ask_lines([mail_line])[0]
    client._open_transaction = True
    recipients: dict[str, Reply] = {}
    data: Reply | None = None
    client._recipients = 0
    if mail.is_positive:
        for recipient, line in zip(outgoing.recipients, outgoing.rcpt_lines, strict=True):
            reply = recipients[recipient] = client._ask_lines([line])[0]
            client._recipients += reply.is_positive
            if reply.code == 421:
                break
        if client._recipients and reply.code != 421 and not chunked:
            data = client._ask_lines([b"DATA\r\n"])[0]
            if data.code < 400 and data.code != 354:
                raise client._broken(f"DATA was answered {data}")
        if client._recipients and reply.code != 421 and (data is None or data.code == 354):
            return recipients
    raise _refusal(outgoing, mail, recipients, data)


def _refusal(outgoing: Outgoing, mail: Reply, recipients: dict[str, Reply], data: Reply | None) -> Refused:
    """What to raise when the server is not ready to take the message."""
    if not mail.is_positive:
        return SenderRefused(f"the sender {outgoing.sender!r} was refused", mail)
    replies = list(recipients.values())
    if data is not None and any(reply.is_positive for reply in replies):
        return DataRefused("DATA was refused", data, recipients)
    if len(replies) == 1:
        return RecipientsRefused(f"the recipient {outgoing.recipients[0]!r} was refused", replies[0], recipients)
    worst = next((reply for reply in replies if reply.is_transient_failure), replies[0])
    return RecipientsRefused(f"all {len(replies)} recipients were refused, one with", worst, recipients)


# The message


def _send_data(client: SMTPClient, outgoing: Outgoing) -> Reply:
    try:
        last = b""
        for piece in outgoing.data(client.extensions):
            if last:
                client._send_body(last)
            last = piece
        return client._end_message(last)
    except Disconnected as lost:
        return _last_words(lost)
    except BaseException:
        client.close()  # half a message must not pass for a whole one
        raise


def _send_chunked(client: SMTPClient, outgoing: Outgoing) -> Reply:
    window: list[bytes] = []
    ahead = CHUNKS_AHEAD if "PIPELINING" in client.extensions else 1
    try:
        for chunk in _cut(outgoing.chunks()):
            if len(window) == ahead:
                reply = client._send_chunks(window, last=False)
                if not reply.is_positive:
                    return reply  # and the next transaction begins with RSET
                window = []
            window.append(chunk)
        return client._send_chunks(window or [b""], last=True)
    except Disconnected as lost:
        return _last_words(lost)
    except BaseException:
        client.close()
        raise


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            yield piece[start : start + CHUNK] if len(piece) > CHUNK else piece


def _last_words(lost: Disconnected) -> Reply:
    """Who hung up in the middle of a message may have said why: that is the reply to it."""
    reply = lost.reply
    if reply is None or reply.code < 400:
        raise lost
    return reply


def _result(
    client: SMTPClient, outgoing: Outgoing, recipients: dict[str, Reply], reply: Reply, *, raise_on_partial: bool
) -> Sent:
    if client.lmtp and reply in client.replies:
        accepted = [recipient for recipient, said in recipients.items() if said.is_positive]
        recipients.update(zip(accepted, client.replies, strict=False))
        reply = next((said for said in recipients.values() if said.is_positive), reply)
    if reply.code >= 300:
        raise DataRefused("the message was refused", reply, recipients)
    sent = Sent(outgoing.sender, recipients, reply)
    if raise_on_partial and sent.refused:
        refused = sent.refused
        name, said = next(iter(refused.items()))
        what = f"sent, but {len(refused)} of {len(recipients)} recipients were refused, {name!r} with"
        raise PartiallyRefused(what, said, recipients, sent)
    return sent
