"""Ways to read a message, each a function of the stream."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from typing import Any

from greensmtp import Ack, MessageStream, Session, SMTPServer

Reader = Callable[[MessageStream], Any]


def read_with(server: SMTPServer, reader: Reader) -> list[Any]:
    """Accept every message and read it; the list fills with what the reader returns or raises."""
    results: list[Any] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            results.append(reader(stream))
        except Exception as error:
            results.append(error)
            raise

    return results


def by_iterating(stream: MessageStream) -> bytes:
    return b"".join(stream)


def at_once(stream: MessageStream) -> bytes:
    return stream.read()


def in_sevens(stream: MessageStream) -> bytes:
    pieces = list(iter(lambda: stream.read(7), b""))
    assert all(len(piece) == 7 for piece in pieces[:-1])
    return b"".join(pieces)


def by_read1(stream: MessageStream) -> bytes:
    return b"".join(iter(lambda: stream.read1(5), b""))


def by_lines(stream: MessageStream) -> bytes:
    lines = list(iter(stream.readline, b""))
    assert all(line.count(b"\n") == 1 and line.endswith(b"\r\n") for line in lines)
    return b"".join(lines)


def by_short_lines(stream: MessageStream) -> bytes:
    lines = list(iter(lambda: stream.readline(4), b""))
    assert all(len(line) <= 4 for line in lines)
    return b"".join(lines)


def into_a_buffer(stream: MessageStream) -> bytes:
    whole, buffer = bytearray(), bytearray(6)
    while count := stream.readinto(buffer):
        whole += buffer[:count]
    return bytes(whole)


def by_copyfileobj(stream: MessageStream) -> bytes:
    target = io.BytesIO()
    shutil.copyfileobj(stream, target)
    return target.getvalue()


def by_all_of_these_in_turn(stream: MessageStream) -> bytes:
    return stream.read(3) + stream.readline() + stream.readline(2) + stream.read1(1) + next(stream) + stream.read()
