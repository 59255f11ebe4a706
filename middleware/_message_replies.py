"""The replies to a message as the client gets them, for middleware that reports them.

The chain's reply to END-OF-DATA is not always what the client gets. When the staged changes take effect, a delivery
may still fail: a Maildir that cannot move its file turns the 250 into a 452. So the replies are read from the stream
when the transaction is over (``MessageStream.replies``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: The chain's replies so far: one, or in LMTP one for each recipient. None: a 2xx that the client has not got.
Replies = list[Reply | None]


def note_reply(session: Session, replies: Replies, reply: Reply, end: Callable[[], None]) -> None:
    """Note the chain's reply to END-OF-DATA. At the first one, have ``end`` called when the transaction is over."""
    stream = session.message
    if stream is not None:
        if not replies:
            stream.at_end(end)
        replies.append(reply)
    elif reply.code < 300:  # a handler has reset the session
        session.stage(replies.__setitem__, len(replies), reply)
        session.stage(end)
        replies.append(None)
    else:
        replies.append(reply)
        end()


def told_replies(session: Session, replies: Replies) -> Sequence[Reply | None]:
    """Return the replies when the transaction is over.

    There are fewer than recipients in LMTP, and none in SMTP, if the connection has ended before.
    """
    stream = session.message
    return replies if stream is None else stream.replies


def outcome_of(reply: Reply) -> str:
    """Return ``accepted``, ``deferred`` or ``refused``."""
    return "accepted" if reply.code < 400 else "deferred" if reply.code < 500 else "refused"
