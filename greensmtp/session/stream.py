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

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent import getcurrent

from greensmtp._callables import handler_name
from greensmtp._compiled import mypyc_attr, weakly_referable
from greensmtp._log import logger
from greensmtp.errors import IncompleteMessage, MessageRefused, ProtocolError
from greensmtp.protocol import canned
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack_state import ENDINGS
from greensmtp.session.body_pipes import BodyPipes

if TYPE_CHECKING:
    from greensmtp.protocol.content_checks import NormalNewlines
    from greensmtp.session.interfaces import Body, BodyCheck, MessageOwner


@mypyc_attr(allow_interpreted_subclasses=True)
class MessageStream(BodyPipes):
    """One message body as a binary file, after the fields that ``add_header`` added.

    Dots are unstuffed and every line ends in CRLF (``bare_newlines``); otherwise it is byte for byte what the client
    sent. ``read``, ``readline`` and ``readinto`` work as for any file, so ``email.message_from_binary_file`` and
    ``shutil.copyfileobj`` accept it. Iteration gives chunks as they come, not lines.

    It can be read while ``message`` is handled, in the connection's greenlet. What handlers leave unread is drained.

    If the body will never be whole, reading raises an ``IncompleteMessage``: ``ConnectionLost``, ``TransactionReset``
    or ``MessageRefused`` (too large, bare newlines). ``received`` is not emitted then: undo what has been done.
    """

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
        self._pipes = self._deliveries = self._spools = ()
        self._fields = self._rest = b""
        self._fields_taken = self._begun = self.complete = False
        #: The fields to put before the first chunk; and what keeps that chunk from continuing the last of them.
        self._head = b""
        self._section: HeaderSection | None = None
        self._body = body
        self._max_size = max_size
        self._checks = checks
        self._newlines = newlines
        self._greenlet = getcurrent()
        self._at_end: tuple[Callable[[], object], ...] = ()
        #: True while chunks can be read: it is open, and not complete, failed or closed.
        self._flowing = False
        #: The replies that the client got to the message: one, in LMTP one for each recipient.
        self.replies: list[Reply] = []
        #: Bytes that the client has sent so far: dots unstuffed, newlines as they came, without added fields.
        self.size = 0
        #: True once the client may send: the ack was accepted.
        self.opened = False
        #: True once it has been closed, or its transaction is over: reading raises ValueError.
        self.closed = False
        #: The reply instead of the one of ``received``, once the message has failed.
        self.failure: Reply | None = None
        #: The error that reading raises from now on, if it is more than an early end.
        self.error: IncompleteMessage | None = None

    # For handlers

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the transaction is over, however it ended, to clean up if ``received`` never came."""
        self._at_end = (*self._at_end, callback)

    def abort(self, code: int = 554, message: str | None = None) -> None:
        """Fail the message: the rest of it is thrown away, and the client gets this reply at its end.

        :raises ValueError: the code is not 4xx or 5xx, or the enhanced status code is of another class.
        """
        if not 400 <= int(code) <= 599:
            raise ValueError(f"abort takes a 4xx or 5xx reply code, not {code!r}")
        try:
            reply = Reply(int(code), message if message is not None else "Message aborted")
        except ProtocolError as error:
            raise ValueError(str(error)) from None
        self.fail(reply)

    def close(self) -> None:
        """End reading. What still comes is drained, and flows to the pipes."""
        self.closed = True
        self._flowing = False
        self._rest = b""

    def __next__(self) -> bytes:
        if self._rest:
            chunk, self._rest = self._rest, b""
            return chunk
        # As in _next_chunk, whose call is saved for the usual body and its usual end:
        ours = self._greenlet is getcurrent()
        if ours and self.complete and not self.closed and self.error is None:
            raise StopIteration
        chunk = self._take_chunk() if ours and self._flowing else self._next_chunk()
        if chunk:
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
                logger.exception("%s: %s raised at the end of a message", self._session.log_id, handler_name(callback))

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

    def _skip_chunk(self) -> None:
        try:
            self._body.read_chunk()
        except IncompleteMessage as error:
            self._fail_incomplete(error)
            raise
        self.complete = self._body.complete

    def _fail_incomplete(self, error: IncompleteMessage) -> None:
        self.complete = True
        self.fail(canned.LOCAL_ERROR)
        self.error = error

    def _refuse(self, reply: Reply) -> None:
        error = MessageRefused(reply.code, f"{reply.enhanced} {reply.text}")
        self.fail(reply, error)
        raise error


#: The class of the streams that handlers get.
ServedStream = weakly_referable(MessageStream)

# Registered, not inherited: io's classes have a finalizer that would close every stream once more.
io.BufferedIOBase.register(MessageStream)
