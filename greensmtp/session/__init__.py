"""What handlers and middleware hold: the session, acks, the message stream."""

from greensmtp.session.ack import Ack
from greensmtp.session.session import Change, Link, Session
from greensmtp.session.stream import MessageStream

__all__ = ["Ack", "Change", "Link", "MessageStream", "Session"]
