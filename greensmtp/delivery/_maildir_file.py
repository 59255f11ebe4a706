"""The file of one message on its way into one or several Maildirs.

Rules of this file:

- The hub does no file operations. A small message is a single job of the disk thread: if no other delivery has the
  message, the commit is part of that job, too. A large message is written piece by piece in the thread pool while it
  arrives, and flushed there, so that no other message waits for it.
- The file is written in ``tmp/``. Only a move to ``new/`` delivers it, and no move replaces a file.
- In several Maildirs of one file system it is one file with several names.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from greensmtp.delivery import trace
from greensmtp.delivery._disk import DiskThread, Job, close, move
from greensmtp.delivery.contract import Envelope, Transfer
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.session import Session
from greensmtp.thread_pool import BoundedPool, Steps

logger = logging.getLogger("greensmtp")

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

#: The file system has no links, or the link would cross file systems.
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})

#: Bytes that are collected in memory before the thread pool writes them.
BATCH = 256 * 1024

#: Seconds that a connection waits for an abandoned file to be removed.
_CLEANING_SECONDS = 5.0


class Folders(Protocol):
    """The interface of a delivery for its files; ``Maildir`` implements it."""

    path: Path
    #: True: each recipient has a Maildir.
    per_recipient: bool
    pool: BoundedPool
    disk: DiskThread

    def folders(self, session: Session, recipients: Iterable[Address]) -> Sequence[Path]:
        """Return the Maildirs of these recipients, each once."""

    def envelope_to(self, recipients: Sequence[Address]) -> bytes:
        """Return the Envelope-To field, or nothing."""

    def make(self, folder: Path) -> int:
        """Make a Maildir if it does not exist; return the device of its file system."""

    def forget(self, folder: Path) -> None:
        """Forget that a Maildir exists."""


class MaildirFile(Transfer):
    """The file of one message."""

    settles = True

    #: The descriptor of the file while it is open, in a thread.
    _descriptor: int | None = None
    #: Bytes of the stream's added fields that are in the file.
    _fields_written = 0
    #: The fields that were added up to ``prepare``.
    _fields = b""
    #: True once the file is on the disk, in ``tmp/``.
    _written = False

    def __init__(self, maildir: Folders, envelope: Envelope) -> None:
        super().__init__(envelope)
        session = envelope.session
        # The same message may be written to a folder twice: by two deliveries, or after a DATA that was refused.
        notes, key = session.transaction_notes, (MaildirFile, maildir.path)
        number = notes[key] = notes.get(key, 0) + 1
        unique = envelope.id if number == 1 else f"{envelope.id}_{number}"
        self.name = f"{int(time.time())}.{unique}.{_file_name(session.server.hostname)}"
        self._maildir = maildir
        self._head = (
            trace.return_path(session) + maildir.envelope_to(envelope.recipients) + trace.received_field(session)
        )
        self._section = HeaderSection(without=b"return-path")
        self._batch = bytearray()
        self._steps: Steps | None = None
        #: The folders of the recipients. The file is written in ``tmp`` of the first one.
        self._folders = maildir.folders(session, envelope.recipients)
        self._undelivered = {*self._folders}
        self._partial = f"{self._folders[0]}/tmp/{self.name}"

    def write(self, data: bytes, /) -> None:
        """Write the next piece of the message."""
        self._batch += self._section.feed(data)
        if len(self._batch) >= BATCH:
            batch, self._batch = self._batch, bytearray()
            head = b""
            if self._steps is None:
                self._steps = Steps(self._maildir.pool)
                fields = self.envelope.stream.fields
                head = self._head + fields
                self._fields_written = len(fields)
            self._steps.run(self._append, head, batch)

    def prepare(self) -> None:
        """Flush the file to the disk, unless the commit can do both in one step."""
        self._batch += self._section.feed(b"", last=True)
        self._fields = self.envelope.take_fields()
        if self._steps is not None:
            self._steps.run(self._finish, self._fields)
            self._written = True
        elif not self.envelope.alone or self._maildir.per_recipient:
            self._write_small(())

    def commit(self, recipients: Sequence[Address]) -> None:
        """Move the file to ``new/``."""
        wanted = self._maildir.folders(self.envelope.session, recipients)
        folders = [each for each in wanted if each in self._undelivered]  # two recipients may have one mailbox
        if not self._written:
            self._write_small(folders)
        elif folders:
            self._maildir.disk.run(_Move(self, folders))
        self._undelivered.difference_update(folders)

    def discard(self) -> None:
        """Remove the file."""
        self._batch = bytearray()
        if self._steps is not None:
            cleaning = self._steps.end(self.remove)
        elif self._written:
            cleaning = (steps := Steps()).end(self.remove)
            self._steps = steps
        else:
            return  # the disk thread has undone it, or will
        if cleaning is not None:
            cleaning.wait(_CLEANING_SECONDS)

    def _write_small(self, folders: Sequence[Path]) -> None:
        content = b"".join((self._head, self._fields, self._batch))
        self._batch = bytearray()
        self._maildir.disk.run(_Write(self, folders, content))
        self._written = True

    # In a native thread, since it waits for the disk

    def write_whole(self, content: bytes) -> tuple[int, int]:
        """Write a whole small message; return the file's descriptor and its device."""
        device, descriptor = self._open()
        _write_all(descriptor, content)
        return device, descriptor

    def _open(self) -> tuple[int, int]:
        """Create the file, and the Maildirs that are missing; return its device and its descriptor."""
        devices = [self._maildir.make(folder) for folder in self._folders]
        try:
            self._descriptor = descriptor = os.open(self._partial, _CREATE, 0o600)
        except FileNotFoundError:
            self._maildir.forget(self._folders[0])  # it was removed
            raise
        return devices[0], descriptor

    def _append(self, head: bytes, batch: bytearray) -> None:
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        if head:
            batch[:0] = head
        _write_all(self._descriptor, batch)

    def _finish(self, fields: bytes) -> None:
        """Write the rest of a large message, and flush the file."""
        assert self._descriptor is not None
        _write_all(self._descriptor, self._batch)
        if len(fields) > self._fields_written:
            self._insert(self._descriptor, fields)
        os.fsync(self._descriptor)
        self.close()

    def _insert(self, written: int, fields: bytes) -> None:
        """Write the file again with fields that were added after its head was written."""
        os.unlink(self._partial)  # noqa: PTH108 - a str, since paths take long
        try:
            _, descriptor = self._open()
            _write_all(descriptor, self._head + fields)
            position = len(self._head) + self._fields_written
            while piece := os.pread(written, BATCH, position):
                _write_all(descriptor, piece)
                position += len(piece)
        finally:
            os.close(written)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            close(descriptor)

    def move(self, folders: Sequence[Path]) -> list[str]:
        """Link the file into ``new/`` of each folder; return these folders. If one fails, remove the other links."""
        if len(folders) == len(self._folders) == 1:
            new = [f"{folders[0]}/new"]
            move(self._partial, f"{new[0]}/{self.name}")
            return new
        # Last, the folder that the file is in: it may be the only one in this file system.
        new = [f"{folder}/new" for folder in sorted(folders, key=self._folders[0].__eq__)]
        targets = [f"{folder}/{self.name}" for folder in new]
        is_last = self._undelivered.issubset(folders)
        done: list[str] = []
        try:
            for target in targets[:-1] if is_last else targets:
                self._link(target)
                done.append(target)
            if is_last:
                move(self._partial, targets[-1])
        except BaseException:
            _remove(*done)
            raise
        return new

    def _link(self, target: str) -> None:
        """Link the file under one more name; copy it if the file system has no links."""
        try:
            os.link(self._partial, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            copy = Path(target).parents[1] / "tmp" / f"{self.name}.copy"
            try:
                with Path(self._partial).open("rb") as source, open(copy, "xb", opener=_private) as file:
                    shutil.copyfileobj(source, file)
                    file.flush()
                    os.fsync(file.fileno())
                move(str(copy), target)
            except BaseException:
                _remove(str(copy))
                raise

    def remove(self) -> None:
        """Remove the file in ``tmp/``."""
        try:
            self.close()
        except OSError:
            pass  # the disk is full or broken; the file is removed anyway
        _remove(self._partial)

    def take_back(self, folders: Sequence[Path]) -> None:
        """Remove the file's names in ``new/``."""
        _remove(*(f"{folder}/new/{self.name}" for folder in folders))


@lru_cache(64)
def _file_name(hostname: str) -> str:
    return hostname.replace("/", "_").replace(":", "_")[:100]


class _Move(Job):
    """Move a message that has been written and flushed."""

    def __init__(self, file: MaildirFile, folders: Sequence[Path]) -> None:
        super().__init__()
        self._of = file
        self._folders = folders
        self._moved = False

    def move(self) -> Iterable[str]:
        if not self._folders:
            return ()
        folders = self._of.move(self._folders)
        self._moved = True
        return folders

    def undo(self) -> None:
        if self._moved and not self._of.late:
            self._of.take_back(self._folders)


class _Write(_Move):
    """Write and flush a small message; then, if there are folders, move it."""

    def __init__(self, file: MaildirFile, folders: Sequence[Path], content: bytes) -> None:
        super().__init__(file, folders)
        self._content = content

    def write(self) -> int:
        self.device, descriptor = self._of.write_whole(self._content)
        return descriptor

    def close(self) -> None:
        self._of.close()

    def undo(self) -> None:
        self._of.remove()
        super().undo()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of the data; ``write`` may write less, when the disk is full."""
    done = os.write(descriptor, data)
    while done < len(data):
        with memoryview(data) as view:
            done += os.write(descriptor, view[done:])


def _remove(*paths: str) -> None:
    for path in paths:
        try:
            os.unlink(path)  # noqa: PTH108 - a str, since paths take long
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.error("maildir: %s", error)
