"""The message stream: a message body as it arrives, read from the socket as a binary file.

How it works. ``_take_chunk`` reads one chunk from the ``Body`` (DATA's or BDAT's framing). The chunk passes through, in
this order: the size limit, normalization of newlines, the checks, the deliveries, the added header fields, the pipes;
then it goes to the reader. Whatever receivers leave unread is drained through the same steps, so pipes get all of it.

Rules of this file:

- Only the connection's own greenlet reads. Memory stays flat: a slow reader slows the client.
- 354 is sent by ``open``, in the connection's greenlet, within ``ack.accept()`` or right after it.
- A failure is final: the first one settles the reply, nothing flows to receivers or pipes after it, and the rest of the
  body is read and thrown away, so that it is not taken for commands.
- Fields are added to the body as bytes, before its first chunk; a delivery that takes them itself gets the body alone.

States:

    flag        set when                                        then
    opened      the ack was accepted and the client may send    reading is allowed
    _begun      the first chunk was taken, or it is over        no pipe, spool or (for readers) field can be added
    complete    the end of the body was read, or it is lost     nothing is left to drain
    failure     it failed: size, newlines, a pipe, abort()      this reply is sent instead of ``received``'s
    error       the failure is more than an early end           reading raises it
    closed      close() was called, or the transaction is over  reading raises ValueError
    _flowing    opened, and none of the last four               the quick test that a chunk can be read
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent import getcurrent

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.errors import IncompleteMessage, MessageRefused, ProtocolError, Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import ENDINGS

if TYPE_CHECKING:
    from tempfile import SpooledTemporaryFile

    from _typeshed import WriteableBuffer

    from greensmtp.protocol.content_checks import NormalNewlines
    from greensmtp.session.interfaces import Body, BodyCheck, MessageOwner, Writable
    from greensmtp.session.spool import SpoolPipe

#: The disk is full, the quota is used up, or the file is too large: all may pass.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def reply_to_failure(error: BaseException) -> Reply:
    """Return the reply for a failure to store a message: 452 if there is no room, else 451."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return canned.NO_STORAGE
    return canned.LOCAL_ERROR


