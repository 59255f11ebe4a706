"""The file of one message on its way into a Maildir.

Rules of this file:

- All work on the file is done in the thread pool, one step after another (``Steps``).
- The last step is staged: it runs when all handlers and middleware have answered. It claims the outcome "stored" before
  it renames the file. A greenlet that is interrupted while it waits claims "abandoned". Only the first claim counts:
  either there is a file and the client gets 250, or there is no file.
- What fails once has failed: the file is removed, and every later call raises the same refusal.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from gevent import GreenletExit, get_hub, getcurrent

from greensmtp.delivery import trace
from greensmtp.errors import Reject
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.session import Session
from greensmtp.session.body_pipes import reply_to_failure
from greensmtp.session.stream import MessageStream
from greensmtp.thread_pool import BoundedPool, Steps

logger = logging.getLogger("greensmtp")

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

#: Bytes that are collected in memory before the thread pool writes them.
BATCH = 256 * 1024

#: Seconds that a connection waits for an abandoned file to be removed.
_CLEANING_SECONDS = 5.0

_FULL = (452, "4.3.1 Insufficient storage, try again later")
_UNWRITABLE = (451, "4.3.0 The mailbox cannot be written to, try again later")


class MaildirFile:
    """The file of one message."""

    _file: BinaryIO | None = None
    #: Bytes of the stream's added fields that are in the file.
    _fields_written = 0
    _complete = _stored = False
    #: The arguments of Reject. A stored exception would keep its frames, and be raised by several callers.
    _failure: tuple[int, str] | None = None

    def __init__(self, path: Path, pool: BoundedPool, session: Session, stream: MessageStream) -> None:
        self.queue_id = session.transaction_id
        # The same message may be written to a folder twice: by two deliveries, or after a DATA that was refused.
        notes, key = session.transaction_notes, (MaildirFile, path)
        number = notes[key] = notes.get(key, 0) + 1
        unique = self.queue_id if number == 1 else f"{self.queue_id}_{number}"
        host = session.server.hostname.replace("/", "_").replace(":", "_")[:100]
        name = f"{int(time.time())}.{unique}.{host}"
        self._partial = path / "tmp" / name
        self._final = path / "new" / name
        self._head = (
            trace.return_path(session) + trace.envelope_to(session.to) + trace.received_field(session, self.queue_id)
        )
        self._stream = stream
        self._section = HeaderSection(without=b"return-path")
        self._batch = bytearray()
        self._steps = Steps(pool)
        #: ``"stored"`` or ``"abandoned"``, once that is claimed.
        self._outcome: dict[str, str] = {}

    def write(self, data: bytes, /) -> None:
        """Write the next piece of the message.

        :raises Reject: the file cannot be written.
        """
        self._batch += self._section.feed(data)
        if len(self._batch) >= BATCH:
            batch, self._batch = self._batch, bytearray()
            head = b""
            if self._file is None:
                fields = self._stream.fields
                head = self._head + fields
                self._fields_written = len(fields)
            try:
                self._steps.run(self._append, head, batch)
            except OSError as error:
                raise self._fail(error) from error

    def complete(self) -> None:
        """Write the rest of the file, and flush it to the disk, once.

        :raises Reject: it fails now, or has failed before.
        """
        self._check_not_failed()
        if self._complete:
            return
        self._batch += self._section.feed(b"", last=True)
        try:
            self._steps.run(self._finish, self._stream.take_fields())
        except OSError as error:
            raise self._fail(error) from error
        except BaseException:
            self._failure = _UNWRITABLE  # so that it is not tried again for LMTP's other recipients
            raise
        self._complete = True

    def store(self) -> None:
        """Move the file to its place, once. It is staged, so that 250 is the next thing that happens.

        :raises Reject: it fails now, or has failed before.
        """
        self._check_not_failed()
        if self._stored:
            return
        killed: GreenletExit | None = None
        work = None
        while True:
            try:
                work = work or self._steps.start(self._move)
                outcome: Any = work.get()
                break
            except BaseException as interruption:
                if self._claim("abandoned"):
                    self._failure = _UNWRITABLE
                    raise
                # The rename is the point of no return: the file is there, or is about to be. Any reply but 250 would
                # make a duplicate. So a timeout comes too late, and a kill has to wait.
                if isinstance(interruption, GreenletExit):
                    killed = interruption
        if killed is not None:
            get_hub().loop.run_callback(getcurrent().throw, killed)
        _, error = outcome
        if isinstance(error, OSError):
            raise self._fail(error) from error
        if error is not None:
            raise error
        self._stored = True

    def _check_not_failed(self) -> None:
        if self._failure is not None:
            raise Reject(*self._failure)

    def _claim(self, outcome: str) -> bool:
        """Settle the outcome; return False if the other one was settled before, in this thread or another."""
        return self._outcome.setdefault("outcome", outcome) == outcome  # setdefault is atomic

    # In a native thread, since it waits for the disk

    def _open(self) -> BinaryIO:
        self._file = os.fdopen(os.open(self._partial, _CREATE, 0o600), "w+b", buffering=0)
        return self._file

    def _append(self, head: bytes, batch: bytearray) -> None:
        file = self._file or self._open()
        if head:
            batch[:0] = head
        _write_all(file, batch)

    def _finish(self, fields: bytes) -> None:
        """Write the rest, and flush the file. This is the last step but one."""
        if self._file is None:
            self._append(self._head + fields, self._batch)
        else:
            _write_all(self._file, self._batch)
            if len(fields) > self._fields_written:
                self._insert(fields)
        file = self._file
        assert file is not None
        os.fsync(file.fileno())
        file.close()

    def _move(self) -> None:
        """Move the file to its place, unless the message was abandoned. This is the last step."""
        if not self._claim("stored"):
            return  # abandoned: the clean-up follows this step
        try:
            self._partial.rename(self._final)
            flush_folder(self._final.parent)
        except OSError:
            _remove(self._partial, self._final)
            raise

    def _insert(self, fields: bytes) -> None:
        """Write the file again with fields that were added after its head was written."""
        written = self._file
        assert written is not None
        self._partial.unlink()
        with written:
            file = self._open()
            _write_all(file, self._head + fields)
            written.seek(len(self._head) + self._fields_written)
            while piece := written.read(BATCH):
                _write_all(file, piece)

    def _clean_up(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # the disk is full or broken; the file is removed anyway
            _remove(self._partial)

    # In the connection's greenlet

    def discard(self) -> None:
        """Remove the file at the end of the transaction, unless it was stored."""
        self._batch = bytearray()
        if self._stored or (self._file is None and not self._steps.busy):
            return
        cleaning = self._steps.end(self._clean_up)
        if cleaning is not None:
            cleaning.wait(_CLEANING_SECONDS)

    def _fail(self, error: OSError) -> Reject:
        """Log the failure and discard the file; return the refusal for the client."""
        logger.error("maildir: %s; message %s is refused", error, self.queue_id)
        self.discard()
        self._failure = _FULL if reply_to_failure(error).code == _FULL[0] else _UNWRITABLE
        return Reject(*self._failure)


def _write_all(file: BinaryIO, data: bytes | bytearray) -> None:
    """Write all of the data to an unbuffered file, whose ``write`` may write less."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += file.write(view[done:])


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that its entries survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(*paths: Path) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("maildir: %s", error)
