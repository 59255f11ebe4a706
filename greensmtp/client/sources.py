"""Read messages from binary files of all kinds, without blocking the hub."""

from __future__ import annotations

import io
import tempfile
from typing import Any, BinaryIO, Protocol

from gevent import sleep
from greenlet import error as GreenletError

from greensmtp.thread_pool import in_thread_pool

#: Bytes of a file that are read at once.
READ_BYTES = 256 * 1024

#: Seconds to sleep. With 0, gevent would run other greenlets, but would not look at sockets and timers.
_MOMENT = 1e-6

#: Maximum number of nested objects that are searched for the underlying file.
_MAX_LAYERS = 64


class Readable(Protocol):
    """A binary file; only ``read`` is needed."""

    def read(self, size: int = ..., /) -> bytes: ...


class Source:
    """Read a file: gevent's own files and those in memory in this greenlet, others in the thread pool.

    :raises TypeError: it is not a binary file.
    """

    __slots__ = ("_in_memory", "_in_pool", "file")

    def __init__(self, file: Any) -> None:
        check(file)
        self.file = file
        self._in_memory = isinstance(file, (io.BytesIO, tempfile.SpooledTemporaryFile))
        self._in_pool = not self._in_memory and hasattr(file, "fileno") and not _needs_hub(file)

    def read(self) -> bytes:
        """Return the next piece; ``b""`` at the end.

        :raises TypeError: the file returns something else than bytes.
        """
        piece: Any
        if self._in_pool:
            try:
                piece = in_thread_pool(self.file.read, READ_BYTES)
            except GreenletError as error:
                raise TypeError(
                    f"{type(self.file).__name__} needs gevent's hub and cannot be read in a thread: pass the gevent "
                    "file inside it, or the bytes"
                ) from error
        else:
            piece = self.file.read(READ_BYTES)
            if self._in_memory and len(piece) == READ_BYTES:
                sleep(_MOMENT)  # let other greenlets run between the pieces
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            # A non-blocking file returns None, which must not be taken for its end.
            what = (
                "got text: open it with 'rb'"
                if isinstance(piece, str)
                else f"its read() returned {type(piece).__name__}"
            )
            raise TypeError(f"expected a binary file; {what}")
        return piece if isinstance(piece, bytes) else bytes(piece)


def check(file: Any) -> None:
    """Check that this is a binary file.

    :raises TypeError: it is not.
    """
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"expected a binary file; got {type(file).__name__}: open it with 'rb'")
    if hasattr(file, "recv"):
        raise TypeError(f"expected a binary file; got {type(file).__name__}: pass makefile('rb')")
    if not hasattr(file, "read"):
        raise TypeError(f"expected an EmailMessage, bytes or a binary file; got {type(file).__name__}")


def rewindable(source: Source, seen: bytes) -> BinaryIO:
    """Return the file, positioned after what has been read; or a temporary copy, if the file cannot seek.

    :param seen: the bytes that have already been read.
    """
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


def _needs_hub(file: Any) -> bool:
    """True if this file, or one inside it, is gevent's or a MessageStream: another thread cannot wait for it."""
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
            except ValueError:  # a buffer whose file was detached
                pass
        attributes = getattr(layer, "__dict__", None)
        if isinstance(attributes, dict):
            below += attributes.values()
        layers += [each for each in below if each is not None and not any(each is known for known in layers)]
    return False
