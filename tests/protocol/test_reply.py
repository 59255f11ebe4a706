"""Replies: their bytes, enhanced codes on each line, and one well-formed reply for any text."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol import canned
from greensmtp.protocol.enhanced_status import DEFAULTS, default_for
from greensmtp.protocol.reply import Reply

#: arguments of Reply -> the encoded reply
WIRE: list[tuple[tuple[Any, ...], bytes]] = [
    ((250, "Ok"), b"250 2.0.0 Ok\r\n"),
    ((250, "2.1.5 fine"), b"250 2.1.5 fine\r\n"),
    ((250, "2.1.5    fine"), b"250 2.1.5 fine\r\n"),
    ((250, "2.1.5"), b"250 2.1.5\r\n"),
    ((250,), b"250 2.0.0\r\n"),
    ((250, ""), b"250 2.0.0\r\n"),
    ((250, " "), b"250 2.0.0\r\n"),
    ((250, "Ok "), b"250 2.0.0 Ok\r\n"),
    ((235, "welcome"), b"235 2.0.0 welcome\r\n"),
    ((421, "later"), b"421 4.3.2 later\r\n"),
    ((499, "odd"), b"499 4.0.0 odd\r\n"),
    ((552, "5.2.2 mailbox full"), b"552 5.2.2 mailbox full\r\n"),
    ((550, "5.255.255 far out"), b"550 5.255.255 far out\r\n"),
    # a 3xx has no enhanced code (RFC 2034 section 4)
    ((354, "go on"), b"354 go on\r\n"),
    ((354,), b"354\r\n"),
    ((334, "VXNlcm5hbWU6"), b"334 VXNlcm5hbWU6\r\n"),
    ((354, "2.0.0 go on"), b"354 2.0.0 go on\r\n"),
    # several lines, in either way; the code is on each of them
    ((250, "one", "two"), b"250-2.0.0 one\r\n250 2.0.0 two\r\n"),
    ((250, "one\ntwo\r\nthree\rfour"), b"250-2.0.0 one\r\n250-2.0.0 two\r\n250-2.0.0 three\r\n250 2.0.0 four\r\n"),
    ((451, "4.4.1 one", "two"), b"451-4.4.1 one\r\n451 4.4.1 two\r\n"),
    ((451, "4.4.1 one", "4.4.1 two", "4.4.1"), b"451-4.4.1 one\r\n451-4.4.1 two\r\n451 4.4.1\r\n"),
    ((550, "", "why", ""), b"550-5.0.0\r\n550-5.0.0 why\r\n550 5.0.0\r\n"),
    ((354, "one", "", "two"), b"354-one\r\n354-\r\n354 two\r\n"),
    ((354, "one", ""), b"354-one\r\n354\r\n"),
    # what is not an enhanced code is text
    ((250, "2.1 fine"), b"250 2.0.0 2.1 fine\r\n"),
    ((250, "2.1.5fine"), b"250 2.0.0 2.1.5fine\r\n"),
    ((250, "2.1.5678 fine"), b"250 2.0.0 2.1.5678 fine\r\n"),
    ((250, "it is 2.1.5"), b"250 2.0.0 it is 2.1.5\r\n"),
    ((250, "2.\u0661.5 fine"), b"250 2.0.0 2.?.5 fine\r\n"),  # a digit, but not one of the grammar's
    ((250, "3.1.5 fine"), b"250 2.0.0 3.1.5 fine\r\n"),
    # what no reply can carry
    ((250, "a\tb"), b"250 2.0.0 a\tb\r\n"),
    ((250, "a\0b\x07\x1b[2J\x7f"), b"250 2.0.0 a?b??[2J?\r\n"),
    ((250, "caf\xe9 \u20ac \U0001f600 \ud800"), b"250 2.0.0 caf? ? ? ?\r\n"),
    ((250, "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"), b"250 2.0.0 a?b?c?d?e?f?g\r\n"),  # no newlines to SMTP
    ((250, "x\r\n550 no\r\n"), b"250-2.0.0 x\r\n250-2.0.0 550 no\r\n250 2.0.0\r\n"),
]


@pytest.mark.parametrize(("said", "wire"), WIRE)
def test_a_reply_is_encoded(said: tuple[Any, ...], wire: bytes) -> None:
    assert Reply(*said).encode() == wire


@pytest.mark.parametrize(
    ("lines", "wire"),
    [
        (("mx.example.com ESMTP",), b"250 mx.example.com ESMTP\r\n"),
        (("mx.example.com", "PIPELINING", "SIZE 0"), b"250-mx.example.com\r\n250-PIPELINING\r\n250 SIZE 0\r\n"),
        (("",), b"250\r\n"),
        (("", ""), b"250-\r\n250\r\n"),
        (("5.7.1 as it is",), b"250 5.7.1 as it is\r\n"),
    ],
)
def test_the_banner_and_the_reply_to_ehlo_have_no_enhanced_code(lines: tuple[str, ...], wire: bytes) -> None:
    reply = Reply(250, *lines, enhanced=None)
    assert reply.enhanced is None
    assert reply.encode() == wire


def test_the_text_is_kept_apart_from_its_codes() -> None:
    reply = Reply(550, "5.7.1 no\nnever")
    assert (reply.code, reply.enhanced, reply.lines, reply.text) == (550, "5.7.1", ("no", "never"), "no\nnever")
    assert str(reply) == "550 5.7.1 no\nnever"
    assert repr(reply) == r"Reply('550 5.7.1 no\nnever')"


@pytest.mark.parametrize("code", [-250, 0, 99, 100, 199, 600, 1000, 2500])
def test_a_code_out_of_range_is_refused(code: int) -> None:
    with pytest.raises(ProtocolError, match="200 to 599"):
        Reply(code, "text")


def test_a_text_in_the_place_of_the_code_is_an_error_that_shows_how() -> None:
    with pytest.raises(TypeError, match="Reply takes a code first"):
        Reply("5.7.1 no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "text"),
    [(250, "5.7.1 no"), (250, "4.0.0"), (450, "5.7.1 no"), (451, "2.0.0 fine"), (550, "4.7.1 later"), (554, "2.0.0")],
)
def test_an_enhanced_code_of_another_class_is_refused(code: int, text: str) -> None:
    with pytest.raises(ProtocolError, match=f"does not go with reply code {code}"):
        Reply(code, text)
    with pytest.raises(ProtocolError, match=f"does not go with reply code {code}"):
        Reply(code, "text", enhanced=text[:5])


@pytest.mark.parametrize(
    "enhanced", ["2", "2.0", "2.0.0 ", "2.0.0000", "2.0.0\r\n250 x", "2.\u0661.0", "3.0.0", "x", " "]
)
def test_a_malformed_enhanced_code_is_refused(enhanced: str) -> None:
    with pytest.raises(ProtocolError, match=r"is like 5\.7\.1"):
        Reply(250, "text", enhanced=enhanced)


def test_an_enhanced_code_may_be_an_argument() -> None:
    assert Reply(550, "no", "never", enhanced="5.7.1") == Reply(550, "5.7.1 no", "never")


@pytest.mark.parametrize("code", [200, 250, 299, 300, 354, 399, 400, 451, 499, 500, 550, 599])
def test_the_first_digit_is_the_class(code: int) -> None:
    reply = Reply(code)
    classes = [reply.is_positive, reply.is_intermediate, reply.is_transient_failure, reply.is_permanent_failure]
    assert classes.index(True) == code // 100 - 2
    assert classes.count(True) == 1
    assert reply.ends_connection is False


def test_two_codes_end_the_connection() -> None:
    assert [code for code in range(200, 600) if Reply(code).ends_connection] == [221, 421]


def test_equal_replies_are_equal() -> None:
    assert Reply(250, "2.0.0 Ok") == Reply(250, "Ok") == canned.OK
    assert hash(Reply(250, "2.0.0 Ok")) == hash(Reply(250, "Ok"))
    assert len({Reply(250, "a\nb"), Reply(250, "a", "b"), Reply(250, "a b"), Reply(251, "a b")}) == 3
    assert Reply(250, "Ok") != Reply(250, "Ok", enhanced=None)
    assert Reply(250, "Ok") != "250 2.0.0 Ok"


def test_a_reply_is_encoded_once() -> None:
    reply = Reply(250, "Ok")
    assert reply.encode() is reply.encode()


def test_a_reply_can_be_pickled_and_copied() -> None:
    reply = Reply(550, "5.7.1 no", "never")
    for twin in (copy.copy(reply), copy.deepcopy(reply), pickle.loads(pickle.dumps(reply))):
        assert twin == reply
        assert twin.encode() == reply.encode()


def read(wire: bytes) -> tuple[int, list[str]]:
    """Parse a reply by rule; assert that it is one and well-formed (RFC 5321 sections 4.2, 4.5.3.1.5)."""
    assert wire.endswith(b"\r\n")
    texts, codes = [], set()
    lines = wire[:-2].split(b"\r\n")
    for number, line in enumerate(lines):
        assert len(line) + 2 <= 512
        match = re.fullmatch(rb"([2-5][0-9][0-9])(?:([- ])([\t\x20-\x7e]*))?", line)
        assert match is not None, line
        assert not line.endswith(b" ")
        assert (match[2] == b"-") is (number < len(lines) - 1)
        codes.add(int(match[1]))
        texts.append((match[3] or b"").decode())
    (code,) = codes
    return code, texts


SAID = st.text(st.characters()) | st.text(" \t\r\n\0ab\x85\u2028é.25")


@given(st.integers(200, 599), st.lists(SAID, max_size=4), st.sampled_from(["", None]))
def test_any_text_makes_one_well_formed_reply(code: int, lines: list[str], enhanced: str | None) -> None:
    try:
        reply = Reply(code, *lines, enhanced=enhanced)
    except ProtocolError:
        return  # it began with an enhanced code of another class
    if code == 334 and not reply.text:
        assert reply.encode() == b"334 \r\n"  # the grammar of this one reply wants the space (RFC 4954 section 8)
        return
    heard, texts = read(reply.encode())
    assert heard == code
    if reply.enhanced is not None:
        assert all(text == reply.enhanced or text.startswith(f"{reply.enhanced} ") for text in texts)


@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=6),
    st.sampled_from(["250", "354", "550"]),
    st.sampled_from(["", None]),
)
def test_a_long_text_is_folded_and_no_word_is_lost(lengths: list[int], code: str, enhanced: str | None) -> None:
    text = " ".join("x" * length for length in lengths)
    reply = Reply(int(code), text, enhanced=enhanced)
    prefix = f"{reply.enhanced} " if reply.enhanced else ""
    folded = [line.removeprefix(prefix) for line in read(reply.encode())[1]]
    assert "".join(folded).replace(" ", "") == text.replace(" ", "")
    if max(lengths) < 400:
        # No line is cut but between two words.
        assert " ".join(folded) == text


@pytest.mark.parametrize("enhanced", ["", None])
@pytest.mark.parametrize("length", [450, *range(490, 515), 1000, 5000])
def test_a_line_has_at_most_512_bytes(length: int, enhanced: str | None) -> None:
    for text in ("x" * length, " " * length, "é" * length, "x " * (length // 2), "5.255.255 " + "x" * length):
        read(Reply(550, text, enhanced=enhanced).encode())
        read(Reply(550, "short", text, text, enhanced=enhanced).encode())


def test_a_long_text_is_encoded_quickly() -> None:
    assert len(read(Reply(550, "x" * 200_000).encode())[1]) > 400


def test_every_usual_enhanced_code_is_of_its_replys_class() -> None:
    assert all(enhanced[0] == str(code)[0] for code, enhanced in DEFAULTS.items())
    for code in range(200, 600):
        enhanced = default_for(code)
        assert (enhanced is None) is (code // 100 == 3)
        assert enhanced is None or re.fullmatch(rf"{code // 100}\.\d+\.\d+", enhanced)


NAMED = {name: value for name, value in vars(canned).items() if isinstance(value, Reply)}


@pytest.mark.parametrize("name", NAMED)
def test_every_reply_of_the_protocol_is_one_short_line(name: str) -> None:
    reply = NAMED[name]
    code, texts = read(reply.encode())
    assert code == reply.code
    assert len(texts) == 1
    assert reply.text


def test_an_empty_challenge_keeps_its_space() -> None:
    """RFC 4954 section 8: ``"334" SP [base64] CRLF``."""
    assert Reply(334).encode() == Reply(334, "").encode() == b"334 \r\n"
    assert Reply(334, "AA==").encode() == b"334 AA==\r\n"
    assert Reply(250, "", enhanced=None).encode() == b"250\r\n"
