"""xtext: how a parameter's value holds what it may not have as it is (RFC 3461 section 4)."""

from __future__ import annotations

import re

from greensmtp.protocol.errors import ProtocolError

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEXCHAR = re.compile(r"\+(..)")
_NOT_PLAIN = re.compile(rb"[^!-*,-<>-~]")


def is_xtext(text: str) -> bool:
    """True if this is xtext already."""
    return _XTEXT.fullmatch(text) is not None


def encode_xtext(text: str) -> str:
    """``"jo+x@example.com"`` -> ``"jo+2Bx@example.com"``; characters beyond ASCII as octets of UTF-8.

    :raises ProtocolError: it has lone surrogates in it.
    """
    try:
        octets = text.encode()
    except UnicodeEncodeError:
        raise ProtocolError(f"xtext cannot have lone surrogates in it: {text[:60]!r}") from None
    return _NOT_PLAIN.sub(lambda match: b"+%02X" % match[0][0], octets).decode()


def decode_xtext(text: str) -> str:
    """``"jo+2Bx@example.com"`` -> ``"jo+x@example.com"``.

    :raises ProtocolError: it is no xtext, or what it holds is not UTF-8.
    """
    if not _XTEXT.fullmatch(text):
        raise ProtocolError("malformed xtext: a + is followed by two hexadecimal digits in upper case")
    try:
        return _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1").decode()
    except UnicodeDecodeError:
        raise ProtocolError("malformed xtext: what it holds is not UTF-8") from None
