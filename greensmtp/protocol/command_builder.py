"""Command lines as a client writes them (RFC 5321 section 4.1): arguments in, one line out, or an error and no line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from greensmtp.protocol.address import MAX_LABEL, Address
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.esmtp import encode_xtext, is_xtext, parse_parameters

#: What stands behind MAIL and RCPT: ``"SIZE=1000 SMTPUTF8"``, or ``{"SIZE": 1000, "SMTPUTF8": None}``.
Ext = str | Mapping[str, str | int | None] | None

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: A mailbox as nearly everybody's is; what it does not match is parsed.
_USUAL = re.compile(r"[A-Za-z0-9_+=-]+(?:\.[A-Za-z0-9_+=-]+)*@[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*")


def check(text: str, what: str = "an argument") -> str:
    """Give it back.

    :raises ProtocolError: it has CR, LF, NUL or another control character in it, which could end the command.
    :raises TypeError: it is no str.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {text!r}")
    if not text.isprintable() and _CONTROL.search(text):
        raise ProtocolError(f"{what} cannot have CR, LF, NUL or another control character in it: {text[:60]!r}")
    return text


def line(verb: str, argument: str | None = None) -> bytes:
    """``VERB argument`` and CRLF.

    :raises ProtocolError: see ``check``.
    """
    text = check(verb if not argument else f"{verb} {argument}")
    try:
        return text.encode() + b"\r\n"
    except UnicodeEncodeError:
        raise ProtocolError(f"an argument cannot have lone surrogates in it: {text[:60]!r}") from None


def mail(address: str, ext: Ext = None) -> bytes:
    """MAIL; an empty address is the null sender.

    :raises ProtocolError: no mailbox, or no parameters (RFC 5321 section 4.1.2).
    """
    return line(f"MAIL FROM:<{mailbox(address)}>{parameters(ext)}")


def rcpt(address: str, ext: Ext = None) -> bytes:
    """RCPT.

    :raises ProtocolError: no mailbox, or no parameters.
    """
    path = mailbox(address)
    if not path:
        raise ProtocolError("a recipient cannot be empty")
    return line(f"RCPT TO:<{path}>{parameters(ext)}")


def mailbox(address: str) -> str:
    """What stands between the angle brackets; they may be given too.

    :raises ProtocolError: it is no mailbox.
    """
    check(address, "an address")
    # A domain no longer than a label may be has no label that is longer.
    if _USUAL.fullmatch(address) and len(address) - address.index("@") <= MAX_LABEL + 1:
        return address
    if address.startswith("<") and address.endswith(">"):
        address = address[1:-1]
    return str(Address.parse(address))


def parameters(ext: Ext) -> str:
    """What goes behind a path: a space and the parameters, or nothing.

    :raises ProtocolError: they are not well formed.
    """
    if not ext:
        return ""
    if not isinstance(ext, str):
        words = [
            keyword if value is None or value is True else f"{keyword}={_value(keyword, value)}"
            for keyword, value in ext.items()
        ]
        for word in words:
            if " " in word:
                raise ProtocolError(f"a parameter cannot have a space in it: {word[:40]!r} (write it as xtext: +20)")
        ext = " ".join(words)
    check(ext, "a parameter")
    parse_parameters(ext)
    return f" {ext.strip()}"


#: Parameters whose value is xtext, behind such a prefix (RFC 3461 sections 4.2 and 4.4, RFC 4954 section 5).
_XTEXT_PARAMETERS = {"ENVID": "", "AUTH": "", "ORCPT": ";"}


def _value(keyword: str, value: object) -> object:
    """A parameter's value as it goes on the wire. As a session had it, it is xtext already, but for what is an Address,
    which has been decoded; of what a program gives, that which is no xtext is encoded."""
    separator = _XTEXT_PARAMETERS.get(keyword.upper())
    if separator is None or not isinstance(value, str) or value == "<>":
        return value
    check(value, f"the parameter {keyword}")
    prefix = value[: value.index(separator) + 1] if separator and separator in value else ""
    text = value[len(prefix) :]
    return value if is_xtext(text) and not isinstance(value, Address) else prefix + encode_xtext(text)
