"""xtext, by RFC 3461 section 4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.errors import ProtocolError
from greensmtp.protocol.xtext import decode_xtext, encode_xtext, is_xtext


@pytest.mark.parametrize(
    ("text", "meant"),
    [("", ""), ("jo@example.com", "jo@example.com"), ("e+3Dmc2+2B", "e=mc2+"), ("+C3+BC", "\u00fc"), ("+20", " ")],
)
def test_xtext_is_decoded(text: str, meant: str) -> None:
    assert decode_xtext(text) == meant


@pytest.mark.parametrize(
    "text", ["+", "+3", "+3d", "+zz", "a=b", "a b", "\u00fc", "+FF", "+ED+A0+80", "a\n", "+\uff11\uff12"]
)
def test_malformed_xtext_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_xtext(text)


@given(st.text())
def test_encoded_text_decodes_to_itself(text: str) -> None:
    try:
        octets = text.encode()
    except UnicodeEncodeError:
        return
    encoded = "".join(chr(octet) if 33 <= octet <= 126 and octet not in b"+=" else f"+{octet:02X}" for octet in octets)
    assert decode_xtext(encoded) == text


@given(st.text(alphabet="+=0123456789ABCDEFabcdef@ \u00fc"))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        decode_xtext(text)
    except ProtocolError:
        pass


@given(st.text())
def test_encoded_and_decoded(text: str) -> None:
    try:
        encoded = encode_xtext(text)
    except ProtocolError:
        assert any("\ud800" <= character <= "\udfff" for character in text)
        return
    assert is_xtext(encoded)
    assert decode_xtext(encoded) == text


def test_is_xtext() -> None:
    assert is_xtext("jo+2Bx@example.com")
    assert not is_xtext("jo+x@example.com")
    assert not is_xtext("a b")
    assert not is_xtext("a=b")
