"""Pipes, deliveries and spools that get a copy of a message body, and the header fields that are added to it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from greensmtp._compiled import mypyc_attr
from greensmtp._log import logger
from greensmtp.errors import IncompleteMessage, MessageRefused, ProtocolError, Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply
from greensmtp.session.chunk_reader import ChunkReader

if TYPE_CHECKING:
    from tempfile import SpooledTemporaryFile

    from greensmtp.session.interfaces import MessageOwner, Writable
    from greensmtp.session.spool import SpoolPipe

#: The disk is full, the quota is used up, or the file is too large: all may pass.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def reply_to_failure(error: BaseException) -> Reply:
    """Return the reply for a failure to store a message: 452 if there is no room, else 451."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return canned.NO_STORAGE
    return canned.LOCAL_ERROR


@mypyc_attr(allow_interpreted_subclasses=True)
class BodyPipes(ChunkReader):
    """The part of a message stream that copies the body to others."""

    # Set by MessageStream: another call of __init__ for each message would cost as much as all of these.
    _session: MessageOwner
    _pipes: tuple[Writable, ...]
    #: Pipes that get the body without the added fields, which they write before it themselves.
    _deliveries: tuple[Writable, ...]
    _spools: tuple[SpoolPipe, ...]
    #: The added fields, each with its CRLF. Once a delivery has taken them, no more can be added.
    _fields: bytes
    _fields_taken: bool
    #: True once the body has begun to flow, or cannot flow any more.
    _begun: bool
    #: True once all of the body has been read from the socket.
    complete: bool

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
        that was connected before a delivery's can still add its result. A long value is folded. A value that is
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

    # Within

    def fail(self, reply: Reply, error: IncompleteMessage | None = None) -> None:
        """Settle the reply to the message, which has failed."""
        raise NotImplementedError

    def _check_not_begun(self, method: str) -> None:
        if self._begun:
            raise RuntimeError(
                f"{method}() comes too late: the body has begun to flow; call it in a handler of `message`, before "
                "the body is read"
            )

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
                    logger.exception("%s: a pipe of the message raised a Reject that is no reply", self._session.log_id)
            self.fail(reply, MessageRefused(reply.code, f"{reply.enhanced} {reply.text}"))
            raise
