"""A delivery of your own: each message as a file of a folder, durable before the client gets 250.

    python examples/archive.py [port [folder]]

In a configuration: use = "archive:Archive" under [[deliveries]]. Port 0 is any free port.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import greensmtp
from greensmtp import SMTPServer, in_thread_pool
from greensmtp.delivery import Deliveries, Delivery, Envelope, SpooledTransfer
from greensmtp.protocol.address import Address


class Archive(Delivery):
    """Keeps each message in ``folder``, under its ID."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, envelope: Envelope) -> ArchiveFile:
        """Begin the file of a message."""
        return ArchiveFile(envelope, self.folder / f"{envelope.id}.eml")


class ArchiveFile(SpooledTransfer):
    """The file of one message."""

    def __init__(self, envelope: Envelope, path: Path) -> None:
        super().__init__(envelope)
        self.path, self.partial = path, path.with_suffix(".partial")

    def prepare(self) -> None:
        """Write the file under another name, and flush it to the disk."""
        in_thread_pool(self.write_file, self.open())

    def write_file(self, source: BinaryIO) -> None:
        """Copy the message; in a thread, since the disk may be slow."""
        self.partial.parent.mkdir(exist_ok=True)
        with self.partial.open("xb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())

    def commit(self, recipients: Sequence[Address]) -> None:
        """Give the file its name."""
        in_thread_pool(self.partial.rename, self.path)

    def discard(self) -> None:
        """Remove the file."""
        in_thread_pool(partial(self.partial.unlink, missing_ok=True))


def main(port: str = "9025", folder: str = "archive") -> None:
    """Serve until Ctrl-C or SIGTERM."""
    server = SMTPServer(("127.0.0.1", int(port)), hostname="localhost")
    Deliveries([Archive(Path(folder))]).attach(server)
    greensmtp.run(server, started=lambda server: print("listening on {}:{}".format(*server.address), flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
