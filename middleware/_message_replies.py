"""The replies to a message as the client gets them, for middleware that reports them.

The chain's reply to END-OF-DATA is not always what the client gets. When the staged changes take effect, a delivery
may still fail: a Maildir that cannot move its file turns the 250 into a 452. So a 2xx is noted by a staged change, and
the replies are read when the transaction is over (``MessageStream.at_end``).
"""

from __future__ import annotations

from collections.abc import Callable

from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: The replies so far: one, or in LMTP one for each recipient. None stands for a 2xx that has not been told.
Replies = list[Reply | None]


def note_reply(session: Session, replies: Replies, reply: Reply, end: Callable[[], None]) -> None:
    """Note the chain's reply to END-OF-DATA. At the first one, have ``end`` called when the transaction is over."""
    if reply.code < 300:
        session.stage(replies.__setitem__, len(replies), reply)
        replies.append(None)
    else:
        replies.append(reply)
    if len(replies) == 1:
        if session.message is not None:
            session.message.at_end(end)
        elif reply.code < 300:
            session.stage(end)  # a handler has reset the session
        else:
            end()


def told_replies(session: Session, replies: Replies) -> Replies:
    """Return the replies when the transaction is over. None: the client was not told this reply.

    The connection has ended before, or an outer middleware has refused the message.
    """
    if len(replies) > 1 and not session.server.lmtp:
        replies = replies[-1:]  # an outer middleware has called proceed again
    failure = None if session.message is None else session.message.failure
    return replies if failure is None else [reply or failure for reply in replies]


def outcome_of(reply: Reply) -> str:
    """Return ``accepted``, ``deferred`` or ``refused``."""
    return "accepted" if reply.code < 400 else "deferred" if reply.code < 500 else "refused"
