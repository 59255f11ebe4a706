"""What handlers and middleware hold: the session, acks, the message stream."""

from greensmtp.session.ack import Ack
from greensmtp.session.server_info import ServerInfo
from greensmtp.session.session import Change, Session, SocketAddress
from greensmtp.session.stream import MessageStream

__all__ = ["Ack", "Change", "MessageStream", "ServerInfo", "Session", "SocketAddress"]
