"""A binary file over chunks: ``read``, ``readline`` and the like, for any source that yields a body in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from _typeshed import WriteableBuffer

from greensmtp._compiled import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class ChunkReader:
    """A read-only binary file, whose bytes come from ``_next_chunk``. Not seekable."""

    __slots__ = ("_rest",)

    #: What is left of the last chunk.
    _rest: bytes

    def _next_chunk(self) -> bytes:
        """Return the next chunk; ``b""`` only at the end."""
        raise NotImplementedError

    def close(self) -> None:
        """End reading."""
        raise NotImplementedError

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """Return the next chunk, not the next line."""
        raise NotImplementedError
