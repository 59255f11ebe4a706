"""Bodies as they are sent: CRLFs and dots, over any cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol.dot_stuffing import DotDecoder, DotEncoder, LineEncoder, stuffed, with_crlf

_bodies = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a", b"\0"]), max_size=12).map(b"".join)


def normal(body: bytes) -> bytes:
    return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


@given(_bodies)
def test_bare_cr_and_lf_become_crlf(body: bytes) -> None:
    assert with_crlf(body) == normal(body)
    assert with_crlf(with_crlf(body)) == with_crlf(body)


@given(_bodies, st.integers(0, 24), st.integers(0, 24))
def test_an_encoded_body_is_the_same_at_any_cuts(body: bytes, one: int, other: int) -> None:
    first, second = sorted((one, other))
    pieces = (body[:first], body[first:second], body[second:])
    expected = normal(body)
    if expected and not expected.endswith(b"\r\n"):
        expected += b"\r\n"
    lines = LineEncoder()
    assert b"".join(map(lines.feed, pieces)) + lines.finish() == expected
    dots = DotEncoder()
    wire = b"".join(map(dots.feed, pieces)) + dots.finish()
    decoder = DotDecoder()
    assert decoder.feed(wire) == expected
    assert decoder.complete
    assert decoder.rest == b""
    if expected:
        assert wire == stuffed(expected) + b".\r\n"


@pytest.mark.parametrize("body", [b"a\r\n", b"", b".\r\n", b"\r\n.\r\n"])
def test_a_body_that_ends_with_crlf_gets_no_further_line(body: bytes) -> None:
    encoder = DotEncoder()
    decoder = DotDecoder()
    assert decoder.feed(encoder.feed(body) + encoder.finish()) == body
