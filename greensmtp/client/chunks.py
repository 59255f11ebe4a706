"""Send a message in chunks, by BDAT (RFC 3030), and read the replies to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from greensmtp.client.exchange import CommandExchange
from greensmtp.client.trace import show_commands, show_replies
from greensmtp.errors import Disconnected
from greensmtp.protocol import esmtp
from greensmtp.protocol.reply import Reply

#: Bytes up to which a chunk is sent in one write with its BDAT.
SMALL_CHUNK = 16 * 1024
#: Bytes in a chunk, and maximum number of chunks that are sent before their replies are read.
CHUNK = 512 * 1024
CHUNKS_AHEAD = 16


def send_in_chunks(exchange: CommandExchange, pieces: Iterable[bytes]) -> list[Reply]:
    """Send a whole message; return its replies, or the refusal of a chunk, which leaves the transaction open."""
    window: list[bytes] = []
    ahead = CHUNKS_AHEAD if "PIPELINING" in exchange.extensions else 1
    for chunk in _cut(pieces):
        if len(window) == ahead:
            replies = send_chunks(exchange, window, last=False)
            if not replies[0].is_positive:
                return replies
            window = []
        window.append(chunk)
    return send_chunks(exchange, window or [b""], last=True)


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            yield piece[start : start + CHUNK] if len(piece) > CHUNK else piece


def send_chunks(exchange: CommandExchange, chunks: Sequence[bytes], *, last: bool) -> list[Reply]:
    """Send chunks by BDAT (RFC 3030), all of them before their replies are read.

    :param last: the last of these chunks ends the message.
    :return: the first refusal; or the replies to the message, if it has ended; or the reply to the last chunk.
    """
    transport, timeouts = exchange.transport, exchange.timeouts
    final = len(chunks) - 1
    for number, chunk in enumerate(chunks):
        head = f"BDAT {len(chunk)}{' LAST' if last and number == final else ''}\r\n".encode()
        if exchange.trace is not None:
            show_commands(exchange.trace, [head])
        if len(chunk) <= SMALL_CHUNK:
            transport.send(head + chunk, timeouts.data)
        else:
            transport.send(head, timeouts.command)
            transport.send(chunk, timeouts.data)
    transport.message_sent = last
    refusal: Reply | None = None
    reply: Reply | None = None
    for _ in chunks[: final if last else None]:
        reply = transport.read_reply(timeouts.command)
        if exchange.trace is not None:
            show_replies(exchange.trace, [reply])
        if reply.is_intermediate:
            raise exchange.protocol_error(f"unexpected reply to BDAT: {reply}")
        if reply.code == 421:
            transport.message_sent = False
            transport.close()
            return [refusal or reply]
        if refusal is None and not reply.is_positive:
            refusal = reply
    if last:
        replies = exchange.on_final_replies(_read_replies_to_last_chunk(exchange))
        if refusal is None:
            return replies
        accepted = [reply for reply in replies if reply.is_positive]
        if accepted:  # RFC 3030 section 2 forbids that
            text = f"a chunk was refused with {refusal}, and the message accepted with {accepted[0]}"
            raise exchange.protocol_error(text, after_content=True)
    answer = refusal or reply
    assert answer is not None
    return [answer]


def _read_replies_to_last_chunk(exchange: CommandExchange) -> list[Reply]:
    """Return the replies to BDAT LAST: one; in LMTP one for each recipient, or a single refusal for all of them.

    An LMTP server refuses a message with one reply for each recipient (RFC 2033 section 4.3), but may refuse the
    command itself with a single one. So after a single refusal, LHLO is sent, to find out whether more replies follow.
    """
    transport, seconds = exchange.transport, exchange.timeouts.final
    missing = exchange.final_count() - 1
    replies = transport.send_and_receive(b"", 1, seconds, seconds)
    if not missing or replies[0].code == 421 or replies[0].is_intermediate:
        return replies
    try:
        if replies[0].code < 400 or transport.has_unread_bytes:
            replies += transport.send_and_receive(b"", missing, seconds, seconds)
            return replies
        if exchange.trace is not None:
            show_commands(exchange.trace, [exchange.hello_line])
        transport.send(exchange.hello_line, exchange.timeouts.command)
        while "CHUNKING" not in esmtp.parse_offers(reply := transport.read_reply(seconds)):
            replies.append(reply)
            if reply.code == 421:
                return replies
    except Disconnected as error:
        error.replies = (*replies, *error.replies)
        raise
    if len(replies) not in (1, missing + 1):
        text = f"expected 1 or {missing + 1} replies to the message; got {len(replies)}"
        raise exchange.protocol_error(text, after_content=True)
    return replies
