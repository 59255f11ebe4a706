"""Replies as a client reads them, over any cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol.enhanced_status import LEADING
from greensmtp.protocol.errors import ProtocolError, ReplySyntaxError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import MAX_BYTES, MAX_LINE, MAX_LINES, ReplyParser


def read(wire: bytes, *cuts: int) -> list[Reply]:
    """Return all replies in the bytes, which come in pieces; check that each way to read them gives the same."""
    starts, ends = [0, *sorted(cuts)], [*sorted(cuts), len(wire)]
    pieces = [wire[start:end] for start, end in zip(starts, ends, strict=True)]
    fed = ReplyParser()
    replies: list[Reply] = []
    error: ReplySyntaxError | None = None
    try:
        for piece in pieces:
            fed.feed(piece)
            while (reply := fed.next_reply()) is not None:
                replies.append(reply)
    except ReplySyntaxError as caught:
        error = caught
    for count in (1, 2, 3):
        at_once, failure = read_at_once(pieces, count)
        assert failure == (str(error) if error else None)
        assert at_once == replies[: len(at_once)]
        assert error or len(at_once) == len(replies)  # an error hides the replies in its group
    if error:
        raise error
    return replies


def read_at_once(pieces: list[bytes], count: int) -> tuple[list[Reply], str | None]:
    """Return all replies, asked for in groups, and the error behind them."""
    reader = ReplyParser()
    replies: list[Reply] = []
    try:
        for piece in pieces:
            found = reader.read(piece, count)
            while found:
                replies += found
                assert len(found) <= count
                found = reader.next_replies(count)
            assert not reader.ready
    except ReplySyntaxError as error:
        return replies, str(error)
    return replies, None


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"250 Ok\r\n", Reply(250, "Ok", enhanced=None)),
        (b"250\r\n", Reply(250, "", enhanced=None)),
        (b"250 \r\n", Reply(250, "", enhanced=None)),
        (b"250 2.1.5 Ok\r\n", Reply(250, "Ok", enhanced="2.1.5")),
        (b"550 5.7.1\r\n", Reply(550, "", enhanced="5.7.1")),
        (b"550 4.7.1 another class is text\r\n", Reply(550, "4.7.1 another class is text", enhanced=None)),
        (b"354 go\r\n", Reply(354, "go", enhanced=None)),
        (b"250-\r\n250 x\r\n", Reply(250, "", "x", enhanced=None)),
        (b"250-one\r\n250-two\r\n250\r\n", Reply(250, "one", "two", "", enhanced=None)),
        (b"550-5.1.1 one\r\n550 5.1.1 two\r\n", Reply(550, "one", "two", enhanced="5.1.1")),
        ("250 gr\u00fc\u00dfe\r\n".encode(), Reply(250, "gr\u00fc\u00dfe", enhanced=None)),
        (b"250 \xff\r\n", Reply(250, "\ufffd", enhanced=None)),
        (b"250 \x1b[2J\r\n", Reply(250, "\ufffd[2J", enhanced=None)),
    ],
)
def test_a_reply_at_every_cut(wire: bytes, expected: Reply) -> None:
    for cut in range(len(wire) + 1):
        assert read(wire, cut) == [expected]
    assert read(wire, *range(len(wire))) == [expected]


@pytest.mark.parametrize(
    "wire",
    [
        b"hello\r\n",
        b"25 x\r\n",
        b"2500 x\r\n",
        b"250x\r\n",
        b"250_x\r\n",
        b"199 x\r\n",
        b"600 x\r\n",
        b"\r\n",
        b" 250 x\r\n",
        b"250 bare LF\n",
        b"250 bare\rCR\r\n",
        b"250 NUL\0\r\n",
        b"250-one\r\n251 two\r\n",
        b"250-one\r\n250-two\r\n550 three\r\n",
        b"250-one\r\njunk\r\n",
        b"250-one\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46\r\n",
        "\u0662\u0665\u0660 x\r\n".encode(),
    ],
)
def test_junk_is_an_error_at_every_cut(wire: bytes) -> None:
    for cut in range(len(wire) + 1):
        with pytest.raises(ReplySyntaxError):
            read(wire, cut)


def test_an_error_is_raised_again_at_each_later_call() -> None:
    reader = ReplyParser()
    reader.feed(b"junk\r\n250 Ok\r\n")
    for _ in range(2):
        with pytest.raises(ProtocolError, match="junk"):
            reader.next_reply()


def test_junk_is_an_error_before_its_line_ends() -> None:
    with pytest.raises(ReplySyntaxError):
        read(b"GET")


def test_the_length_of_a_line_is_bounded() -> None:
    with pytest.raises(ReplySyntaxError, match="12288 bytes"):
        read(b"250 " + b"x" * MAX_LINE)
    with pytest.raises(ReplySyntaxError, match="12288 bytes"):
        read(b"250 " + b"x" * MAX_LINE + b"\r\n")
    assert len(read(b"250 " + b"x" * (MAX_LINE - 6) + b"\r\n")) == 1


def test_the_size_of_a_reply_is_bounded() -> None:
    assert len(read(b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n")[0].lines) == MAX_LINES
    with pytest.raises(ReplySyntaxError, match="without end"):
        read(b"250-x\r\n" * (MAX_LINES + 1))
    with pytest.raises(ReplySyntaxError, match="without end"):
        read((b"250-" + b"x" * 8000 + b"\r\n") * (MAX_BYTES // 8000 + 1))


def test_several_replies_in_one_piece() -> None:
    reader = ReplyParser()
    reader.feed(b"250 one\r\n250-two\r\n250 two\r\n354 three\r\n2")
    assert [reply.code for reply in reader.next_replies(2)] == [250, 250]
    assert reader.pending
    assert [reply.code for reply in reader.next_replies(2)] == [354]
    assert reader.pending
    reader.feed(b"21 bye\r\n")
    assert [reply.code for reply in reader.next_replies(2)] == [221]
    assert not reader.pending


#: A text that begins with an enhanced status code would be read as code and text.
_texts = st.text(st.characters(blacklist_categories=["C", "Z"]), max_size=20).filter(
    lambda text: not LEADING.match(text)
)


@given(st.data())
def test_an_encoded_reply_is_parsed_again(data: st.DataObject) -> None:
    replies = data.draw(
        st.lists(st.tuples(st.integers(200, 599), st.lists(_texts, min_size=1, max_size=4)), min_size=1, max_size=4)
    )
    wire = b""
    for code, texts in replies:
        lines = [f"{code}{'-' if n < len(texts) - 1 else ' '}{text}\r\n" for n, text in enumerate(texts)]
        wire += "".join(lines).encode()
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=5))
    assert [(reply.code, list(reply.lines)) for reply in read(wire, *cuts)] == replies


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_are_replies_or_an_error_at_any_cuts(wire: bytes, cuts: list[int]) -> None:
    def outcome(*cuts: int) -> list[Reply] | str:
        try:
            return read(wire, *cuts)
        except ReplySyntaxError:
            return "error"

    assert outcome(*(min(cut, len(wire)) for cut in cuts)) == outcome()


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\x85", "\u2028", "\u2029", "\u202e", "\u2066"])
def test_what_a_terminal_obeys_is_replaced(character: str) -> None:
    reader = ReplyParser()
    reader.feed(f"250 a{character}b\r\n".encode())
    reply = reader.next_reply()
    assert reply is not None
    assert reply.text == "a\ufffdb"
