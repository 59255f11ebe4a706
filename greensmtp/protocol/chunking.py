"""The bytes of a body that comes in BDAT chunks (RFC 3030 section 2): counted, never looked at.

A chunk has as many bytes as its command says, and any bytes: no line end and no dot means anything. So the only state
is how many bytes of the current chunk are ``left``, and whether it is the ``last`` one.
"""

from __future__ import annotations


class ChunkDecoder:
    """Tells the bytes of a body's chunks from the commands between them, whatever the pieces in which they come."""

    __slots__ = ("complete", "last", "left", "rest")

    def __init__(self) -> None:
        #: Bytes of the current chunk that have not come.
        self.left = 0
        #: The current chunk is the last one.
        self.last = False
        #: All bytes of the last chunk have come.
        self.complete = False
        #: What came behind the current chunk: commands.
        self.rest = b""

    @property
    def needs_command(self) -> bool:
        """True if a chunk has ended and another BDAT command is to come."""
        return not self.left and not self.last

    def begin(self, size: int, last: bool) -> None:
        """Begin a chunk.

        :param size: its bytes, as BDAT announces them.
        :param last: it ends the body; an empty last chunk must be fed ``b""``, as nothing else follows.
        """
        self.left = size
        self.last = last

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes from the client; return those of the body, and leave the others in ``rest``."""
        if len(data) > self.left:
            self.rest = data[self.left :]
            data = data[: self.left]
        self.left -= len(data)
        if self.last and not self.left:
            self.complete = True
        return data
