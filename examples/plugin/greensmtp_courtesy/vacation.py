"""Vacation notices: answers people while somebody is away, each of them once a week."""

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

#: Seconds until the same person is answered again (RFC 3834 section 2 asks for several days).
WEEK = 7 * 24 * 3600.0

#: Bounds: octets of a message that are looked at, people that are remembered, answers on their way.
MAX_HEAD, MAX_REMEMBERED, MAX_SENDING = 64 * 1024, 10_000, 20

#: Hands an answer on, to this recipient.
Send = Callable[[EmailMessage, str], Any]


def install(server: SMTPServer) -> None:
    """The plugin: read the settings, and have every server's mail answered.

    :raises ValueError, OSError: $VACATION_FILE is not what it should be.
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
    # From the null sender: nobody is to answer an answer (RFC 3834 section 3.3).
    return lambda notice, recipient: pool.send(notice, "", recipient)


class Head:
    """Takes the beginning of a body as it flows: what is needed of the header section, and no more."""

    def __init__(self) -> None:
        self.octets = b""

    def write(self, data: bytes) -> None:
        """As a file does."""
        self.octets += data[: MAX_HEAD - len(self.octets)]


class Vacation:
    """Answers what has been accepted. The decisions are others': it reads along, and looks at the last reply.

    :param texts: address -> what is answered to people who write there.
    :param send: hands an answer on; without it, the log tells what would have been sent.
    """

    verbs = ("END-OF-DATA",)

    def __init__(self, texts: dict[str, str], send: Send | None = None) -> None:
        self._texts = texts
        self._send = send
        self._sending = gevent.pool.Pool(MAX_SENDING)
        self._answered: OrderedDict[tuple[str, str], float] = OrderedDict()

    def attach(self, server: SMTPServer) -> None:
        """Connect it."""
        server.on("message", self.read_along)
        server.use(self)

    def read_along(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """A handler that decides nothing: what flows to whoever reads flows here too."""
        session.notes[self] = head = Head()
        stream.pipe(head)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """See how it ends; in LMTP, for each recipient."""
        reply = proceed(session, command)
        if reply.is_positive and session.from_ and self in session.notes:
            recipient = getattr(command, "recipient", None)
            for each in session.to if recipient is None else [recipient]:
                text = self._texts.get(each.lower())
                if text is not None:
                    self._spawn(session.notes[self].octets, str(session.from_), str(each), text)
        return reply

    def _spawn(self, octets: bytes, sender: str, recipient: str, text: str) -> None:
        """The peer has its reply without waiting for this, and whatever comes of it."""
        if self._sending.free_count():
            self._sending.spawn(self._answer, octets, sender, recipient, text)
        else:
            logger.warning("too many answers on their way: %s gets none from %s", sender, recipient)

    def _answer(self, octets: bytes, sender: str, recipient: str, text: str) -> None:
        try:
            head = BytesHeaderParser().parsebytes(octets)
            if not may_be_answered(head, sender, recipient) or not self._is_new(sender.lower(), recipient.lower()):
                return
            notice = make_notice(head, sender, recipient, text)
            if self._send is None:
                logger.info("would answer %s for %s; set VACATION_SMARTHOST to have it sent", sender, recipient)
            else:
                self._send(notice, sender)
        except (GreenSMTPError, OSError) as error:
            logger.warning("an answer to %s could not be sent: %s", sender, error)
        except Exception:
            logger.exception("an answer to %s could not be made", sender)

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
