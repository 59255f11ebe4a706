"""Delivery into a Maildir: 250 is said when the message is on the disk, whole, and will be there after a crash."""

from __future__ import annotations

import logging
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gevent import GreenletExit, get_hub, getcurrent

from greensmtp.delivery import trace
from greensmtp.errors import Reject
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream, reply_to_failure
from greensmtp.thread_pool import BoundedPool, FirstOutcome, Steps

if TYPE_CHECKING:
    from greensmtp.session import ServerInfo

logger = logging.getLogger("greensmtp")

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

#: Octets that are collected in memory before the thread pool writes them.
BATCH = 256 * 1024

#: Threads, of gevent's ten, that one Maildir may use at the same time.
_THREADS = 8

#: Seconds that a connection waits for an abandoned file to be removed.
_CLEANING_SECONDS = 5.0

_FULL = (452, "4.3.1 Insufficient storage, try again later")
_UNWRITABLE = (451, "4.3.0 The mailbox cannot be written to, try again later")


class Maildir:
    """One Maildir that takes every message: ``Maildir("maildir").attach(server)``.

    Before the body come Return-Path, Envelope-To, Received, and the fields that ``stream.add_header`` has added. A
    Return-Path that the message brings is left out, for only the final delivery writes one (RFC 5321 section 4.4).
    The file is written in ``tmp/`` and flushed to the disk. When all handlers and middleware have answered, it is moved
    to ``new/``, and the folder is flushed; then the reply is ``250 2.0.0 Ok: queued as ID``, where ID is in the
    Received line and in the file's name. All this is done in the thread pool. A small message is written in one step
    there, a large one piece by piece while it arrives.

    A message that fails leaves no file: 452 where there is no room, 451 for any other trouble with the folder. Where a
    refusal, a timeout or a kill comes before the move, the message is abandoned; from the move on, the client is told
    250.

    Where other handlers have decided already, the Maildir goes by their decision: a message that one of them has
    refused is not stored, and one that they have accepted is, under their reply.

    :param path: the folder; it is made, with ``tmp``, ``new`` and ``cur``, when it is not there.
    :raises ValueError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path):
            raise ValueError("maildir: the path is empty; pass the folder's name ('.' for the current one)")
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
        #: Some threads of the pool stay free for others when this disk does not answer.
        self._pool = BoundedPool(_THREADS)

    def attach(self, server: ServerInfo) -> None:
        """Take the mail of this server.

        To have other handlers in between, connect the three apart: ``tap`` before those that read the body, which it
        would miss else; ``accept`` and ``store`` behind those that may refuse the message.
        """
        server.signals.on("message", self.tap)
        server.signals.on("message", self.accept)
        server.signals.on("received", self.store)

    def tap(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """A handler of ``message``: have the body flow to the Maildir, as soon as it flows.

        :raises RuntimeError: some of it has flowed already.
        """
        delivery = _Delivery(self.path, self._pool, session, stream)
        try:
            stream.pipe(delivery, fields=False)
        except RuntimeError:
            raise RuntimeError("connect Maildir.tap before the handlers that read the body") from None
        session.notes[self] = delivery
        stream.at_end(partial(self._end, session, delivery))

    def accept(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """A handler of ``message``: accept, unless another handler has decided."""
        if not ack.decided:
            ack.accept()

    def store(self, session: Session, ack: Ack, recipient: Address | None = None) -> None:
        """A handler of ``received``: make it permanent, unless another handler has refused it.

        The file is complete, and on the disk, when this returns. It is moved to its place when the whole stack has
        answered, and only if the client is told 250. LMTP asks for each recipient: one file is stored for all, at the
        first that is not refused, and each is told the same.

        :raises Reject: it cannot be stored.
        """
        if ack.decided and not ack.accepted:
            return
        delivery: _Delivery = session.notes[self]
        delivery.complete()
        session.stage(delivery.store)
        if not ack.decided:
            ack.accept(250, f"2.0.0 Ok: queued as {delivery.queue_id}")

    def _end(self, session: Session, delivery: _Delivery) -> None:
        session.notes.pop(self, None)
        delivery.discard()


class _Delivery:
    """One message on its way into the folder.

    All work on the file is done in the thread pool, one step after another. The last step, which is staged, claims the
    message as stored before it renames the file; a greenlet that is interrupted while it waits claims it as abandoned.
    One of the two is first: either there is a file, and the client is told 250, or there is none.
    """

    _file: BinaryIO | None = None
    #: How much of the stream's added fields is in the file.
    _fields_written = 0
    _complete = _stored = False
    #: The arguments of Reject, for this is shared: an exception that is raised again keeps its old frames.
    _failure: tuple[int, str] | None = None

    def __init__(self, path: Path, pool: BoundedPool, session: Session, stream: MessageStream) -> None:
        self.queue_id = trace.new_queue_id()
        host = session.server.hostname.replace("/", "_").replace(":", "_")[:100]
        name = f"{time.time_ns() // 1_000_000_000}.{self.queue_id}.{host}"
        self._partial = path / "tmp" / name
        self._final = path / "new" / name
        self._head = (
            trace.return_path(session) + trace.envelope_to(session.to) + trace.received_field(session, self.queue_id)
        )
        self._stream = stream
        self._section = HeaderSection(without=b"return-path")
        self._batch = bytearray()
        self._steps = Steps(pool)
        #: ``"stored"`` or ``"abandoned"``, whichever is first.
        self._outcome = FirstOutcome()

    def write(self, data: bytes, /) -> None:
        """Take the next piece of the message.

        :raises Reject: this delivery has failed.
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

        :raises Reject: this delivery has failed, now or before.
        """
        if self._failure is not None:
            raise Reject(*self._failure)
        if self._complete:
            return
        self._batch += self._section.feed(b"", last=True)
        try:
            self._steps.run(self._finish, self._stream.take_fields())
        except OSError as error:
            raise self._fail(error) from error
        except BaseException:
            self._failure = _UNWRITABLE  # nor is it begun again for LMTP's other recipients
            raise
        self._complete = True

    def store(self) -> None:
        """Move the file to its place, once; staged, so that the client is told 250 next.

        :raises Reject: this delivery has failed, now or before.
        """
        if self._failure is not None:
            raise Reject(*self._failure)
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
                if self._outcome.claim("abandoned"):
                    self._failure = _UNWRITABLE
                    raise
                # The rename is the point of no return: the file is there, or will be in an instant, and to say
                # anything but 250 now would make a duplicate. So a timeout comes too late, and a kill has to wait.
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

    # In a native thread, for it waits for the disk

    def _open(self) -> BinaryIO:
        self._file = os.fdopen(os.open(self._partial, _CREATE, 0o600), "w+b", buffering=0)
        return self._file

    def _append(self, head: bytes, batch: bytearray) -> None:
        file = self._file or self._open()
        if head:
            batch[:0] = head
        _write_all(file, batch)

    def _finish(self, fields: bytes) -> None:
        """The last step but one: what is left, to the disk."""
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
        """The last step: to its place, unless the message has been abandoned."""
        if not self._outcome.claim("stored"):
            return  # what follows this step cleans up
        try:
            self._partial.rename(self._final)
            _flush_folder(self._final.parent)
        except OSError:
            _remove(self._partial, self._final)
            raise

    def _insert(self, fields: bytes) -> None:
        """Write the file again, since fields have been added after its head was written."""
        written = self._file
        assert written is not None
        self._partial.unlink()
        with written:
            file = self._open()
            _write_all(file, self._head + fields)
            written.seek(len(self._head) + self._fields_written)
            shutil.copyfileobj(written, file, BATCH)

    def _clean_up(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # what was buffered does not fit on the disk either
            _remove(self._partial)

    # In the connection's greenlet

    def discard(self) -> None:
        """The transaction is over; what was not stored leaves no trace."""
        self._batch = bytearray()
        if self._stored or (self._file is None and not self._steps.busy):
            return
        cleaning = self._steps.end(self._clean_up)
        if cleaning is not None:
            cleaning.wait(_CLEANING_SECONDS)

    def _fail(self, error: OSError) -> Reject:
        """Give up, for good, and tell the client what a full or broken disk means to it."""
        logger.error("maildir: %s", error)
        self.discard()
        self._failure = _FULL if reply_to_failure(error).code == _FULL[0] else _UNWRITABLE
        return Reject(*self._failure)


def _write_all(file: BinaryIO, data: bytes | bytearray) -> None:
    """Write to an unbuffered file, which may take less at once."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += file.write(view[done:])


def _flush_folder(folder: Path) -> None:
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
