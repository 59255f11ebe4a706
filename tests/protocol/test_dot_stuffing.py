"""Dot-stuffing: only CRLF.CRLF ends data, at any cuts, and an encoded body decodes to itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greensmtp.protocol.dot_stuffing import DotDecoder, DotEncoder

#: Bodies made of what matters here, and of runs of something else.
BODIES = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\0", b"a", b"some text"])).map(b"".join)
CUTS = st.lists(st.integers(0, 60), max_size=8)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut the data into pieces, some of which may be empty."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def all_cuts(data: bytes) -> Iterator[list[bytes]]:
    """Yield every way to cut the data into pieces that are not empty."""
    for places in itertools.product((False, True), repeat=max(len(data) - 1, 0)):
        yield cut(data, [index for index, here in enumerate(places, 1) if here])


def decode(pieces: Iterable[bytes]) -> tuple[bytes, bytes | None]:
    """Return the body and the bytes behind its end, or None if no end was found."""
    decoder, body, pieces = DotDecoder(), b"", iter(pieces)
    for piece in pieces:
        body += decoder.feed(piece)
        if decoder.complete:
            return body, decoder.rest + b"".join(pieces)
    return body, None


def decode_slowly(wire: bytes) -> tuple[bytes, bytes | None]:
    """Do the same line by line with the whole input (RFC 5321 section 4.5.2). Lines end with CRLF only."""
    body = b""
    *lines, open_line = wire.split(b"\r\n")
    for number, line in enumerate(lines):
        if line == b".":
            return body, b"\r\n".join([*lines[number + 1 :], open_line])
        body += line.removeprefix(b".") + b"\r\n"
    return body + open_line.removeprefix(b"."), None


def encode(pieces: Iterable[bytes]) -> bytes:
    encoder = DotEncoder()
    return b"".join([encoder.feed(piece) for piece in pieces]) + encoder.finish()


def with_crlf(body: bytes) -> bytes:
    """Return the body with CRLF at the end of each line, the last one too."""
    body = re.sub(rb"\r\n|\r|\n", b"\r\n", body)
    return body if not body or body.endswith(b"\r\n") else body + b"\r\n"


DECODED = [
    # what comes in, the body, what comes behind
    (b".\r\n", b"", b""),
    (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
    (b"\r\n.\r\n", b"\r\n", b""),
    (b"one\r\ntwo\r\n.\r\n", b"one\r\ntwo\r\n", b""),
    (b"..\r\n.\r\n", b".\r\n", b""),
    (b"...\r\n..two\r\n.\r\n", b"..\r\n.two\r\n", b""),
    (b".x\r\n.\r\n", b"x\r\n", b""),  # any dot at the head of a line goes, not only the first of two
    (b"a\r\n.b\r\n..c\r\n.\r\n", b"a\r\nb\r\n.c\r\n", b""),
    (b"a.\r\n.\r\n", b"a.\r\n", b""),
    (b"\xff\x00\xfe\r\n.\r\n", b"\xff\x00\xfe\r\n", b""),
    (b"a\r\n.\r\n.\r\nb\r\n.\r\n", b"a\r\n", b".\r\nb\r\n.\r\n"),
    (b"a\r\r\n.\r\nb", b"a\r\r\n", b"b"),
]


@pytest.mark.parametrize(("wire", "body", "rest"), DECODED)
def test_a_body_is_decoded_by_the_rfc_at_every_cut(wire: bytes, body: bytes, rest: bytes) -> None:
    assert decode([wire]) == (body, rest)
    assert decode(wire[index : index + 1] for index in range(len(wire))) == (body, rest)
    for place in range(len(wire) + 1):
        assert decode(cut(wire, [place])) == (body, rest), place


NEWLINES = (b"\r\n", b"\n", b"\r", b"\n\r", b"\r\r", b"\n\n", b"\r\0\n", b"\0\r\n", b"\r\n\0", b"\r\r\n", b"\x85", b"")


@pytest.mark.parametrize("before", NEWLINES)
def test_only_a_dot_between_two_crlf_ends_data(before: bytes) -> None:
    for behind in NEWLINES:
        wire = b"text" + before + b"." + behind + b"MAIL FROM:<evil@example.com>\r\n"
        ends = before.endswith(b"\r\n") and behind.startswith(b"\r\n")
        for place in range(len(wire) + 1):
            body, rest = decode(cut(wire, [place]))
            assert (rest is not None) is ends, (wire, place)
            assert (b"evil" in body) is not ends, (wire, place)


@pytest.mark.parametrize("longest", [5, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_all_short_inputs_are_decoded_alike_at_all_cuts(longest: int) -> None:
    """Try every short input of the bytes that matter, in every way to cut it."""
    for length in range(longest + 1):
        for octets in itertools.product(b"\r\n.a", repeat=length):
            wire = bytes(octets)
            expected, rest = decode_slowly(wire)
            for pieces in all_cuts(wire):
                body, found = decode(pieces)
                assert found == rest, pieces
                if rest is not None:
                    assert body == expected, pieces
                else:
                    # What was held back comes out with what follows.
                    assert decode([*pieces, b"x\r\n.\r\n"]) == decode_slowly(wire + b"x\r\n.\r\n"), pieces


@given(BODIES, BODIES, CUTS)
@example(b"\r\n.\r", b"\n", [4])
def test_decoding_agrees_with_a_simple_decoder(first: bytes, second: bytes, places: list[int]) -> None:
    wire = first + b"\r\n.\r\n" + second
    assert decode(cut(wire, places)) == decode_slowly(wire)


@given(BODIES, CUTS)
def test_at_most_two_bytes_are_held_back(body: bytes, places: list[int]) -> None:
    decoder, out, taken = DotDecoder(), b"", b""
    for piece in cut(body, places):
        taken += piece
        out += decoder.feed(piece)
        if decoder.complete:
            break
        expected, rest = decode_slowly(taken)
        assert rest is None
        # A dot, which the slow way drops where it heads the last line, and a CR behind it.
        assert expected.startswith(out)
        assert len(expected) - len(out) <= 1


def test_a_piece_that_needs_no_change_is_not_copied() -> None:
    decoder, piece = DotDecoder(), b"x" * 100 + b"\r\nNo dots at line starts. None.\r\n"
    assert decoder.feed(piece) is piece
    assert decoder.feed(piece) is piece


@pytest.mark.parametrize(
    ("body", "wire"),
    [
        (b"", b".\r\n"),
        (b"\r\n", b"\r\n.\r\n"),
        (b"text", b"text\r\n.\r\n"),
        (b"text\r\n", b"text\r\n.\r\n"),  # and no further empty line
        (b"text\r\n\r\n", b"text\r\n\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r.\rb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r\r\nb", b"a\r\n\r\nb\r\n.\r\n"),
        (b"a\n\rb", b"a\r\n\r\nb\r\n.\r\n"),
        (b"a\r", b"a\r\n.\r\n"),
        (b"a\r\n.\r\nMAIL FROM:<evil@example.com>\r\n", b"a\r\n..\r\nMAIL FROM:<evil@example.com>\r\n.\r\n"),
        (b"a\n.\r\nQUIT\r\n", b"a\r\n..\r\nQUIT\r\n.\r\n"),
        (b"\0.\xff", b"\0.\xff\r\n.\r\n"),
    ],
)
def test_a_body_is_encoded_by_the_rfc_at_every_cut(body: bytes, wire: bytes) -> None:
    assert encode([body]) == wire
    for pieces in (cut(body, [first, second]) for first in range(len(body) + 1) for second in range(first)):
        assert encode(pieces) == wire, pieces


@given(BODIES, CUTS, CUTS)
def test_an_encoded_body_decodes_to_itself(body: bytes, places: list[int], others: list[int]) -> None:
    wire = encode(cut(body, places))
    assert decode(cut(wire, others)) == (with_crlf(body), b"")


@given(BODIES, CUTS)
def test_an_encoded_body_has_no_bare_newlines_and_one_end(body: bytes, places: list[int]) -> None:
    wire = encode(cut(body, places))
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", wire)
    assert wire.count(b"\r\n.\r\n") == (wire != b".\r\n")
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"


def test_all_short_bodies_are_encoded_alike_at_all_cuts() -> None:
    for length in range(6):
        for octets in itertools.product(b"\r\n.a", repeat=length):
            body = bytes(octets)
            expected = encode([body])
            assert decode_slowly(expected) == (with_crlf(body), b""), body
            assert all(encode(pieces) == expected for pieces in all_cuts(body)), body
