"""The file of one message on its way into a Maildir.

Rules of this file:

- All work on the file is done in the thread pool, one step after another (``Steps``).
- The last step is staged: it runs when all handlers and middleware have answered. It claims the outcome "stored" before
  it renames the file. A greenlet that is interrupted while it waits claims "abandoned". Only the first claim counts:
  either there is a file and the client gets 250, or there is no file.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gevent import GreenletExit, get_hub, getcurrent

from greensmtp.delivery import trace
from greensmtp.delivery.contract import Envelope, Transfer
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.thread_pool import BoundedPool, Steps

logger = logging.getLogger("greensmtp")

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

#: Bytes that are collected in memory before the thread pool writes them.
BATCH = 256 * 1024

#: Seconds that a connection waits for an abandoned file to be removed.
_CLEANING_SECONDS = 5.0


class MaildirFile(Transfer):
    """The file of one message."""

    _file: BinaryIO | None = None
    #: Bytes of the stream's added fields that are in the file.
    _fields_written = 0
    settles = True

    def __init__(self, path: Path, pool: BoundedPool, envelope: Envelope) -> None:
        super().__init__(envelope)
        session = envelope.session
        # The same message may be written to a folder twice: by two deliveries, or after a DATA that was refused.
        notes, key = session.transaction_notes, (MaildirFile, path)
        number = notes[key] = notes.get(key, 0) + 1
        unique = envelope.id if number == 1 else f"{envelope.id}_{number}"
        host = session.server.hostname.replace("/", "_").replace(":", "_")[:100]
        name = f"{int(time.time())}.{unique}.{host}"
        self._partial = path / "tmp" / name
        self._final = path / "new" / name
        self._head = trace.return_path(session) + trace.envelope_to(envelope.recipients) + trace.received_field(session)
        self._section = HeaderSection(without=b"return-path")
        self._batch = bytearray()
        self._steps = Steps(pool)
        #: ``"stored"`` or ``"abandoned"``, once that is claimed.
        self._outcome: dict[str, str] = {}

    def write(self, data: bytes, /) -> None:
        """Write the next piece of the message."""
        self._batch += self._section.feed(data)
        if len(self._batch) >= BATCH:
            batch, self._batch = self._batch, bytearray()
            head = b""
            if self._file is None:
                fields = self.envelope.stream.fields
                head = self._head + fields
                self._fields_written = len(fields)
            self._steps.run(self._append, head, batch)

    def prepare(self) -> None:
        """Write the rest of the file, and flush it to the disk."""
        self._batch += self._section.feed(b"", last=True)
        self._steps.run(self._finish, self.envelope.take_fields())

    def commit(self, recipients: Sequence[Address]) -> None:
        """Move the file to its place."""
        killed: GreenletExit | None = None
        work = None
        while True:
            try:
                work = work or self._steps.start(self._move)
                outcome: Any = work.get()
                break
            except BaseException as interruption:
                if self._claim("abandoned"):
                    raise
                # The rename is the point of no return: the file is there, or is about to be. Any reply but 250 would
                # make a duplicate. So a timeout comes too late, and a kill has to wait.
                if isinstance(interruption, GreenletExit):
                    killed = interruption
        if killed is not None:
            get_hub().loop.run_callback(getcurrent().throw, killed)
        _, error = outcome
        if error is not None:
            raise error

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
        """Remove the file."""
        self._batch = bytearray()
        if self._file is None and not self._steps.busy:
            return
        cleaning = self._steps.end(self._clean_up)
        if cleaning is not None:
            cleaning.wait(_CLEANING_SECONDS)


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
