"""A header field that a handler adds: checked, folded, encoded."""

from __future__ import annotations

from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.protocol.header_field import header_field


def read(field: bytes, name: str) -> str:
    return str(message_from_bytes(field + b"\r\nbody", policy=policy.default)[name])


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("yes", b"X-Spam: yes\r\n"),
        ("  yes\t ", b"X-Spam: yes\r\n"),
        ("a  b\tc", b"X-Spam: a  b\tc\r\n"),
        ("", b"X-Spam:\r\n"),
        (" \t ", b"X-Spam:\r\n"),
    ],
)
def test_a_short_value_stays_as_it_is(value: str, field: bytes) -> None:
    assert header_field("X-Spam", value) == field


def test_a_long_value_is_folded_at_blanks() -> None:
    value = "spf=pass smtp.mailfrom=example.org; dkim=pass header.d=example.org; " * 5
    field = header_field("Authentication-Results", value)
    lines = field.split(b"\r\n")[:-1]
    assert len(lines) > 3
    assert all(len(line) <= 78 for line in lines)
    assert field.replace(b"\r\n", b"") == b"Authentication-Results: " + value.strip().encode()


@pytest.mark.parametrize("value", ["caf\u00e9", "\u2713 " * 200, "x" * 2_000, "a " + "y" * 1_500 + " b"])
def test_non_ascii_text_and_long_words_become_encoded_words(value: str) -> None:
    field = header_field("X-Note", value)
    assert field.isascii()
    assert all(len(line) <= 78 for line in field.split(b"\r\n"))
    assert read(field, "X-Note") == value.strip()


def test_utf_8_is_kept_where_the_message_may_have_it() -> None:
    assert header_field("X-Note", "caf\u00e9", utf8=True) == "X-Note: caf\u00e9\r\n".encode()


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "\u00e9", "a\0", "x" * 77, " a"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a field's name is"):
        header_field(name, "x")


@pytest.mark.parametrize("evil", ["\r\n", "\n", "\r", "\0", "\x0b", "\x0c", "\x1b", "\x7f", "\x85", "\u2028", "\ud800"])
@pytest.mark.parametrize("text", ["{}", "a{}Bcc: b@c", "a{} folded", "a{}"])
def test_a_value_with_a_control_character_is_refused(text: str, evil: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        header_field("X-Note", text.format(evil))


def test_a_value_that_is_no_text_is_an_error_that_names_the_field() -> None:
    with pytest.raises(TypeError, match="the value of X-Score must be a str, not 7"):
        header_field("X-Score", 7)  # type: ignore[arg-type]


@given(st.text(), st.booleans())
def test_any_value_makes_one_field_or_is_refused(value: str, utf8: bool) -> None:
    try:
        field = header_field("X-Note", value, utf8=utf8)
    except ValueError:
        return
    assert field.startswith(b"X-Note:")
    assert field.endswith(b"\r\n")
    for line in field[:-2].split(b"\r\n")[1:]:
        assert line[:1] in b" \t"
        assert line.strip()
    assert b"\r" not in field.replace(b"\r\n", b"")
    assert b"\n" not in field.replace(b"\r\n", b"")
    assert max(map(len, field.split(b"\r\n"))) <= 998 or utf8
