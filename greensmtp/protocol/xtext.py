"""xtext (RFC 3461 section 4) and unitext (RFC 6533 section 3): characters that a parameter's value may not have."""

from __future__ import annotations

import re

from greensmtp.protocol.errors import ProtocolError

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEXCHAR = re.compile(r"\+(..)")
_NOT_PLAIN = re.compile(rb"[^!-*,-<>-~]")


def is_xtext(text: str) -> bool:
    """Return True if the text is xtext already."""
    return _XTEXT.fullmatch(text) is not None


def encode_xtext(text: str) -> str:
    """Encode ``"jo+x@example.com"`` as ``"jo+2Bx@example.com"``; characters beyond ASCII become bytes of UTF-8.

    :raises ProtocolError: the text has lone surrogates.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ProtocolError(f"xtext cannot have lone surrogates in it: {text[:60]!r}") from None
    return _NOT_PLAIN.sub(lambda match: b"+%02X" % match[0][0], data).decode()


def decode_xtext(text: str) -> str:
    """Decode ``"jo+2Bx@example.com"`` to ``"jo+x@example.com"``.

    :raises ProtocolError: the text is not xtext, or the bytes that it encodes are not UTF-8.
    """
    if not _XTEXT.fullmatch(text):
        raise ProtocolError("malformed xtext: a + is followed by two hexadecimal digits in upper case")
    try:
        return _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1").decode()
    except UnicodeDecodeError:
        raise ProtocolError("malformed xtext: the bytes that it encodes are not UTF-8") from None


# Unitext: the address of ``ORCPT=utf-8;``. U+00FC is itself, which needs SMTPUTF8, or ``\\x{FC}``.

# (The class is negated: a range up to U+10FFFF takes milliseconds to compile.)
_UNITEXT = re.compile(r"(?:[^\x00-\x20+=\\\x7f-\x9f]|\\x\{[0-9A-F]{2,6}\})+")
_HEXPOINT = re.compile(r"\\x\{([0-9A-F]+)\}")
#: Not printable, but a part of names in Persian and Hindi (RFC 5892 appendix A).
_JOINERS = {0x200C: None, 0x200D: None}
_NOT_UNITEXT = re.compile(r"[^!-*,-<>-\[\]-~]")


def encode_unitext(text: str) -> str:
    """Encode ``"jörg@example.com"`` as ``"j\\x{F6}rg@example.com"``, which is ASCII and needs no SMTPUTF8.

    :raises ProtocolError: the text is empty, or is not text.
    """
    encoded = _NOT_UNITEXT.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", text)
    decode_unitext(encoded)
    return encoded


def decode_unitext(text: str) -> str:
    """Decode ``"j\\x{F6}rg@example.com"`` to ``"jörg@example.com"``.

    :raises ProtocolError: the text is not unitext, or has control characters or lone surrogates.
    """
    if not _UNITEXT.fullmatch(text):
        raise ProtocolError("malformed unitext: a character outside of it is like \\x{F6}, in upper case")
    try:
        decoded = _HEXPOINT.sub(lambda match: chr(int(match[1], 16)), text)
    except ValueError:
        raise ProtocolError("malformed unitext: there is no such character") from None
    if not decoded.translate(_JOINERS).isprintable():
        raise ProtocolError("malformed unitext: it has control characters")
    return decoded
