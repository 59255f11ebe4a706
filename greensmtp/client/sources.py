"""Where the octets of a message come from: binary files of all kinds, read without blocking the hub."""

from __future__ import annotations

import io
import tempfile
from typing import Any, BinaryIO, Protocol

from gevent import sleep
from greenlet import error as GreenletError

from greensmtp.thread_pool import in_thread_pool

#: Octets of a file that are read at once.
READ_BYTES = 256 * 1024

#: Seconds: longer than no time, for which gevent would not look at sockets and timers.
_MOMENT = 1e-6

#: Objects that are looked at to find out what a file stands on.
_MAX_LAYERS = 64


class Readable(Protocol):
    """A binary file, as far as we need one."""

    def read(self, size: int = ..., /) -> bytes: ...


class Source:
    """A file, and where to read it: gevent's own files and those in memory in this greenlet, others in the thread pool.

    :raises TypeError: it is no binary file; the text says what to do.
    """

    __slots__ = ("_in_memory", "_in_pool", "file")

    def __init__(self, file: Any) -> None:
        check(file)
        self.file = file
        self._in_memory = isinstance(file, (io.BytesIO, tempfile.SpooledTemporaryFile))
        self._in_pool = not self._in_memory and hasattr(file, "fileno") and not _is_gevents(file)

    def read(self) -> bytes:
        """Return the next piece; ``b""`` at the end.

        :raises TypeError: what it gives is not bytes.
        """
        piece: Any
        if self._in_pool:
            try:
                piece = in_thread_pool(self.file.read, READ_BYTES)
            except GreenletError as error:
                raise TypeError(
                    f"{type(self.file).__name__} waits for gevent and cannot be read in a thread: pass the gevent file "
                    "below it, or the bytes"
                ) from error
        else:
            piece = self.file.read(READ_BYTES)
            if self._in_memory and len(piece) == READ_BYTES:
                sleep(_MOMENT)  # a large one has many pieces, and other greenlets have work too
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            # None, which a non-blocking file gives, would pass for its end, and half the message for all of it.
            what = "open it with 'rb'" if isinstance(piece, str) else f"its read() gave {type(piece).__name__}"
            raise TypeError(f"a message is read from a binary file: {what}")
        return piece if isinstance(piece, bytes) else bytes(piece)


def check(file: Any) -> None:
    """
    :raises TypeError: this is no binary file.
    """
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"a message is read from a binary file, not {type(file).__name__}: open it with 'rb'")
    if hasattr(file, "recv"):
        raise TypeError(f"a message is read from a file, not {type(file).__name__}: pass makefile('rb')")
    if not hasattr(file, "read"):
        raise TypeError(f"expected an EmailMessage, bytes or a binary file, got {type(file).__name__}")


def rewindable(source: Source, seen: bytes) -> BinaryIO:
    """Return the file, behind what has been read; or a copy of all of it, where it cannot go back."""
    file = source.file
    try:
        if file.seekable():
            file.tell()
            return file  # type: ignore[no-any-return]
    except (AttributeError, OSError):
        pass
    copy: Any = in_thread_pool(tempfile.TemporaryFile)
    try:
        in_thread_pool(copy.write, seen)
        while piece := source.read():
            in_thread_pool(copy.write, piece)
        in_thread_pool(copy.seek, len(seen))
    except BaseException:
        copy.close()
        raise
    return copy  # type: ignore[no-any-return]


def _is_gevents(file: Any) -> bool:
    """True if this file, or one below it, is gevent's or a MessageStream: another thread cannot wait for it."""
    layers = [file]
    for layer in layers:
        if any(kind.__module__.partition(".")[0] in ("gevent", "greensmtp") for kind in type(layer).__mro__):
            return True
        if len(layers) > _MAX_LAYERS or isinstance(layer, (str, bytes, bytearray, int, float, type)):
            continue
        below: list[Any] = []
        for name in ("raw", "buffer", "_sock"):
            try:
                below.append(getattr(layer, name, None))
            except ValueError:  # a buffer whose file was taken away
                pass
        attributes = getattr(layer, "__dict__", None)
        if isinstance(attributes, dict):
            below += attributes.values()
        layers += [each for each in below if each is not None and not any(each is known for known in layers)]
    return False
