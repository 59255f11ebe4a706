"""Text of a peer for a log: on one line, bounded, escaped."""

from __future__ import annotations

from typing import Any

import pytest

from greensmtp.protocol import log_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("b\u00fccher = x", "b\u00fccher = x"),
        ("a\r\nb\0", "a\\r\\nb\\x00"),
        ("a\u2028b\u200e", "a\\u2028b\\u200e"),
        ("\ud800 \U000e0001", "\\ud800 \\U000e0001"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert log_text.printable(text) == log_text.shown(text) == shown


@pytest.mark.parametrize("char", ["x", "\n"])
def test_a_long_text_is_cut_and_tells_how_much_is_missing(char: str) -> None:
    escaped = char if char == "x" else "\\n"
    assert log_text.shown(char * 10, 10) == escaped * 10
    assert log_text.shown(char * 11, 10) == escaped * 10 + "...(1 more)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (0, "0"),
        ("plain", "plain"),
        ("a b<c>;", "a\\x20b\\x3cc\\x3e\\x3b"),
        ("to=x y=z", "to\\x3dx\\x20y=z"),
    ],
)
def test_a_word_looks_like_no_other_field(value: object, shown: str) -> None:
    assert log_text.word(value) == shown


def test_addresses_are_a_list_that_tells_how_many_are_not_in_it() -> None:
    assert log_text.addresses([], 0) == "-"
    assert log_text.addresses(["", "a@b"], 2) == "<>,<a@b>"
    assert log_text.addresses(["a@b"], 3) == "<a@b>,...(2 more)"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("tag=9@example.org", "<tag=9@example.org>"),
        ('"a b"@example.org', r'<"a\x20b"@example.org>'),
        ('"a<b"@example.org', r'<"a\x3cb"@example.org>'),
        ('"a>b"@example.org', r'<"a\x3eb"@example.org>'),
        ('"a;b"@example.org', r'<"a\x3bb"@example.org>'),
        ("size=9@example.org", r"<size\x3d9@example.org>"),
        ("", "<>"),
    ],
)
def test_an_address_is_one_word_without_fields(given: str, shown: str) -> None:
    assert log_text.address(given) == shown
    assert log_text.addresses([given], 1) == shown
    assert log_text.addresses([given, given], 5) == f"{shown},{shown},...(3 more)"


def test_a_long_address_is_cut() -> None:
    text = "x" * log_text.MAX_LENGTH
    assert log_text.address(text) == f"<{text}>"
    assert log_text.address(f"{text}yyy") == rf"<{text}...(3\x20more)>"
    assert log_text.addresses([], 0) == "-"


@pytest.mark.parametrize(("value", "shown"), [(7, "<7>"), (b"a b", r"<b'a\x20b'>"), (None, "<None>")])
def test_an_address_of_another_type_is_shown(value: Any, shown: str) -> None:
    """A middleware has set it. The line must not be lost."""
    assert log_text.address(value) == shown
