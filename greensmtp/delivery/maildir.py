"""Delivery into a Maildir: the client gets 250 when the whole message is on the disk and survives a crash."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from greensmtp.delivery._maildir_file import MaildirFile, flush_folder
from greensmtp.protocol.address import Address
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream
from greensmtp.thread_pool import BoundedPool

if TYPE_CHECKING:
    from greensmtp.session import ServerInfo

#: How many of gevent's ten threads one Maildir may use at the same time.
_THREADS = 8


class Maildir:
    """A Maildir that stores every message: ``Maildir("maildir").attach(server)``.

    Return-Path, Envelope-To, Received, and the fields of ``stream.add_header`` are written before the message. A
    Return-Path in the message is left out: only the final delivery writes one (RFC 5321 section 4.4).

    The file is written in ``tmp/`` and flushed to the disk. When all handlers and middleware have answered, it is moved
    to ``new/``, and the folder is flushed. Then the reply is ``250 2.0.0 Ok: queued as ID``; the ID is in the Received
    field and in the file's name. All this is done in the thread pool: the file of a small message is written in one
    step, that of a large one piece by piece while it arrives.

    A message that fails leaves no file. The reply is 452 when the disk is full, 451 for any other failure. A refusal, a
    timeout or a kill before the move abandons the message; from the move on, the client gets 250.

    The Maildir respects the decisions of other handlers. A message that one of them has refused is not stored. A
    message that they have accepted is stored, with their reply.

    :param path: the folder. It is made, with ``tmp``, ``new`` and ``cur``, if it does not exist.
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
            flush_folder(self.path)
            if is_new:
                flush_folder(self.path.parent)
        except OSError as error:
            raise ValueError(f"maildir: cannot make {str(self.path)!r}: {error.strerror}") from error
        for name in ("tmp", "new"):
            if not os.access(self.path / name, os.W_OK | os.X_OK):
                raise ValueError(f"maildir: cannot write to {str(self.path / name)!r}")
        # Bounded, so that a disk that does not answer leaves threads for others.
        self._pool = BoundedPool(_THREADS)

    def attach(self, server: ServerInfo) -> None:
        """Store the mail of this server.

        To order them among other handlers, connect the three methods yourself: ``tap`` before the handlers that read
        the body, ``accept`` and ``store`` after those that may refuse the message.
        """
        server.signals.on("message", self.tap)
        server.signals.on("message", self.accept)
        server.signals.on("received", self.store)

    def tap(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Write the body to the Maildir as it arrives; a handler of ``message``.

        :raises RuntimeError: a part of the body has been read already.
        """
        file = MaildirFile(self.path, self._pool, session, stream)
        try:
            stream.pipe(file, fields=False)
        except RuntimeError:
            raise RuntimeError("connect Maildir.tap before the handlers that read the body") from None
        session.notes[self] = file
        stream.at_end(partial(self._end, session, file))

    def accept(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Accept, unless another handler has decided; a handler of ``message``."""
        if not ack.decided:
            ack.accept()

    def store(self, session: Session, ack: Ack, recipient: Address | None = None) -> None:
        """Store the message, unless another handler has refused it; a handler of ``received``.

        The file is complete and on the disk when this returns. It is moved to its place when the whole stack has
        answered, and only if the client gets 250. In LMTP one file is stored for all recipients, at the first one
        that is not refused.

        :raises Reject: the message cannot be stored.
        """
        if ack.decided and not ack.accepted:
            return
        file: MaildirFile = session.notes[self]
        file.complete()
        session.stage(file.store)
        if not ack.decided:
            ack.accept(250, f"2.0.0 Ok: queued as {file.queue_id}")

    def _end(self, session: Session, file: MaildirFile) -> None:
        session.notes.pop(self, None)
        file.discard()
