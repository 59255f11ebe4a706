"""Delivery into a Maildir: 250 is said when the message is on the disk, whole, and will be there after a crash."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

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

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_numbers = itertools.count(1)

#: The disk, the quota, or the largest file: more room may come.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Maildir:
    """One Maildir that takes every message: ``Maildir("maildir").attach(server)``.

    The body goes to a file in ``tmp/`` as it arrives, behind Return-Path, Envelope-To and Received. At ``received``
    the file is flushed to the disk, moved to ``new/``, and the folder flushed, all in the thread pool; then the reply
    is ``250 2.0.0 Ok: queued as ID``, where ID is in the Received line and in the file's name. A message that fails
    leaves no file: 452 where there is no room, 451 for any other trouble with the folder.

    Where other handlers have decided already, the Maildir goes by what they said: a message that one of them has
    refused is not stored, and one that they have accepted is, under their reply.

    :param path: the folder; it is made, with ``tmp``, ``new`` and ``cur``, when it is not there.
    :raises ValueError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        is_new = not self.path.exists()
        try:
            for name in ("tmp", "new", "cur"):
                (self.path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            _flush_folder(self.path)
            if is_new:
                _flush_folder(self.path.parent)
        except OSError as error:
            raise ValueError(f"maildir: cannot make {str(self.path)!r}: {error.strerror}") from error
        for name in ("tmp", "new"):
            if not os.access(self.path / name, os.W_OK | os.X_OK):
                raise ValueError(f"maildir: cannot write to {str(self.path / name)!r}")

    def attach(self, server: SMTPServer) -> None:
        """Take the mail of this server.

        To have other handlers in between, connect the three apart: ``tap`` before those that read the body, which it
        would miss else; ``accept`` and ``store`` behind those that may refuse the message.
        """
        server.on("message", self.tap)
        server.on("message", self.accept)
        server.on("received", self.store)

    def tap(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """A handler of ``message``: have the body flow into a file, as soon as it flows.

        :raises RuntimeError: some of it has flowed already.
        """
        if stream.size:
            raise RuntimeError("connect Maildir.tap before the handlers that read the body")
        delivery = _Delivery(self.path, session)
        session.notes[self] = delivery
        stream.at_end(delivery.discard)
        stream.pipe(delivery)

    def accept(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """A handler of ``message``: accept, unless somebody else has decided.

        :raises Reject: the file cannot be made.
        """
        if not ack.decided:
            self._delivery(session).open()
            ack.accept()

    def store(self, session: Session, ack: Ack, recipient: Address | None = None) -> None:
        """A handler of ``received``: make it permanent, unless somebody else has refused it.

        (LMTP asks for each recipient: one file is stored for all.)

        :raises Reject: it cannot be stored.
        """
        if ack.decided and not ack.accepted:
            return
        delivery = self._delivery(session)
        delivery.store()
        if not ack.decided:
            ack.accept(250, f"2.0.0 Ok: queued as {delivery.queue_id}")

    def _delivery(self, session: Session) -> _Delivery:
        delivery: _Delivery = session.notes[self]
        return delivery


class _Delivery:
    """One message on its way into the folder."""

    def __init__(self, path: Path, session: Session) -> None:
        microseconds = time.time_ns() // 1000
        #: Unique on this host: time, process, count (as https://cr.yp.to/proto/maildir.html asks for). Without dots,
        #: for Received takes an atom (RFC 5321 section 4.4).
        self.queue_id = f"{microseconds:X}P{os.getpid()}Q{next(_numbers)}"
        host = session.server.hostname.replace("/", "_").replace(":", "_")[:100]
        name = f"{microseconds // 1_000_000}.{self.queue_id}.{host}"
        self._partial = path / "tmp" / name
        self._final = path / "new" / name
        self._head = (
            trace.return_path(session)
            + trace.envelope_to(session.to)
            + trace.received(session, self.queue_id, datetime.now().astimezone())
        )
        self._file: BinaryIO | None = None
        self._handed_over = False
        self._stored = False
        self._failure: Reject | None = None

    def open(self) -> BinaryIO:
        """Make the file, with the trace information in it; the first write does, too.

        :raises Reject: this delivery has failed.
        """
        if self._failure is not None:
            raise self._failure
        if self._file is None:
            try:
                self._file = os.fdopen(os.open(self._partial, _CREATE, 0o600), "wb")
                self._file.write(self._head)
            except OSError as error:
                raise self._fail(error) from error
        return self._file

    def write(self, data: bytes, /) -> None:
        """The next piece of the message.

        :raises Reject: this delivery has failed.
        """
        file = self.open()
        try:
            file.write(data)
        except OSError as error:
            raise self._fail(error) from error

    def store(self) -> None:
        """Flush and move, once.

        :raises Reject: this delivery has failed, now or before.
        """
        file = self.open()
        if self._stored:
            return
        self._handed_over = True
        error = get_hub().threadpool.apply(self._commit, (file,))
        if error is not None:
            raise self._fail(error) from error
        self._stored = True

    def _commit(self, file: BinaryIO) -> OSError | None:
        """In a native thread, for it waits for the disk. What it raised would be printed there: it is given back."""
        try:
            with file:
                file.flush()
                os.fsync(file.fileno())
            self._partial.rename(self._final)
            _flush_folder(self._final.parent)
        except OSError as error:
            for path in (self._partial, self._final):
                _remove(path)
            return error
        return None

    def discard(self) -> None:
        """The transaction is over; what was not stored leaves no trace. (The thread that stores cleans up itself.)"""
        if self._file is None or self._handed_over:
            return
        try:
            self._file.close()
        except OSError:
            pass  # what was buffered does not fit on the disk either
        _remove(self._partial)

    def _fail(self, error: OSError) -> Reject:
        """Give up, for good, and tell the peer what a full or broken disk means to it."""
        logger.error("maildir: %s", error)
        self.discard()
        if error.errno in _FULL:
            self._failure = Reject(452, "4.3.1 Insufficient storage, try again later")
        else:
            self._failure = Reject(451, "4.3.0 The mailbox cannot be written to, try again later")
        return self._failure


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.error("maildir: %s", error)
