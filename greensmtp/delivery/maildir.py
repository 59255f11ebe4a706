"""Delivery into Maildirs: the client gets 250 when the whole message is on the disk and survives a crash."""

from __future__ import annotations

import logging
import os
import re
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gevent.monkey import get_original

from greensmtp import health
from greensmtp.delivery import trace
from greensmtp.delivery._disk import DiskThread, flush_folder
from greensmtp.delivery._mailbox_path import fixed_part, mailbox, read_template
from greensmtp.delivery._maildir_file import MaildirFile
from greensmtp.delivery.contract import Delivery, Envelope
from greensmtp.delivery.runner import Deliveries, Server
from greensmtp.errors import ArgumentError
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session
from greensmtp.thread_pool import BoundedPool, in_thread_pool

logger = logging.getLogger("greensmtp")

#: Maximum number of gevent's ten threads that one delivery uses at the same time, for large messages.
_THREADS = 8

#: Seconds after which an unfinished file in ``tmp`` belongs to a dead process: 36 hours, the Maildir convention.
_STALE = 36 * 3600

#: The names of our own files: the time, ``session.transaction_id``, perhaps a number, the host.
_OURS = re.compile(r"\d+\.[0-9a-f]+-[0-9a-f]{6}-[0-9a-f]+(?:_\d+)?\.[^/]+")

#: Maximum number of Maildirs that are remembered as existing.
_REMEMBERED = 100_000

_SUBFOLDERS = ("tmp", "new", "cur")

_NO_SUCH_MAILBOX = Reply(550, "5.1.1 No such mailbox here")