class MessageStream:
    """One message body as a binary file, after the fields that ``add_header`` added.

    Dots are unstuffed and every line ends in CRLF (``bare_newlines``); otherwise it is byte for byte what the client
    sent. ``read``, ``readline`` and ``readinto`` work as for any file, so ``email.message_from_binary_file`` and
    ``shutil.copyfileobj`` accept it. Iteration gives chunks as they come, not lines.

    It can be read while ``message`` is handled, in the connection's greenlet. What handlers leave unread is drained.

    If the body will never be whole, reading raises an ``IncompleteMessage``: ``ConnectionLost``, ``TransactionReset``
    or ``MessageRefused`` (too large, bare newlines). ``received`` is not emitted then: undo what has been done.
    """

    # Class attributes are what most messages never set: one stream is made for every message.
    _pipes: tuple[Writable, ...] = ()
    #: Pipes that get the body without the added fields, which they write before it themselves.
    _deliveries: tuple[Writable, ...] = ()
    _spools: tuple[SpoolPipe, ...] = ()
    #: The added fields, each with its CRLF. Once a delivery has taken them, no more can be added.
    _fields = b""
    _fields_taken = False
    #: The fields to put before the first chunk; and what keeps that chunk from continuing the last of them.
    _head = b""
    _section: HeaderSection | None = None
    #: True once the body has begun to flow, or cannot flow any more.
    _begun = False
    _at_end: tuple[Callable[[], object], ...] = ()
    _rest = b""
    #: True while chunks can be read: it is open, and not complete, failed or closed.
    _flowing = False
    #: Bytes that the client has sent so far: dots unstuffed, newlines as they came, without added fields.
    size: int = 0
    #: True once the client may send: the ack was accepted.
    opened: bool = False
    #: True once all of the body has been read from the socket.
    complete: bool = False
    #: True once it has been closed, or its transaction is over: reading raises ValueError.
    closed: bool = False
    #: The reply instead of the one of ``received``, once the message has failed.
    failure: Reply | None = None
    #: The error that reading raises from now on, if it is more than an early end.
    error: IncompleteMessage | None = None

    def __init__(
        self,
        session: MessageOwner,
        body: Body,
        max_size: float,
        checks: tuple[BodyCheck, ...],
        newlines: NormalNewlines | None,
    ) -> None:
        """
        :param max_size: bytes that the client may send; ``inf``: any number.
        :param newlines: normalizes the body before it is checked.
        """
        self._session = session
        self._body = body
        self._max_size = max_size
        self._checks = checks
        self._newlines = newlines
        self._greenlet = getcurrent()

    # For handlers

    def pipe(self, writable: Writable, *, fields: bool = True) -> None:
        """Write the whole body to ``writable.write`` too, whether or not it is read. A message may have several pipes.

        An exception of ``write`` fails the message: 452 if the disk is full, else 451.

        :param fields: True: the added fields are written before the body. False is for a delivery that calls
            ``take_fields`` at its commit: it also gets fields that are added while the body flows, or later.
        :raises RuntimeError: the body has begun to flow.
        """
        self._check_not_begun("pipe")
        if fields:
            self._pipes = (*self._pipes, writable)
        else:
            self._deliveries = (*self._deliveries, writable)

    def spool(self, max_memory: int = 1024 * 1024) -> SpooledTemporaryFile[bytes]:
        """Return a file that the body is written to. At ``received`` it is complete, and at its beginning.

        It moves from memory to disk at ``max_memory`` bytes, which are written in the thread pool. The caller closes
        it.

        :raises RuntimeError: the body has begun to flow.
        """
        self._check_not_begun("spool")
        from greensmtp.session.spool import SpoolPipe  # tempfile is large, and not every server spools

        pipe = SpoolPipe(max_memory)
        self._spools = (*self._spools, pipe)
        self.pipe(pipe)
        return pipe.file

    def add_header(self, name: str, value: str) -> None:
        """Add a header field before the body, after those added already, for all readers, pipes and deliveries.

        Once the body has begun to flow, only deliveries can take it, up to their commit: a handler of ``received``
        that was connected before ``Maildir.store`` can still add its result. A long value is folded. A value that is
        not ASCII is encoded (RFC 2047), unless the message is SMTPUTF8.

        :param value: the text, unfolded.
        :raises ValueError: the name is not a field name, or the value has control characters (CR, LF). Return-Path is
            refused too: the final delivery writes it.
        :raises RuntimeError: it is too late: a reader or a delivery would miss the field.
        """
        from greensmtp.protocol.header_field import header_field  # few servers need it

        field = header_field(name, value, utf8=self._session.smtputf8)
        if name.lower() == "return-path":
            raise ValueError("Return-Path is written by the final delivery, from the reverse-path; use another name")
        if self._fields_taken or (self._begun and not self._deliveries):
            raise RuntimeError(
                "add_header() comes too late: what has read or stored the message would miss this field; call it in a "
                "handler of `message` before the body is read, or of `received` before a delivery stores it"
            )
        self._fields += field

    @property
    def fields(self) -> bytes:
        """The fields added so far, each with its CRLF."""
        return self._fields

    def take_fields(self) -> bytes:
        """Return the added fields, each with its CRLF, to a delivery that commits now. No more can be added then."""
        self._fields_taken = True
        return self._fields

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the transaction is over, however it ended, to clean up if ``received`` never came."""
        self._at_end = (*self._at_end, callback)

    def abort(self, code: int = 554, message: str | None = None) -> None:
        """Fail the message: the rest of it is thrown away, and the client gets this reply at its end.

        :raises ValueError: the code is not 4xx or 5xx.
        """
        if not 400 <= int(code) <= 599:
            raise ValueError(f"abort takes a 4xx or 5xx reply code, not {code!r}")
        self.fail(Reply(int(code), message if message is not None else "Message aborted"))

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end; all that is left if it is negative or None."""
        if size is None or size < 0:
            return b"".join(self)
        pieces = []
        while size > 0:
            piece = self.read1(size)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read1(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, and wait for one chunk at most."""
        chunk = self._rest or self._next_chunk()
        if size < 0 or len(chunk) <= size:
            self._rest = b""
            return chunk
        self._rest = chunk[size:]
        return chunk[:size]

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer; fewer bytes only at the end."""
        with memoryview(buffer) as view, view.cast("B") as target:
            data = self.read(len(target))
            target[: len(data)] = data
            return len(data)

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer from one chunk at most."""
        with memoryview(buffer) as view, view.cast("B") as target:
            data = self.read1(len(target))
            target[: len(data)] = data
            return len(data)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return one line with its end (LF, so usually CRLF), of ``size`` bytes at most."""
        limit = -1 if size is None else size
        pieces = []
        length = 0
        while limit < 0 or length < limit:
            chunk = self._rest or self._next_chunk()
            if not chunk:
                break
            end = chunk.find(b"\n") + 1
            take = end or len(chunk)
            if limit >= 0:
                take = min(take, limit - length)
            pieces.append(chunk[:take])
            length += take
            self._rest = chunk[take:]
            if take == end:
                break
        return b"".join(pieces)

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return False."""
        return False

    def seekable(self) -> bool:
        """Return False."""
        return False

    def isatty(self) -> bool:
        """Return False."""
        return False

    def flush(self) -> None:
        """Do nothing: the stream is read-only."""

    def close(self) -> None:
        """End reading. What still comes is drained, and flows to the pipes."""
        self.closed = True
        self._flowing = False
        self._rest = b""

    def __enter__(self) -> MessageStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> MessageStream:
        return self

    def __next__(self) -> bytes:
        chunk = self._rest or self._next_chunk()
        if chunk:
            self._rest = b""
            return chunk
        raise StopIteration

    # For the framework

    def open(self, reply: Reply) -> None:
        """Let the body flow; called within ``ack.accept()``, so that 354 is sent at once.

        In another greenlet than the connection's it does nothing: the dispatcher calls it again.
        """
        if not self.opened and getcurrent() is self._greenlet:
            self.opened = self._flowing = True
            self._body.open(reply)

    def fail(self, reply: Reply, error: IncompleteMessage | None = None) -> None:
        """Settle the reply; the first failure counts. Nothing flows to readers and pipes any more."""
        if self.failure is None:
            self.failure = reply
            self.error = error
        self._flowing = False
        self._pipes = self._deliveries = self._spools = ()
        self._rest = b""

    def drain(self) -> None:
        """Read what is left. Pipes get it, unless the message has failed.

        :raises IncompleteMessage: the client is gone, or has reset the transaction.
        """
        self._rest = b""
        while not self.complete:
            if self.failure is None:
                try:
                    self._take_chunk()
                except MessageRefused:
                    pass  # the reply is settled; keep draining
            else:
                self._skip_chunk()

    def end(self) -> None:
        """End the stream with its transaction, and call the ``at_end`` callbacks."""
        self.closed = self._begun = self._fields_taken = True
        self._flowing = False
        self._rest = b""
        for callback in self._at_end:
            try:
                callback()
            except ENDINGS:
                raise
            except BaseException:
                logger.exception("%s: %s raised at the end of a message", self._session.id, handler_name(callback))

    # Within

    def _next_chunk(self) -> bytes:
        if self._flowing and self._greenlet is getcurrent():
            return self._take_chunk()
        if self.closed:
            raise ValueError("this message stream is closed: its body can be read while `message` is handled")
        if self._greenlet is not getcurrent():
            raise RuntimeError(
                "a message stream can only be read in its connection's own greenlet; "
                "to read elsewhere, call pipe() or spool() before accepting"
            )
        if not self.opened:
            raise RuntimeError("accept the message's ack before reading: the client has not been told to send the body")
        if self.error is not None:
            raise self.error
        return b""

    def _take_chunk(self) -> bytes:
        """Return the next chunk; ``b""`` only at the end. The steps are those of the head comment."""
        body = self._body
        if not self._begun:
            self._begun = True
            if self._fields:
                self._head = self._fields
                self._section = HeaderSection()
        while True:
            try:
                chunk = body.read_chunk()
            except IncompleteMessage as error:
                self._fail_incomplete(error)
                raise
            complete = body.complete
            if complete:
                self.complete = True
                self._flowing = False
            self.size += len(chunk)
            if self.size > self._max_size:
                self._refuse(canned.TOO_LARGE)
            if self._newlines is not None:
                chunk = self._newlines.feed(chunk, complete)
            for check in self._checks:
                refusal = check(chunk, complete)
                if refusal is not None:
                    self._refuse(refusal)
            if self._deliveries:
                self._write_to(self._deliveries, chunk)
            if self._section is not None:
                chunk = self._head + self._section.feed(chunk, complete)
                self._head = b""
            if self._pipes:
                self._write_to(self._pipes, chunk)
            if chunk or complete:
                return chunk

    def _check_not_begun(self, method: str) -> None:
        if self._begun:
            raise RuntimeError(
                f"{method}() comes too late: the body has begun to flow; call it in a handler of `message`, before "
                "the body is read"
            )

    def _skip_chunk(self) -> None:
        try:
            self._body.read_chunk()
        except IncompleteMessage as error:
            self._fail_incomplete(error)
            raise
        self.complete = self._body.complete

    def _write_to(self, pipes: tuple[Writable, ...], chunk: bytes) -> None:
        try:
            if chunk:
                for pipe in pipes:
                    pipe.write(chunk)
            if self.complete and pipes is self._pipes:
                for spool in self._spools:
                    spool.finish()
        except BaseException as error:
            # The message has failed even if the reader catches this error, or it is a Timeout of the reader's own.
            reply = reply_to_failure(error)
            if isinstance(error, Reject):
                try:
                    reply = reply_of(error, "")
                except (ProtocolError, TypeError):
                    logger.exception("%s: a pipe of the message raised a Reject that is no reply", self._session.id)
            self.fail(reply, MessageRefused(reply.code, f"{reply.enhanced} {reply.text}"))
            raise

    def _fail_incomplete(self, error: IncompleteMessage) -> None:
        self.complete = True
        self.fail(canned.LOCAL_ERROR)
        self.error = error

    def _refuse(self, reply: Reply) -> None:
        error = MessageRefused(reply.code, f"{reply.enhanced} {reply.text}")
        self.fail(reply, error)
        raise error


# Registered, not inherited: io's classes have a finalizer that would close every stream once more.
io.BufferedIOBase.register(MessageStream)
