"""Checks of a body while it is read: bare CR and LF, and lines that are too long, at every cut."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol import canned
from greensmtp.protocol.content_checks import LineLength, NoBareNewlines, NormalNewlines
from greensmtp.protocol.dot_stuffing import DotDecoder
from greensmtp.protocol.reply import Reply

Check = Callable[[bytes], Reply | None]

CUTS = st.lists(st.integers(0, 80), max_size=8)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut the data into pieces, some of which may be empty."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def all_cuts(data: bytes) -> Iterator[list[bytes]]:
    """Yield every way to cut the data into pieces that are not empty."""
    for places in itertools.product((False, True), repeat=max(len(data) - 1, 0)):
        yield cut(data, [index for index, here in enumerate(places, 1) if here])


def verdict(check: Check, pieces: Iterable[bytes]) -> Reply | None:
    """Return the first refusal, as the message stream gets it."""
    return next((refusal for refusal in map(check, pieces) if refusal is not None), None)


def has_bare_newline(body: bytes) -> bool:
    return re.search(rb"\r(?!\n)|(?<!\r)\n", body) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"a\nb\r\n",
        b"a\rb\r\n",
        b"\n\r\n",
        b"\r\r\n",
        b"a\r\r\n",
        b"a\n\r\n",
        b"a\r\n\n",
        b"a\r\0\n\r\n",
        b"a\n.\nb\r\n",
        b"a\r\n.\nMAIL FROM:<evil@example.com>\r\n",
        b"a\n.\r\nMAIL FROM:<evil@example.com>\r\n",
        b"a\r.\rMAIL FROM:<evil@example.com>\r\n",
        b"\n" * 50 + b"\r\n",
        b"ok\r\n" * 50 + b"\r" + b"ok\r\n",
    ],
)
def test_a_bare_newline_is_found_at_every_cut(body: bytes) -> None:
    for first, second in itertools.combinations_with_replacement(range(len(body) + 1), 2):
        assert verdict(NoBareNewlines(), cut(body, [first, second])) is canned.BARE_NEWLINE_IN_DATA


@pytest.mark.parametrize(
    "body", [b"", b"\r\n", b"text\r\n", b"a\r\n\r\nb\r\n", b"\x85\x0b\x0c\x1c\x1d\x1e\xe2\x80\xa8\0\r\n", b"no end"]
)
def test_only_cr_and_lf_are_newlines(body: bytes) -> None:
    for first, second in itertools.combinations_with_replacement(range(len(body) + 1), 2):
        assert verdict(NoBareNewlines(), cut(body, [first, second])) is None


def test_all_short_bodies_have_one_result_at_all_cuts() -> None:
    for length in range(6):
        for octets in itertools.product(b"\r\na", repeat=length):
            body = bytes(octets) + b"\r\n"  # as every body ends that came by DATA
            for pieces in all_cuts(body):
                assert (verdict(NoBareNewlines(), pieces) is not None) is has_bare_newline(body), pieces


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n", b"\0", b"\xe2\x80\xa8", b"text"])).map(b"".join), CUTS)
def test_bare_newlines_are_found_as_a_simple_search_finds_them(body: bytes, places: list[int]) -> None:
    body += b"\r\n"
    assert (verdict(NoBareNewlines(), cut(body, places)) is not None) is has_bare_newline(body)


def test_a_bare_newline_is_found_behind_the_dots_of_data() -> None:
    """A stuffed dot may stand between a CR and an LF."""
    decoder, check = DotDecoder(), NoBareNewlines()
    body = [decoder.feed(piece) for piece in (b"a\r\n.", b"\nb\r\n.\r\n")]
    assert decoder.complete
    assert verdict(check, body) is canned.BARE_NEWLINE_IN_DATA


def too_long(body: bytes, limit: int) -> bool:
    """Check the longest line by splitting the body at LF."""
    *lines, open_line = body.split(b"\n")
    return len(open_line) > limit or any(len(line) + 1 > limit for line in lines)


@pytest.mark.parametrize("limit", [78, 1000])
def test_a_line_may_be_as_long_as_the_limit_and_no_longer(limit: int) -> None:
    longest = b"x" * (limit - 2) + b"\r\n"
    for place in (0, 1, limit - 2, limit - 1, limit):
        assert verdict(LineLength(limit), cut(longest, [place])) is None
        assert verdict(LineLength(limit), cut(longest * 3, [place, place + limit])) is None
        assert verdict(LineLength(limit), cut(b"x" + longest, [place])) is canned.BODY_LINE_TOO_LONG
        assert verdict(LineLength(limit), cut(longest * 2 + b"x" + longest, [place])) is canned.BODY_LINE_TOO_LONG


def test_a_line_that_is_too_long_is_refused_before_its_end() -> None:
    check = LineLength(1000)
    assert [check(b"x" * 500) for _ in range(3)] == [None, None, canned.BODY_LINE_TOO_LONG]


def test_all_short_lines_are_measured_alike_at_all_cuts() -> None:
    for limit, length in itertools.product((1, 2, 3, 5), range(8)):
        for octets in itertools.product(b"\nx", repeat=length):
            body = bytes(octets)
            for pieces in all_cuts(body):
                assert (verdict(LineLength(limit), pieces) is not None) is too_long(body, limit), (limit, pieces)


@given(st.lists(st.sampled_from([b"\r\n", b"x", b"yyyy", b"z" * 9])).map(b"".join), CUTS, st.integers(2, 30))
def test_lines_are_measured_as_a_simple_count_measures_them(body: bytes, places: list[int], limit: int) -> None:
    assert (verdict(LineLength(limit), cut(body, places)) is not None) is too_long(body, limit)


# Bare newlines, made normal


def normal(pieces: Iterable[bytes]) -> bytes:
    newlines, whole = NormalNewlines(), list(pieces)
    return b"".join(newlines.feed(piece, number == len(whole)) for number, piece in enumerate(whole, 1))


def normal_slowly(body: bytes) -> bytes:
    """Normalize by rule: up to three CRs belong to the LF behind them; any other CR is a space."""
    return re.sub(rb"\r(?!\n)", b" ", re.sub(rb"\r{0,3}\n", b"\r\n", body))


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\nb\n", b"a\r\nb\r\n"),
        (b"a\rb\r\n", b"a b\r\n"),
        (b"a\n.\nb\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\r\r\nb", b"a\r\nb"),
        (b"a\r\r\r\r\nb", b"a \r\nb"),
        (b"a\n\rb", b"a\r\n b"),
        (b"a\r\n\nb", b"a\r\n\r\nb"),
        (b"a\r", b"a "),
        (b"\r\r\r\r\r", b"     "),
        (b"a\r\0\nb", b"a \0\r\nb"),
        (b"Subject: x\rBcc: y\r\n", b"Subject: x Bcc: y\r\n"),
    ],
)
def test_bare_newlines_are_normalized_at_every_cut(body: bytes, content: bytes) -> None:
    for first, second in itertools.combinations_with_replacement(range(len(body) + 1), 2):
        assert normal(cut(body, [first, second])) == content
    assert normal([*(body[index : index + 1] for index in range(len(body))), b""]) == content


@pytest.mark.parametrize("longest", [6, pytest.param(7, marks=pytest.mark.exhaustive)])
def test_all_short_bodies_are_normalized_alike_at_all_cuts(longest: int) -> None:
    for length in range(longest + 1):
        for octets in itertools.product(b"\r\na", repeat=length):
            body = bytes(octets)
            expected = normal_slowly(body)
            assert not has_bare_newline(expected)
            assert all(normal(pieces) == expected for pieces in all_cuts(body)), body


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"x", b"text"])).map(b"".join), CUTS)
def test_any_body_is_normalized(body: bytes, places: list[int]) -> None:
    assert normal(cut(body, places)) == normal_slowly(body)
    assert not has_bare_newline(normal(cut(body, places)))


def test_a_chunk_without_bare_newlines_is_not_copied() -> None:
    newlines, chunk = NormalNewlines(), b"x" * 76 + b"\r\n"
    assert newlines.feed(chunk) is chunk
    assert newlines.feed(b"a\nb\r\n") == b"a\r\nb\r\n"
    assert newlines.feed(chunk) is chunk
