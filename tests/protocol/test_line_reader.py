"""Command lines out of a client's bytes: the same lines and refusals at every cut, and bounded memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greensmtp.protocol import canned
from greensmtp.protocol.command import is_foreign
from greensmtp.protocol.line_reader import MAX_SKIPPED, BadLine, LineReader
from greensmtp.protocol.reply import Reply

EveryCut = Callable[[bytes], Iterator[list[bytes]]]

#: Bytes in the longest line of each verb, CRLF included.
LIMITS = {"MAIL": 110}
OTHERS = 100
LONGEST = 110

#: Replies after which the connection is closed.
FATAL = (canned.NOT_SMTP, canned.LINE_WITHOUT_END)


def make_reader() -> LineReader:
    return LineReader(lambda verb: LIMITS.get(verb, OTHERS), LONGEST)


def read(pieces: Iterable[bytes], reader: LineReader | None = None) -> list[bytes | Reply]:
    """Read lines and refusals, as a server does: another protocol's line is refused, and the last."""
    reader = make_reader() if reader is None else reader
    found: list[bytes | Reply] = []
    for piece in pieces:
        reader.feed(piece)
        while True:
            try:
                line = reader.next_line()
            except BadLine as bad:
                found.append(bad.reply)
                if bad.reply in FATAL:
                    return found
                continue
            if line is None:
                break
            if is_foreign(line):
                return [*found, canned.NOT_SMTP]
            found.append(line)
    return found


LONG = b"NOOP " + b"x" * 200

