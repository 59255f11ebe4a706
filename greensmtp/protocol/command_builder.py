"""Commands as a client writes them (RFC 5321 section 4.1): arguments in, exactly one line out, or an error.

No argument can end its line: CR, LF, NUL and the other control characters are refused before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from greensmtp.protocol.address import Address
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.esmtp import parse_parameters
from greensmtp.protocol.mailbox import MAX_LABEL, quote_local_part
from greensmtp.protocol.options import MailOptions, RcptOptions
from greensmtp.protocol.xtext import encode_unitext, encode_xtext, is_xtext

#: Parameters of MAIL and RCPT: ``"SIZE=1000 SMTPUTF8"``, or ``{"SIZE": 1000, "SMTPUTF8": None}``.
Ext = str | Mapping[str, str | int | None] | None

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: A usual mailbox, which needs no parsing.
_USUAL = re.compile(r"[A-Za-z0-9_+=-]+(?:\.[A-Za-z0-9_+=-]+)*@[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*")


def check(text: str, what: str = "an argument") -> str:
    """Return the text if it can be a part of a command.

    :param what: the name of the text in errors.
    :raises ProtocolError: it has CR, LF, NUL or another control character.
    :raises TypeError: it is not a str.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {text!r}")
    if not text.isprintable() and _CONTROL.search(text):
        raise ProtocolError(f"{what} cannot have CR, LF, NUL or another control character in it: {text[:60]!r}")
    return text


def line(verb: str, argument: str | None = None) -> bytes:
    """Return ``VERB argument`` with CRLF.

    :raises ProtocolError: a part has a control character, or cannot be encoded as UTF-8.
    """
    text = check(verb if not argument else f"{verb} {argument}")
    try:
        return text.encode() + b"\r\n"
    except UnicodeEncodeError:
        raise ProtocolError(f"an argument cannot have lone surrogates in it: {text[:60]!r}") from None


def mail(address: str, ext: Ext | MailOptions = None) -> bytes:
    """Return MAIL; an empty address is the null sender.

    :raises ProtocolError: the mailbox or the parameters are malformed (RFC 5321 section 4.1.2).
    """
    return line(f"MAIL FROM:<{mailbox(address)}>{parameters(ext)}")


def rcpt(address: str, ext: Ext | RcptOptions = None) -> bytes:
    """Return RCPT.

    :raises ProtocolError: the mailbox is empty or malformed, or the parameters are.
    """
    path = mailbox(address)
    if not path:
        raise ProtocolError("a recipient cannot be empty")
    return line(f"RCPT TO:<{path}>{parameters(ext)}")


def mailbox(address: str) -> str:
    """Return an address as it stands between angle brackets; it may be given with them.

    A domain beyond ASCII becomes A-labels where the local part is ASCII, so that it needs no SMTPUTF8. A domain that
    IDNA does not allow (an emoji, say) is unchanged.

    :raises ProtocolError: the address is malformed.
    """
    check(address, "an address")
    # A domain that is no longer than a label may be needs no look at its labels.
    if _USUAL.fullmatch(address) and len(address) - address.index("@") <= MAX_LABEL + 1:
        return address
    if address.startswith("<") and address.endswith(">"):
        address = address[1:-1]
    parsed = Address.parse(address)
    if parsed.isascii() or not parsed.local_part.isascii():
        return str(parsed)
    return f"{quote_local_part(parsed.local_part)}@{parsed.ascii_domain}"


def parameters(ext: Ext | MailOptions | RcptOptions) -> str:
    """Return parameters as they stand behind a path, with the space before them; ``""`` for none.

    :raises ProtocolError: they are malformed.
    """
    if not ext:
        return ""
    if isinstance(ext, MailOptions | RcptOptions):
        ext = ext.parameters()
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


#: Parameters whose value is xtext -> the end of a prefix that is not (RFC 3461 sections 4.2, 4.4; RFC 4954 section 5).
_XTEXT_PARAMETERS = {"ENVID": "", "AUTH": "", "ORCPT": ";"}


def _value(keyword: str, value: object) -> object:
    """Return a parameter's value as it is sent: encoded as xtext where it is not xtext yet.

    A value that a session received is xtext already. An Address is not: it was decoded.
    """
    separator = _XTEXT_PARAMETERS.get(keyword.upper())
    if separator is None or not isinstance(value, str) or value == "<>":
        return value
    check(value, f"the parameter {keyword}")
    prefix = value[: value.index(separator) + 1] if separator and separator in value else ""
    text = value[len(prefix) :]
    if prefix.lower() == "utf-8;" and not text.isascii():
        return prefix + encode_unitext(text)  # (RFC 6533 section 3: this type has an encoding of its own)
    return value if is_xtext(text) and not isinstance(value, Address) else prefix + encode_xtext(text)
