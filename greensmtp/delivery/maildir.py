"""Delivery into a Maildir: the client gets 250 when the whole message is on the disk and survives a crash."""

from __future__ import annotations

import os
from pathlib import Path

from greensmtp.delivery._maildir_file import MaildirFile, flush_folder
from greensmtp.delivery.contract import Delivery, Envelope
from greensmtp.delivery.runner import Deliveries, Server
from greensmtp.thread_pool import BoundedPool

#: How many of gevent's ten threads one Maildir may use at the same time.
_THREADS = 8


class Maildir(Delivery):
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

    @staticmethod
    def fixed_part(path: str | Path) -> str:
        """Return the folder that all of its Maildirs are in: the path up to the first part with a placeholder."""
        return str(path)

    def attach(self, server: Server) -> None:
        """Store the mail of this server: ``Deliveries([self]).attach(server)``."""
        Deliveries([self]).attach(server)

    def begin(self, envelope: Envelope) -> MaildirFile:
        """Begin the file of a message."""
        return MaildirFile(self.path, self._pool, envelope)
