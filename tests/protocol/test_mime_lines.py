"""Line ends of messages with binary parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol.dot_stuffing import with_crlf
from greensmtp.protocol.mime_lines import MAX_DELIMITER, MAX_DEPTH, MAX_HEAD, MimeLines, may_be_binary

QUOTED = b"Subject: x\n\nContent-Transfer-Encoding: binary\n\nthat was a quote\n"
ROOT = b"Content-Transfer-Encoding: binary\n\n\0\n\r\xff."
MIXED = (
    b'Content-Type: multipart/mixed;\n boundary="x y"\n\npreamble\n--x y\nContent-Type: text/plain\n\n'
    b"Content-Transfer-Encoding: binary\n\ntext\n--x y\nContent-Transfer-Encoding:\n Binary\n\nbi\nn\r--x\n\0\n"
    b"--x y-\n--x y  \n\nplain\n--x y--\nepilogue\n"
)
MIXED_LINES = (
    b'Content-Type: multipart/mixed;\r\n boundary="x y"\r\n\r\npreamble\r\n--x y\r\nContent-Type: text/plain\r\n\r\n'
    b"Content-Transfer-Encoding: binary\r\n\r\ntext\r\n--x y\r\nContent-Transfer-Encoding:\r\n Binary\r\n\r\n"
    b"bi\nn\r--x\n\0\n--x y-\r\n--x y  \r\n\r\nplain\r\n--x y--\r\nepilogue\r\n"
)
NESTED = (
    b"Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: message/rfc822\n\nContent-Type: multipart/"
    b"alternative; boundary=b\n\n--b\nContent-Transfer-Encoding: binary\n\n1\n2\n--a\n\n3\n4\n--a--\n"
)
NESTED_LINES = NESTED.replace(b"\n", b"\r\n").replace(b"1\r\n2", b"1\n2")


def run(pieces: list[bytes]) -> tuple[bytes, bool]:
    lines = MimeLines()
    out = b"".join([lines.feed(piece) for piece in pieces])
    return out + lines.finish(), lines.needs_binary


CASES = [
    (QUOTED, QUOTED.replace(b"\n", b"\r\n"), False),
    (ROOT, b"Content-Transfer-Encoding: binary\r\n\r\n\0\n\r\xff.", True),
    (ROOT.replace(b"\0\n\r\xff.", b"hi\r\n"), b"Content-Transfer-Encoding: binary\r\n\r\nhi\r\n", False),
    (b"Content-Transfer-Encoding: binary\r\n\r\nhi", b"Content-Transfer-Encoding: binary\r\n\r\nhi", True),
    (MIXED, MIXED_LINES, True),
    (NESTED, NESTED_LINES, True),
    (b"x", b"x\r\n", False),
    (
        b'Content-Type: multipart/mixed; boundary=""\n\n--\n\n',
        b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\n',
        False,
    ),
    (b"Content-Type: multipart/mixed\n\n--\n", b"Content-Type: multipart/mixed\r\n\r\n--\r\n", False),
    (b"", b"", False),
]


@pytest.mark.parametrize(("octets", "expected", "needs_binary"), CASES)
def test_line_ends_are_the_same_at_every_cut(octets: bytes, expected: bytes, needs_binary: bool) -> None:
    for cut in range(len(octets) + 1):
        assert run([octets[:cut], octets[cut:]]) == (expected, needs_binary)
    assert run([octets[at : at + 1] for at in range(len(octets))]) == (expected, needs_binary)


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"--", b"x" * (MAX_DELIMITER + 5), b"A: b"]), max_size=20)
)
def test_without_a_binary_part_all_line_ends_are_normal(pieces: list[bytes]) -> None:
    octets = b"".join(pieces)
    lines = with_crlf(octets)
    out, needs_binary = run(pieces)
    assert out == (lines if not lines or lines.endswith(b"\r\n") else lines + b"\r\n")
    assert not needs_binary


def test_hostile_depth_and_heads_are_bounded() -> None:
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(10 * MAX_DEPTH))
    assert run([deep])[0] == with_crlf(deep)
    endless = b"Content-Type: text/plain;" + b" x" * 500_000
    assert run([endless[at : at + 65536] for at in range(0, len(endless), 65536)])[0] == endless + b"\r\n"


def test_may_be_binary() -> None:
    assert may_be_binary(QUOTED)
    assert not may_be_binary(b"Content-Transfer-Encoding: base64\n\nContent-Transfer-Encoding is binary\n")


def test_a_long_header_line_that_is_cut_before_its_end_does_not_end_the_head() -> None:
    beginning = b"Content-Transfer-Encoding: binary\r\nSubject: " + b"x" * MAX_HEAD
    sent, _ = run([beginning, b"\r\nX: y\n\n\n"])
    assert sent == beginning + b"\r\nX: y\r\n\r\n\n"


def test_pieces_that_end_with_cr_are_not_collected() -> None:
    lines = MimeLines()
    out = lines.feed(b"a: b\n\n")
    for _ in range(10):
        out += lines.feed(b"\r" * MAX_DELIMITER)
        assert len(lines._held) <= MAX_DELIMITER + 1
    assert out + lines.finish() == b"a: b\r\n\r\n" + b"\r\n" * MAX_DELIMITER * 10


@pytest.mark.parametrize("cut", range(1, len(b"--bound\r\n")))
def test_a_delimiter_behind_many_lines_may_be_cut_anywhere(cut: int) -> None:
    head, preamble = b"Content-Type: multipart/mixed; boundary=bound\r\n\r\n", b"preamble\r\n" * MAX_DELIMITER
    part = b"Content-Transfer-Encoding: binary\r\n\r\none\ntwo\n"
    delimiter = b"--bound\r\n"
    sent, needs_binary = run([head, preamble + delimiter[:cut], delimiter[cut:] + part + b"\r\n--bound--\r\n"])
    assert sent == head + preamble + delimiter + part + b"\r\n--bound--\r\n"
    assert needs_binary
