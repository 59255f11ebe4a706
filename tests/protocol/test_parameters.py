"""ESMTP parameters: keywords and values, malformed ones, and keywords that stand there twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol.esmtp import parse_parameters

KEYWORDS = st.text("AZ09-", min_size=1).filter(lambda text: text[0] != "-")
VALUES = st.none() | st.text([*map(chr, range(33, 127)), "ä", "€", "\U0001f600"], min_size=1).filter(
    lambda text: "=" not in text
)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", {}),
        ("   ", {}),
        ("SIZE=1000", {"SIZE": "1000"}),
        ("size=1000 Body=8bitmime smtputf8", {"SIZE": "1000", "BODY": "8bitmime", "SMTPUTF8": None}),
        ("  SIZE=1    BODY=7BIT  ", {"SIZE": "1", "BODY": "7BIT"}),
        ("RET=HDRS ENVID=QQ+3D314159", {"RET": "HDRS", "ENVID": "QQ+3D314159"}),
        ("NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;jo@x.org", {"NOTIFY": "SUCCESS,FAILURE", "ORCPT": "rfc822;jo@x.org"}),
        ("AUTH=<>", {"AUTH": "<>"}),
        ("8=x X-1-=y", {"8": "x", "X-1-": "y"}),
        ("ORCPT=utf-8;jörg@bücher.example", {"ORCPT": "utf-8;jörg@bücher.example"}),
    ],
)
def test_parameters_are_parsed(text: str, parameters: dict[str, str | None]) -> None:
    assert parse_parameters(text) == parameters


@pytest.mark.parametrize(
    "text",
    [
        "=",
        "=1000",
        "SIZE=",
        "SIZE= 1000",
        "SIZE =1000",
        "SIZE==1",
        "ENVID=a=b",
        "-SIZE=1",
        "SI_ZE=1",
        "SIZE:1",
        "SIZE=1;BODY=7BIT",
        "SIZE=1\0",
        "SIZE=1\n",
        "SIZE=1\x7f",
        "ÄÖ=1",
        "SIZE²",
        "\u017fIZE=1",  # upper() makes an S of it
        # What str.split() takes for a blank, and SMTP does not:
        "SIZE=1\tBODY=7BIT",
        "SIZE=1\x0bBODY=7BIT",
        "SIZE=1\x0cBODY=7BIT",
        "SIZE=1\x1cBODY=7BIT",
        "SIZE=1\x85BODY=7BIT",
        "SIZE=1\xa0BODY=7BIT",
        "SIZE=1\u2028BODY=7BIT",
        "X=\ud800",
    ],
)
def test_malformed_parameters_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="malformed parameter"):
        parse_parameters(text)


@pytest.mark.parametrize("text", ["SIZE=1 SIZE=1", "SIZE=1 size=2", "SMTPUTF8 SMTPUTF8", "A=1 B=2 a", "A A=1"])
def test_a_keyword_given_twice_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match=r"parameter given twice: (SIZE|SMTPUTF8|A)$"):
        parse_parameters(text)


def test_a_long_parameter_is_shortened_in_the_error() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_parameters("=" * 12_000)
    assert len(str(caught.value)) < 100


def test_the_shared_empty_parameters_are_read_only() -> None:
    with pytest.raises(TypeError):
        parse_parameters("")["SIZE"] = "1"  # type: ignore[index]


@given(st.dictionaries(KEYWORDS, VALUES))
def test_parameters_are_parsed_in_their_order(parameters: dict[str, str | None]) -> None:
    text = " ".join(key if value is None else f"{key}={value}" for key, value in parameters.items())
    assert list(parse_parameters(text).items()) == list(parameters.items())


@given(st.text(st.characters()))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parameters = parse_parameters(text)
    except ProtocolError:
        return
    assert all(key.isascii() and key == key.upper() for key in parameters)
    assert all(value is None or (value and " " not in value) for value in parameters.values())
