"""Vacation notices: answers senders while a recipient is away, each sender once a week."""

import logging
import os
import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

import gevent.pool

from greensmtp import (
    Ack,
    Command,
    GreenSMTPError,
    MessageStream,
    Pool,
    Proceed,
    Reply,
    Session,
    SMTPServer,
)
from greensmtp_courtesy.notices import make_notice, may_be_answered, read_texts

logger = logging.getLogger("greensmtp_courtesy.vacation")

#: Seconds until the same sender is answered again (RFC 3834 section 2 asks for several days).
WEEK = 7 * 24 * 3600.0

#: Limits: bytes of a message that are parsed, senders that are remembered, notices being sent.
MAX_HEAD, MAX_REMEMBERED, MAX_SENDING = 64 * 1024, 10_000, 20

#: Sends a notice to a recipient.
Send = Callable[[EmailMessage, str], Any]


def install(server: SMTPServer) -> None:
    """Read the settings, and attach the plugin to a server.

    :raises ValueError, OSError: $VACATION_FILE cannot be read, or is malformed.
    """
    name = os.environ.get("VACATION_FILE")
    if not name:
        raise ValueError("set VACATION_FILE to a TOML file with a table [away]")
    Vacation(read_texts(tomllib.loads(Path(name).read_text("utf-8"))), _smarthost()).attach(server)


def _smarthost() -> Send | None:
    address = os.environ.get("VACATION_SMARTHOST")
    if not address:
        return None
    host, _, port = address.rpartition(":")
    pool = Pool(host.strip("[]"), int(port), size=2, timeout=30)
    # From the null sender, so that a notice is not answered (RFC 3834 section 3.3).
    return lambda notice, recipient: pool.send(notice, "", recipient)


class Head:
    """Keeps the beginning of a body, which contains the header section."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """Keep the data up to MAX_HEAD."""
        self.data += data[: MAX_HEAD - len(self.data)]


class Vacation:
    """Answers accepted messages. Other handlers decide; this one reads the body along, and checks the final reply.

    :param texts: address -> the text of its notices.
    :param send: sends a notice. None: the log shows what would be sent.
    """

    verbs = ("END-OF-DATA",)

    def __init__(self, texts: dict[str, str], send: Send | None = None) -> None:
        self._texts = texts
        self._send = send
        self._sending = gevent.pool.Pool(MAX_SENDING)
        self._answered: OrderedDict[tuple[str, str], float] = OrderedDict()

    def attach(self, server: SMTPServer) -> None:
        """Connect the handler and the middleware."""
        server.on("message", self.read_along)
        server.use(self)

    def read_along(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Keep the head of the body. This handler decides nothing."""
        session.notes[self] = head = Head()
        stream.pipe(head)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Answer the message if it was accepted; in LMTP, for each recipient."""
        reply = proceed(session, command)
        if reply.is_positive and session.from_ and self in session.notes:
            recipient = getattr(command, "recipient", None)
            for each in session.to if recipient is None else [recipient]:
                text = self._texts.get(each.lower())
                if text is not None:
                    self._spawn(session.notes[self].data, str(session.from_), str(each), text)
        return reply

    def _spawn(self, head: bytes, sender: str, recipient: str, text: str) -> None:
        """Send a notice in the background: the client gets its reply at once, even if the notice fails."""
        if self._sending.free_count():
            self._sending.spawn(self._answer, head, sender, recipient, text)
        else:
            logger.warning("too many notices are being sent: %s gets none from %s", sender, recipient)

    def _answer(self, data: bytes, sender: str, recipient: str, text: str) -> None:
        try:
            head = BytesHeaderParser().parsebytes(data)
            if not may_be_answered(head, sender, recipient) or not self._is_new(sender.lower(), recipient.lower()):
                return
            notice = make_notice(head, sender, recipient, text)
            if self._send is None:
                logger.info("would answer %s for %s; set VACATION_SMARTHOST to send it", sender, recipient)
            else:
                self._send(notice, sender)
        except (GreenSMTPError, OSError) as error:
            logger.warning("the notice to %s could not be sent: %s", sender, error)
        except Exception:
            logger.exception("the notice to %s could not be made", sender)

    def _is_new(self, sender: str, recipient: str) -> bool:
        now, key = time.monotonic(), (sender, recipient)
        last = self._answered.get(key)
        if last is not None and now - last < WEEK:
            return False
        self._answered[key] = now
        self._answered.move_to_end(key)
        while len(self._answered) > MAX_REMEMBERED:
            self._answered.popitem(last=False)
        return True

    def __repr__(self) -> str:
        return f"Vacation({len(self._texts)} away)"