CASES: list[tuple[str, bytes, list[bytes | Reply]]] = [
    ("nothing", b"", []),
    ("half a line", b"NOOP", []),
    ("half a CRLF", b"NOOP\r", []),
    ("one line", b"NOOP\r\n", [b"NOOP"]),
    ("an empty line", b"\r\n", [b""]),
    ("a batch", b"NOOP\r\nRSET\r\n\r\nQUIT\r\n", [b"NOOP", b"RSET", b"", b"QUIT"]),
    ("a bare CR", b"NO\rOP\r\nRSET\r\n", [b"NO\rOP", b"RSET"]),
    ("a line of CRs", b"\r\r\r\nRSET\r\n", [b"\r\r", b"RSET"]),
    ("a bare LF", b"NOOP\n", [canned.BARE_NEWLINE]),
    ("only a bare LF", b"\n", [canned.BARE_NEWLINE]),
    ("what follows a bare LF is no command", b"NOOP\nRSET\r\nQUIT\r\n", [canned.BARE_NEWLINE, b"QUIT"]),
    ("several bare LFs are one bad line", b"A\nB\nC\nD\r\nQUIT\r\n", [canned.BARE_NEWLINE, b"QUIT"]),
    ("LF CR", b"NOOP\n\rRSET\r\nQUIT\r\n", [canned.BARE_NEWLINE, b"QUIT"]),
    ("LF CRLF", b"NOOP\n\r\nQUIT\r\n", [canned.BARE_NEWLINE, b"QUIT"]),
    ("two bad lines", b"A\nB\r\nC\nD\r\nQUIT\r\n", [canned.BARE_NEWLINE, canned.BARE_NEWLINE, b"QUIT"]),
    ("a line that is too long", LONG + b"\r\nQUIT\r\n", [canned.LINE_TOO_LONG, b"QUIT"]),
    ("a line that is too long, without end", LONG + b"\r", []),
    ("a command in a line that is too long", LONG + b"\rRSET\r\nQUIT\r\n", [canned.LINE_TOO_LONG, b"QUIT"]),
    ("the longest line", b"x" * (OTHERS - 2) + b"\r\n", [b"x" * (OTHERS - 2)]),
    ("a byte more", b"x" * (OTHERS - 1) + b"\r\nQUIT\r\n", [canned.LINE_TOO_LONG, b"QUIT"]),
    ("the longest MAIL", b"mail " + b"x" * (LONGEST - 7) + b"\r\n", [b"mail " + b"x" * (LONGEST - 7)]),
    ("a byte more in MAIL", b"MAIL " + b"x" * (LONGEST - 6) + b"\r\nQUIT\r\n", [canned.LINE_TOO_LONG, b"QUIT"]),
    ("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [canned.NOT_SMTP]),
    ("a TLS handshake with line ends", b"\x16\x03\x01\n\x00\r\nQUIT\r\n", [canned.NOT_SMTP]),
    ("a TLS handshake behind a line", b"NOOP\r\n\x16\x03\x01", [b"NOOP", canned.NOT_SMTP]),
    ("half of the first bytes of one", b"\x16", []),
    ("an HTTP request", b"GET / HTTP/1.1\r\nHost: mx\r\n\r\nRSET\r\n", [canned.NOT_SMTP]),
    ("an HTTP request with bare LFs", b"POST / HTTP/1.1\nHost: mx\n\nRSET\r\n", [canned.NOT_SMTP]),
    ("a long HTTP request", b"POST /" + b"x" * 200 + b" HTTP/1.1\r\n\r\n", [canned.NOT_SMTP]),
    ("bytes beyond ASCII", b"\xff\xfe\r\n", [b"\xff\xfe"]),
]


@pytest.mark.parametrize(("wire", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_lines_and_refusals_are_the_same_at_every_cut(
    every_cut: EveryCut, wire: bytes, expected: list[bytes | Reply]
) -> None:
    for pieces in every_cut(wire):
        assert read(pieces) == expected, pieces


def read_slowly(wire: bytes) -> list[bytes]:
    """The good lines, told by rule: what is between two CRLFs, short enough and without LF."""
    *lines, _ = wire.split(b"\r\n")
    found = []
    for line in lines:
        if is_foreign(line):
            break
        if b"\n" not in line and len(line) + 2 <= LIMITS.get(line[:8].split(b" ", 1)[0].decode("latin-1"), OTHERS):
            found.append(line)
    return found


WIRES = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n", b"NOOP", b"MAIL ", b" ", b"x", b"x" * 40, b"y" * 95, b"z" * 120])
).map(b"".join)


@given(wire=WIRES, places=st.lists(st.integers(1, 400)))
@example(wire=b"x" * 120 + b"\nNOOP\r\nRSET\r\n", places=[115])
@example(wire=b"\nNOOP\r\r\nRSET\r\n", places=[6, 7])
def test_no_part_of_a_bad_line_is_a_command(wire: bytes, places: list[int]) -> None:
    edges = [0, *sorted(place for place in places if place < len(wire)), len(wire)]
    found = read(wire[start:end] for start, end in itertools.pairwise(edges))
    assert [each for each in found if isinstance(each, bytes)] == read_slowly(wire)
    # Each bad line is refused once; the last one may not have had its CRLF yet.
    bad = len(re.findall(rb"\r\n", wire)) - len(read_slowly(wire))
    assert bad <= len(found) - len(read_slowly(wire)) <= bad + 1


def test_a_challenge_sets_a_limit_of_its_own() -> None:
    reader = make_reader()
    reader.feed(b"x" * 80 + b"\r\n" + b"y" * 80 + b"\r\n")
    assert reader.next_line(82) == b"x" * 80
    with pytest.raises(BadLine) as caught:
        reader.next_line(81)
    assert caught.value.reply is canned.LINE_TOO_LONG


def test_bytes_may_be_given_together_with_the_question() -> None:
    reader = make_reader()
    assert reader.next_line(None, b"NO") is None
    assert reader.next_line(None, b"OP\r\nRS") == b"NOOP"
    assert reader.next_line(None, b"ET\r\nQ") == b"RSET"
    assert reader.next_line() is None


def test_only_a_refused_line_awaits_its_crlf() -> None:
    reader = make_reader()
    assert not reader.awaits_crlf
    assert read([LONG], reader) == []
    assert not reader.awaits_crlf
    assert read([b"\r\nNOOP\n"], reader) == [canned.LINE_TOO_LONG, canned.BARE_NEWLINE]
    assert reader.awaits_crlf
    assert read([b"\r\n"], reader) == []
    assert not reader.awaits_crlf


@pytest.mark.parametrize("begin", [b"", b"NOOP\n"], ids=["too long", "refused"])
def test_a_line_without_end_is_dropped_up_to_a_bound(begin: bytes) -> None:
    reader = make_reader()
    piece = b"x" * 4096
    expected = [canned.BARE_NEWLINE] if begin else []
    assert read([begin], reader) == expected
    for _ in range(MAX_SKIPPED // len(piece) - 1):
        assert read([piece], reader) == []
        assert len(reader.take(MAX_SKIPPED)) <= LONGEST
    assert read([piece] * 3, reader) == [canned.LINE_WITHOUT_END]


def test_the_buffer_holds_no_more_than_the_longest_line() -> None:
    reader = make_reader()
    for _ in range(1000):
        assert read([b"x" * 50], reader) == []
        assert len(reader._buffer) <= LONGEST


# Bodies


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_a_body_is_taken_from_behind_a_line(size: int) -> None:
    reader = make_reader()
    reader.feed(b"DATA\r\nbody\r\n.\r\nQUIT\r\n")
    assert reader.next_line() == b"DATA"
    taken = b""
    while data := reader.take(size):
        assert len(data) <= size
        taken += data
    assert taken == b"body\r\n.\r\nQUIT\r\n"
    assert reader.take(size) == b""


def test_what_is_behind_a_body_is_read_as_lines(every_cut: EveryCut) -> None:
    for pieces in every_cut(b"QUIT\r\nNOOP\r\n"):
        reader = make_reader()
        reader.feed(b"DATA\r\nbody" + pieces[0])
        assert reader.next_line() == b"DATA"
        rest = reader.take(1000).removeprefix(b"body")
        reader.unread(rest)
        assert read([b"", *pieces[1:]], reader) == [b"QUIT", b"NOOP"]


def test_bytes_that_are_put_back_come_first() -> None:
    reader = make_reader()
    reader.feed(b"DATA\r\none\r\ntwo\r\n")
    assert reader.next_line() == b"DATA"
    assert reader.take(3) == b"one"
    reader.unread(b"ONE")
    reader.unread(b"")
    assert read([b""], reader) == [b"ONE", b"two"]


def test_clear_forgets_half_a_line_and_a_bad_one() -> None:
    reader = make_reader()
    assert read([b"NOOP\nRS"], reader) == [canned.BARE_NEWLINE]
    reader.clear()
    assert read([b"RSET\r\nMAIL FR"], reader) == [b"RSET"]
    reader.clear()
    assert read([b"QUIT\r\n"], reader) == [b"QUIT"]


@pytest.mark.parametrize("line", [b"\n", b"x\n", b"NOOP\n"])
def test_a_line_with_a_bare_lf_waits_for_its_crlf(line: bytes) -> None:
    reader = make_reader()
    reader.feed(line)
    with pytest.raises(BadLine):
        reader.next_line()
    assert reader.awaits_crlf
    reader.feed(b"rest\r\nNOOP\r\n")
    assert reader.next_line() == b"NOOP"
    assert not reader.awaits_crlf