class Maildir(Delivery):
    """A Maildir for all messages, or one for each recipient: ``Maildir("mail/{domain}/{local}").attach(server)``.

    Return-Path, Received, and the fields of ``stream.add_header`` are written before the message. So is Envelope-To,
    unless it would disclose the recipients of several Maildirs to one another. A Return-Path in the message is
    removed: only the final delivery writes one (RFC 5321 section 4.4).

    The file is written in ``tmp/`` and flushed to the disk. When all handlers and middleware have accepted, it is moved
    to ``new/``, and the folder is flushed. Then the reply is ``250 2.0.0 Ok: queued as ID``; the ID is in the Received
    field and in the file's name. One thread does this for all waiting messages together. A message of more than
    256 KiB is written by the thread pool, piece by piece while it arrives.

    A message that fails leaves no file. The reply is 452 when the disk is full, 451 for any other failure. A refusal, a
    timeout or a kill before the move abandons the message; from the move on, the client gets 250.

    :param path: the folder, or for each recipient ``{local}``, ``{domain}`` or ``{address}`` in it. It is created,
        with ``tmp``, ``new`` and ``cur``, if it does not exist.
    :param create: create missing Maildirs of recipients; False: a recipient without one is refused with 550.
    :param subaddress: the separator that ends the mailbox's name: with ``"+"``, ``jo+news`` is delivered to ``jo``.
    :param sync: how several messages are flushed together: ``"filesystem"`` as a whole, which is much faster; or
        ``"files"``, each separately, if other programs write a lot to the same file system.
    :raises ValueError: the folder cannot be created or written to, or an argument is invalid.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = True,
        subaddress: str | None = None,
        sync: Literal["filesystem", "files"] = "filesystem",
    ) -> None:
        if not str(path):
            raise ValueError("maildir: the path is empty; pass the folder's name ('.' for the current one)")
        if sync not in ("filesystem", "files"):
            raise ArgumentError("sync", f"expected 'filesystem' or 'files'; got {sync!r}")
        self.per_recipient = read_template(str(path))
        if not self.per_recipient and (not create or subaddress is not None):
            raise ArgumentError("path", "expected {local} or {address} in it: create and subaddress are about them")
        self.path = Path(path).absolute()
        self._create = create
        self._subaddress = subaddress or ""
        #: The Maildirs that are known to be complete, with the device of their file system.
        self._made: dict[Path, int] = {}
        self._fixed = Path(fixed_part(str(path))).absolute()
        try:
            _make_folder(self._fixed) if self.per_recipient else self.make(self.path)
        except OSError as error:
            raise ValueError(f"maildir: cannot make {str(self._fixed)!r}: {error.strerror}") from error
        for folder in (self._fixed,) if self.per_recipient else (self.path / "tmp", self.path / "new"):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ValueError(f"maildir: cannot write to {str(folder)!r}")
        health.add_store(self._fixed)
        weakref.finalize(self, health.remove_store, self._fixed).atexit = False
        # Bounded, so that a disk that does not answer leaves threads for others.
        self.pool = BoundedPool(_THREADS)
        self.disk = DiskThread(whole=sync == "filesystem")
        if not create:
            vars(self)["rcpt"] = self._check_mailbox  # set only if needed, so that RCPT costs nothing otherwise
        get_original("_thread", "start_new_thread")(self.sweep, ())

    @staticmethod
    def fixed_part(path: str | Path) -> str:
        """Return the folder that contains all Maildirs of such a path.

        :raises ValueError: a placeholder is unknown.
        """
        return fixed_part(str(path))

    def attach(self, server: Server) -> None:
        """Store the mail of this server: ``Deliveries([self]).attach(server)``."""
        Deliveries([self]).attach(server)

    def begin(self, envelope: Envelope) -> MaildirFile:
        """Begin the file of a message."""
        return MaildirFile(self, envelope)

    def _check_mailbox(self, session: Session, recipient: Address) -> Reply | None:
        """Refuse a recipient that has no Maildir; ``create=False``."""
        (folder,) = self.folders(session, (recipient,))
        if folder in self._made or in_thread_pool((folder / "new").is_dir):
            return None
        return _NO_SUCH_MAILBOX

    # For its files

    def folders(self, session: Session, recipients: Iterable[Address]) -> Sequence[Path]:
        """Return the Maildirs of these recipients, each once."""
        if not self.per_recipient:
            return (self.path,)
        template, hostname = str(self.path), session.server.hostname
        return tuple(
            dict.fromkeys(
                mailbox(template, each, hostname=hostname, subaddress=self._subaddress) for each in recipients
            )
        )

    def envelope_to(self, recipients: Sequence[Address]) -> bytes:
        """Return the Envelope-To field; nothing if it would disclose recipients of several Maildirs to one another."""
        return b"" if self.per_recipient and len(recipients) > 1 else trace.envelope_to(recipients)

    def make(self, folder: Path) -> int:
        """Make a Maildir if it does not exist; return the device of its file system. Called in a native thread.

        :raises OSError: it cannot be made.
        """
        device = self._made.get(folder)
        if device is None:
            if self._create or not self.per_recipient:
                _make_folder(folder)
                for name in _SUBFOLDERS:
                    (folder / name).mkdir(exist_ok=True, mode=0o700)
                flush_folder(folder)
            device = folder.stat().st_dev
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            self._made[folder] = device
        return device

    def forget(self, folder: Path) -> None:
        """Forget that a Maildir exists, so that the next message creates it again (if each recipient has its own)."""
        if self.per_recipient:
            self._made.pop(folder, None)

    def sweep(self, now: float | None = None) -> None:
        """Remove our own files in ``tmp`` that are older than 36 hours. Called in a native thread."""
        before = (time.time() if now is None else now) - _STALE
        try:
            for folder in self._all_tmp():
                for entry in os.scandir(folder):
                    if _OURS.fullmatch(entry.name):
                        _remove_if_older(entry, before)
        except OSError as error:
            logger.warning("maildir: cannot remove unfinished files: %s", error)

    def _all_tmp(self) -> Iterator[Path]:
        if not self.per_recipient:
            yield self.path / "tmp"
            return
        depth = len(self.path.parts) - len(self._fixed.parts)
        yield from (each / "tmp" for each in self._fixed.glob("/".join(["*"] * depth)) if (each / "tmp").is_dir())


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, and flush the folder that has the new entry."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for each in missing:
        flush_folder(each.parent)


def _remove_if_older(entry: os.DirEntry[str], before: float) -> None:
    try:
        if entry.stat(follow_symlinks=False).st_mtime < before:
            os.unlink(entry.path)  # noqa: PTH108 - as it came
            logger.info("maildir: removed %r, an unfinished file of a dead process", entry.path)
    except FileNotFoundError:
        pass  # another process has removed or moved it
