"""One message, from MAIL to the reply at its end: what ``send`` does with a connection that has been greeted."""

from __future__ import annotations

from collections.abc import Iterator
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
from greensmtp.pipeline import Step
from greensmtp.protocol.replies import Reply

if TYPE_CHECKING:
    from greensmtp.client import SMTPClient

#: Octets in a chunk, and chunks that are sent before their replies are read.
CHUNK = 512 * 1024
CHUNKS_AHEAD = 16


def transact(client: SMTPClient, outgoing: Outgoing, *, raise_on_partial: bool, reset_first: bool) -> Sent:
    """Send it. See ``SMTPClient.send`` for what is raised; the connection stays usable after a refusal, but for 421."""
    try:
        return _transact(client, outgoing, raise_on_partial=raise_on_partial, reset_first=reset_first)
    except Refused as refused:
        if refused.reply is not None and refused.reply.code == 421:
            client.close()
        raise


def _transact(client: SMTPClient, outgoing: Outgoing, *, raise_on_partial: bool, reset_first: bool) -> Sent:
    extensions = client.extensions
    client.replies = ()
    mail_line = outgoing.mail_line(extensions)
    chunked = outgoing.in_chunks(extensions)
    command = client.timeouts.command
    steps = [client._reset_step()] if reset_first or client.needs_reset else []
    ahead = len(steps)
    steps.append(Step(mail_line, command, client._note_mail))
    steps += [Step(line, command, client._note_rcpt) for line in outgoing.rcpt_lines]
    if not chunked:
        steps.append(client._data_step())
    if "PIPELINING" in extensions:
        replies = client._ask_all(steps)
    else:
        replies = list(_one_by_one(client, steps, ahead))
    recipients = _judge(client, outgoing, replies[ahead:], chunked=chunked)
    reply = _send_chunked(client, outgoing) if chunked else _send_data(client, outgoing)
    return _result(client, outgoing, recipients, reply, raise_on_partial=raise_on_partial)


def _one_by_one(client: SMTPClient, steps: list[Step], ahead: int) -> Iterator[Reply]:
    """Without PIPELINING there is no need to go on when all is lost."""
    for number, step in enumerate(steps):
        if step.note == client._note_data and not client._recipients:
            return
        reply = client._take(step)
        yield reply
        if not reply.is_positive and (number == ahead or reply.code == 421):
            return


def _judge(client: SMTPClient, outgoing: Outgoing, replies: list[Reply], *, chunked: bool) -> dict[str, Reply]:
    """Each recipient's reply, when somebody is left to send to and the server is ready to take the message."""
    mail = replies[0]
    recipients = dict(zip(outgoing.recipients, replies[1:], strict=False))
    data = None if chunked or len(replies) < len(outgoing.recipients) + 2 else replies[-1]
    accepted = any(reply.is_positive for reply in recipients.values())
    if not (mail.is_positive and accepted) and data is not None and data.code == 354:
        # RFC 2920 section 3.1: a server that agreed to DATA all the same gets a message that it sends to nobody.
        client._end_message(b".\r\n")
    if not mail.is_positive:
        raise SenderRefused(f"the sender {outgoing.sender!r} was refused", mail)
    if not accepted:
        if len(recipients) == 1:
            what, reply = f"the recipient {outgoing.recipients[0]!r} was refused", replies[1]
        else:
            what = f"all {len(outgoing.recipients)} recipients were refused, one with"
            reply = next((reply for reply in recipients.values() if reply.is_transient_failure), replies[1])
        raise RecipientsRefused(what, reply, recipients)
    if data is not None and data.code != 354:
        raise DataRefused("DATA was refused", data, recipients)
    return recipients


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
        for chunk in _in_size(outgoing.chunks()):
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


def _in_size(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if len(piece) <= CHUNK:
            if piece:
                yield piece
        else:
            for start in range(0, len(piece), CHUNK):
                yield piece[start : start + CHUNK]


def _last_words(lost: Disconnected) -> Reply:
    """Who hung up in the middle of a message may have said why: that is the reply to it."""
    reply = lost.reply
    if reply is None or not (reply.is_transient_failure or reply.is_permanent_failure):
        raise lost
    return reply


def _result(
    client: SMTPClient, outgoing: Outgoing, recipients: dict[str, Reply], reply: Reply, *, raise_on_partial: bool
) -> Sent:
    if client.lmtp:
        accepted = [recipient for recipient, said in recipients.items() if said.is_positive]
        if len(client.replies) == len(accepted):
            recipients.update(zip(accepted, client.replies, strict=True))
        agreed = [said for said in recipients.values() if said.is_positive]
        if not agreed:
            raise DataRefused("the message was refused", reply, recipients)
        reply = agreed[0]
    elif not reply.is_positive:
        raise DataRefused("the message was refused", reply, recipients)
    sent = Sent(outgoing.sender, recipients, reply)
    if raise_on_partial and sent.refused:
        refused = sent.refused
        name, said = next(iter(refused.items()))
        what = f"sent, but {len(refused)} of {len(recipients)} recipients were refused, {name!r} with"
        raise PartiallyRefused(what, said, recipients, sent)
    return sent
