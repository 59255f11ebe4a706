"""The bytes of BDAT chunks: told from the commands between them at every cut, whatever they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol.chunking import ChunkDecoder

EveryCut = Callable[[bytes], Iterator[list[bytes]]]


def decode(chunks: list[tuple[int, bool]], pieces: Iterable[bytes]) -> tuple[bytes, bytes, bool]:
    """Decode a body whose commands are known; return it, what is behind it, and whether it is complete."""
    decoder = ChunkDecoder()
    announced = iter(chunks)
    decoder.begin(*next(announced))
    body = b""
    for piece in pieces:
        while True:
            body += decoder.feed(piece)
            piece, decoder.rest = decoder.rest, b""  # noqa: PLW2901
            if not decoder.needs_command or (following := next(announced, None)) is None:
                break
            decoder.begin(*following)
        if piece:
            return body, piece, decoder.complete
    return body, b"", decoder.complete


@pytest.mark.parametrize(
    ("chunks", "wire", "body"),
    [
        ([(5, True)], b"hello", b"hello"),
        ([(2, False), (3, True)], b"hello", b"hello"),
        ([(5, False), (0, True)], b"hello", b"hello"),
        ([(0, False), (5, True)], b"hello", b"hello"),
        ([(1, False), (0, False), (4, True)], b"hello", b"hello"),
        ([(18, True)], b".\r\nQUIT\r\n\r\n.\r\n\0\n\r.", b".\r\nQUIT\r\n\r\n.\r\n\0\n\r."),
    ],
)
def test_a_body_is_complete_with_its_last_byte_at_every_cut(
    every_cut: EveryCut, chunks: list[tuple[int, bool]], wire: bytes, body: bytes
) -> None:
    for pieces in every_cut(wire):
        assert decode(chunks, pieces) == (body, b"", True), pieces
    for pieces in every_cut(wire[:-1]):
        assert decode(chunks, pieces) == (body[:-1], b"", False), pieces


def test_what_is_behind_a_chunk_is_left() -> None:
    decoder = ChunkDecoder()
    decoder.begin(5, True)
    assert decoder.feed(b"helloQUIT\r\n") == b"hello"
    assert decoder.rest == b"QUIT\r\n"
    assert decoder.complete


def test_a_chunk_that_has_ended_needs_a_command() -> None:
    decoder = ChunkDecoder()
    decoder.begin(3, False)
    assert not decoder.needs_command
    assert decoder.feed(b"on") == b"on"
    assert not decoder.needs_command
    assert decoder.feed(b"e") == b"e"
    assert decoder.needs_command
    assert not decoder.complete
    decoder.begin(0, True)
    assert not decoder.needs_command
    assert decoder.feed(b"") == b""
    assert decoder.complete


@given(sizes=st.lists(st.integers(0, 20), min_size=1), places=st.lists(st.integers(1, 100)), more=st.binary(max_size=5))
def test_any_chunks_at_any_cuts(sizes: list[int], places: list[int], more: bytes) -> None:
    body = bytes(index % 256 for index in range(sum(sizes)))
    chunks = [(size, False) for size in sizes[:-1]] + [(sizes[-1], True)]
    edges = [0, *sorted(place for place in places if place < len(body)), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(edges)]
    pieces[-1] += more
    assert decode(chunks, pieces) == (body, more, True)
