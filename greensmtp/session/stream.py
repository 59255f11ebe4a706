"""The message stream: a body as it arrives, straight off the socket, as a binary file."""

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

#: The disk, the quota, or the largest file: more room may come.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def reply_to_failure(error: BaseException) -> Reply:
    """Return what a failure to keep a message means to the client: 452 where there is no room, else 451."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return canned.NO_STORAGE
    return canned.LOCAL_ERROR


class MessageStream:
    """One message body: dots unstuffed, every line end CRLF (``bare_newlines``), else octet for octet what the client
    sent; before it come the fields that ``add_header`` has added.

    It is a binary file (``read``, ``readline``, ``readinto``; ``email.message_from_binary_file`` and
    ``shutil.copyfileobj`` take it), but iterating gives chunks as they come, not lines. Reading takes octets off the
    socket in the connection's own greenlet, so a slow reader slows the peer, and memory stays flat. What nobody
    reads is drained.

    Reading raises when the body will never be whole: ``ConnectionLost``, ``TransactionReset``, or
    ``MessageRefused`` (too large, bare newlines). ``received`` is not emitted then; undo what has been done.
    """

    # What most messages never need is an attribute of the class: one stream is made for every message.
    _pipes: tuple[Writable, ...] = ()
    #: Pipes that take the body alone, and put the added fields before it themselves.
    _deliveries: tuple[Writable, ...] = ()
    _spools: tuple[SpoolPipe, ...] = ()
    #: The added fields, as octets; a delivery has taken them, so that no more can be added.
    _fields = b""
    _fields_taken = False
    #: What is to go before the first octets that flow, and what sees to it that those do not continue it.
    _head = b""
    _section: HeaderSection | None = None
    #: The body has begun to flow, or cannot flow any more.
    _begun = False
    _at_end: tuple[Callable[[], object], ...] = ()
    _rest = b""
    #: Chunks can be had: it is open, and neither complete, nor failed, nor closed.
    _flowing = False
    #: Octets that the client has sent so far: dots unstuffed, newlines as they came, without added fields.
    size = 0
    #: The peer may send: the ack was accepted.
    opened = False
    #: All of the body has been read off the socket.
    complete = False
    #: Somebody has closed it, or its transaction is over: reading raises ValueError.
    closed = False
    #: The reply that will be given instead of ``received``'s, when the message has failed.
    failure: Reply | None = None
    #: What reading raises from now on, when that is more than an early end.
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
        :param max_size: octets that the client may send; ``inf``: any number.
        :param newlines: what normalizes the body before it is checked.
        """
        self._session = session
        self._body = body
        self._max_size = max_size
        self._checks = checks
        self._newlines = newlines
        self._greenlet = getcurrent()

    # What receivers do with it

    def pipe(self, writable: Writable, *, fields: bool = True) -> None:
        """Write everything that flows to ``writable.write`` too, whether or not it is read; several are allowed.

        What it raises is the message's failure: 452 where the disk is full, else 451.

        :param fields: whether the added fields are written as well, before the body. Give False for a delivery that
            calls ``take_fields`` at its commit, and so has those too that are added while the body flows or later.
        :raises RuntimeError: the body has begun to flow.
        """
        self._check_not_begun("pipe")
        if fields:
            self._pipes = (*self._pipes, writable)
        else:
            self._deliveries = (*self._deliveries, writable)

    def spool(self, max_memory: int = 1024 * 1024) -> SpooledTemporaryFile[bytes]:
        """Keep the body in a file that moves from memory to disk at ``max_memory`` octets; it is complete, and at
        its beginning, at ``received``. The caller closes it. The disk is written to in the thread pool.

        :raises RuntimeError: the body has begun to flow.
        """
        self._check_not_begun("spool")
        from greensmtp.session.spool import SpoolPipe  # it brings a good deal along, and not every server spools

        pipe = SpoolPipe(max_memory)
        self._spools = (*self._spools, pipe)
        self.pipe(pipe)
        return pipe.file

    def add_header(self, name: str, value: str) -> None:
        """Add a field before the body, behind those that have been added; every reader, pipe and delivery gets it.

        Once the body has begun to flow, only deliveries can take it, up to their commit; a handler of ``received``
        that stands before ``Maildir.store`` can still add what it has found out. A long value is folded; one that is
        not ASCII is encoded (RFC 2047), unless the message is SMTPUTF8.

        :param value: the text, unfolded.
        :raises ValueError: the name is not that of a field, or the value has control characters (CR, LF). Nor can
            Return-Path be added, which the final delivery writes.
        :raises RuntimeError: it is too late: a reader or a delivery would miss it.
        """
        from greensmtp.protocol.header_field import header_field  # few messages need it

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
        """The fields that have been added so far, each with its CRLF."""
        return self._fields

    def take_fields(self) -> bytes:
        """Return the added fields, each with its CRLF, for a delivery that commits now; no more can be added then."""
        self._fields_taken = True
        return self._fields

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call this when the transaction is over, however it went: the place to clean up what ``received`` did not
        get to."""
        self._at_end = (*self._at_end, callback)

    def abort(self, code: int = 554, message: str | None = None) -> None:
        """Read no more: what still comes is drained and goes nowhere, and this is the reply to it.

        :raises ValueError: not a 4xx or 5xx code.
        """
        if not 400 <= int(code) <= 599:
            raise ValueError(f"abort takes a 4xx or 5xx reply code, not {code!r}")
        self.fail(Reply(int(code), message if message is not None else "Message aborted"))

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` octets, fewer only at the end; all that is left when negative or None."""
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
        """Up to ``size`` octets, waiting for one chunk at most."""
        chunk = self._rest or self._next_chunk()
        if size < 0 or len(chunk) <= size:
            self._rest = b""
            return chunk
        self._rest = chunk[size:]
        return chunk[:size]

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer; fewer octets only at the end."""
        with memoryview(buffer) as view, view.cast("B") as octets:
            data = self.read(len(octets))
            octets[: len(data)] = data
            return len(data)

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer from one chunk at most."""
        with memoryview(buffer) as view, view.cast("B") as octets:
            data = self.read1(len(octets))
            octets[: len(data)] = data
            return len(data)

    def readline(self, size: int | None = -1, /) -> bytes:
        """One line with its end (LF, so usually CRLF), no longer than ``size``."""
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
        """True."""
        return True

    def writable(self) -> bool:
        """False."""
        return False

    def seekable(self) -> bool:
        """False."""
        return False

    def isatty(self) -> bool:
        """False."""
        return False

    def flush(self) -> None:
        """Nothing: it is read from."""

    def close(self) -> None:
        """No more reading; what still comes is drained, and flows to the pipes."""
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

    # What the framework does with it

    def open(self, reply: Reply) -> None:
        """The body may flow; within ``ack.accept()``, so that 354 goes out at once where that can be."""
        if not self.opened and getcurrent() is self._greenlet:
            self.opened = self._flowing = True
            self._body.open(reply)

    def fail(self, reply: Reply, error: IncompleteMessage | None = None) -> None:
        """This will be the reply; the first failure counts. Nothing flows to anybody any more."""
        if self.failure is None:
            self.failure = reply
            self.error = error
        self._flowing = False
        self._pipes = self._deliveries = self._spools = ()
        self._rest = b""

    def drain(self) -> None:
        """Read what is left; pipes still get it, unless the message has failed.

        :raises IncompleteMessage: the peer is gone, or has given the transaction up.
        """
        self._rest = b""
        while not self.complete:
            if self.failure is None:
                try:
                    self._take_chunk()
                except MessageRefused:
                    pass  # the reply is settled; drain on
            else:
                self._skip_chunk()

    def end(self) -> None:
        """The transaction is over."""
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
                "a message stream is read in its connection's own greenlet; "
                "for another one, give pipe() or spool() something to fill before accepting"
            )
        if not self.opened:
            raise RuntimeError("accept the message's ack before reading: the peer has not been asked for the body yet")
        if self.error is not None:
            raise self.error
        return b""

    def _take_chunk(self) -> bytes:
        """Read, normalize, check, and hand to the pipes."""
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
                self._lose(error)
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
                self._hand_on(self._deliveries, chunk)
            if self._section is not None:
                chunk = self._head + self._section.feed(chunk, complete)
                self._head = b""
            if self._pipes:
                self._hand_on(self._pipes, chunk)
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
            self._lose(error)
            raise
        self.complete = self._body.complete

    def _hand_on(self, pipes: tuple[Writable, ...], chunk: bytes) -> None:
        try:
            if chunk:
                for pipe in pipes:
                    pipe.write(chunk)
            if self.complete and pipes is self._pipes:
                for spool in self._spools:
                    spool.finish()
        except BaseException as error:
            # The reader may swallow this, its own Timeout too; the message has failed all the same.
            reply = reply_to_failure(error)
            if isinstance(error, Reject):
                try:
                    reply = reply_of(error, "")
                except (ProtocolError, TypeError):
                    logger.exception("%s: a pipe of the message raised what is no reply", self._session.id)
            self.fail(reply, MessageRefused(reply.code, f"{reply.enhanced} {reply.text}"))
            raise

    def _lose(self, error: IncompleteMessage) -> None:
        self.complete = True
        self.fail(canned.LOCAL_ERROR)
        self.error = error

    def _refuse(self, reply: Reply) -> None:
        error = MessageRefused(reply.code, f"{reply.enhanced} {reply.text}")
        self.fail(reply, error)
        raise error


# It is one in all that counts; inheriting would have it close itself when it is freed, for every message.
io.BufferedIOBase.register(MessageStream)
