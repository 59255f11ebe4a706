"""Delivery into a Maildir: 250 is said when the message is on the disk, whole, and will be there after a crash."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gevent import get_hub

from greensmtp.ack import Ack
from greensmtp.delivery import trace
from greensmtp.errors import Reject
from greensmtp.protocol.addresses import Address
from greensmtp.session import Session
from greensmtp.stream import MessageStream

if TYPE_CHECKING:
    from greensmtp.server import SMTPServer

logger = logging.getLogger("greensmtp")

Result = TypeVar("Result")

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_numbers = itertools.count(1)

#: The disk, the quota, or the largest file: more room may come.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Maildir:
    """One Maildir that takes every message: ``Maildir("maildir").attach(server)``.

    The body goes to a file in ``tmp/`` as it arrives, behind Return-Path, Envelope-To and Received. At ``received``
    the file is flushed to the disk, moved to ``new/``, and the folder flushed, all in the thread pool; then the reply
    is ``250 2.0.0 Ok: queued as ID``, where ID begins the file's name. A message that fails leaves no file: 452 where
    there is no room, 451 for any other trouble with the folder.

    :param path: the folder; it is made, with ``tmp``, ``new`` and ``cur``, when it is not there.
    :raises ValueError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        try:
            for name in ("tmp", "new", "cur"):
                (self.path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ValueError(f"maildir: cannot make {str(self.path)!r}: {error.strerror}") from error
        if not os.access(self.path / "tmp", os.W_OK | os.X_OK):
            raise ValueError(f"maildir: cannot write to {str(self.path)!r}")

    def attach(self, server: SMTPServer) -> None:
        """Take the mail of this server: decide its ``message`` and ``received``."""
        self.attach_message(server)
        self.attach_received(server)

    def attach_message(self, server: SMTPServer) -> None:
        """The first half of ``attach``: connect it before the handlers that read the body, which it would miss."""
        server.on("message", self.on_message)

    def attach_received(self, server: SMTPServer) -> None:
        """The second half: connect it behind the handlers that may refuse the message, or it is stored before."""
        server.on("received", self.on_received)

    def on_message(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Have the body flow into a file."""
        delivery = _Delivery(self.path, session)
        session.notes[self] = delivery
        stream.at_end(delivery.discard)
        stream.pipe(delivery)
        ack.accept()

    def on_received(self, session: Session, ack: Ack, recipient: Address | None = None) -> None:
        """Make it permanent. (LMTP asks for each recipient: one file has been stored for all.)"""
        delivery: _Delivery = session.notes[self]
        delivery.store()
        ack.accept(250, f"2.0.0 Ok: queued as {delivery.queue_id}")


class _Delivery:
    """One message on its way into the folder."""

    def __init__(self, path: Path, session: Session) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        #: Unique on this host: time, process, count (as https://cr.yp.to/proto/maildir.html asks for).
        self.queue_id = f"{seconds}.M{nanoseconds // 1000}P{os.getpid()}Q{next(_numbers)}"
        name = f"{self.queue_id}.{session.server.hostname.replace('/', '_').replace(':', '_')}"
        self._partial = path / "tmp" / name
        self._final = path / "new" / name
        self._stored = False
        self._failure: Reject | None = None
        head = (
            trace.return_path(session)
            + trace.envelope_to(session.to)
            + trace.received(session, self.queue_id, datetime.now().astimezone())
        )
        self._file = _trying(lambda: os.fdopen(os.open(self._partial, _CREATE, 0o600), "wb"))
        self.write(head)

    def write(self, data: bytes, /) -> None:
        """The next piece of the message."""
        _trying(lambda: self._file.write(data))

    def store(self) -> None:
        """Flush and move, once; raises the same Reject again when it failed the first time."""
        if self._failure is not None:
            raise self._failure
        if self._stored:
            return
        try:
            get_hub().threadpool.apply(_trying, (self._commit,))
        except Reject as reject:
            self._failure = reject
            raise
        self._stored = True

    def _commit(self) -> None:
        """In a native thread: it waits for the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.rename(self._final)
        folder = os.open(self._final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """The transaction is over; what was not stored leaves no trace."""
        if self._stored:
            return
        try:
            self._file.close()
        except OSError:
            pass  # what was buffered does not fit on the disk either
        self._partial.unlink(missing_ok=True)


def _trying(step: Callable[[], Result]) -> Result:
    """Do it, and tell the peer what a full or broken disk means to it."""
    try:
        return step()
    except OSError as error:
        logger.error("maildir: %s", error)
        if error.errno in _FULL:
            raise Reject(452, "4.3.1 Insufficient storage, try again later") from error
        raise Reject(451, "4.3.0 The mailbox cannot be written to, try again later") from error
