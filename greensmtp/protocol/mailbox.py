"""The grammar of mailboxes (RFC 5321 section 4.1.2, RFC 6531 section 3.3) and of their domains."""

from __future__ import annotations

import re
from functools import lru_cache

from greensmtp.protocol.errors import ProtocolError

# The character classes are negated: so they include all of Unicode (for SMTPUTF8) and compile fast, where a range up to
# U+10FFFF takes milliseconds. Code points that are not text are excluded by ``is_text``.
_ATOM = r'[^\x00-\x20"(),.:;<>@\[\\\]\x7f-\x9f]+'
#: Letters, digits, hyphens inside, and the underscore, which many real hosts have.
_LABEL = r"[^\x00-/:-@\[-^`{-\x9f](?:[^\x00-,./:-@\[-^`{-\x9f]*[^\x00-/:-@\[-^`{-\x9f])?"
#: Line separators, and code points that UTF-8 cannot encode.
_NOT_TEXT = re.compile(r"[\u2028\u2029\ud800-\udfff]")

# These patterns are not compiled at import: nearly all addresses are parsed in one step (see command.py) without them.
DOT_STRING = rf"{_ATOM}(?:\.{_ATOM})*"
DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_QUOTED = r'"((?:[^\x00-\x1f"\\\x7f-\x9f]|\\[\x20-\x7e])*)"'
_QUOTABLE = r"[^\x00-\x1f\x7f-\x9f]*"
_ESCAPE = r"\\(.)"
_NEEDS_ESCAPE = r'(["\\])'
#: ``@one.example,@two.example:`` at the beginning of a path: accepted and ignored (RFC 5321 appendix C).
_SOURCE_ROUTE = rf"@{_LABEL}(?:\.{_LABEL})*(?:,@{_LABEL}(?:\.{_LABEL})*)*:"
#: Without an @, since the last one of a path is the one before its domain.
_GENERAL_LITERAL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?:[\x21-\x3f\x41-\x5a\x5e-\x7e]+"

#: Bytes in a domain and in a label (RFC 5321 section 4.5.3.1.2, RFC 1035 section 2.3.4).
MAX_DOMAIN = 255
MAX_LABEL = 63
#: Bytes between the angle brackets of a path, which has 256 with them (RFC 5321 section 4.5.3.1.3). A local part may be
#: longer than the 64 that every server must accept (section 4.5.3.1.1): bounce addresses (VERP, SRS) often are.
MAX_PATH = 254


def parse_mailbox(text: str) -> tuple[str, str, str]:
    """Parse the text between ``<`` and ``>``; return the mailbox without a source route, its local part and its domain.

    :raises ProtocolError: the text is not a mailbox; the error says why.
    """
    if not text:
        return "", "", ""
    route = re.match(_SOURCE_ROUTE, text)
    if route:
        text = text[route.end() :]
    quoted = re.match(_QUOTED, text)
    if quoted:
        local_part, rest = re.sub(_ESCAPE, r"\1", quoted[1]), text[quoted.end() :]
        if not rest.startswith("@"):
            raise ProtocolError("a quoted local part must be followed by @ and a domain")
        domain = rest[1:]
        if not is_text(local_part):
            raise ProtocolError(f"malformed local part: {local_part!r}")
    else:
        local_part, at, domain = text.rpartition("@")
        if not at:
            if text.lower() != "postmaster":  # RFC 5321 section 4.5.1
                raise ProtocolError(f"an address needs a domain: {text!r}")
            return text, text, ""
        if not re.fullmatch(DOT_STRING, local_part) or not is_text(local_part):
            raise ProtocolError(f"malformed local part: {local_part!r}")
    domain = lower(domain)  # before the check: a letter may have more bytes in lower case
    check_domain(domain)
    return f"{quote_local_part(local_part)}@{domain}", local_part, domain


def lower(domain: str) -> str:
    """Return a domain in lower case, as UTS 46 has it.

    Each letter by itself: ``str.lower`` makes a final sigma of a capital one at the end of a word, and that is another
    domain.
    """
    return domain.lower() if domain.isascii() else "".join(map(str.lower, domain))


def ascii_domain(domain: str) -> str:
    """Return a domain with A-labels for its U-labels (RFC 5890), or as it is where it has no such form."""
    return domain if domain.isascii() else _encode_domain(domain)


@lru_cache(1024)
def _encode_domain(domain: str) -> str:
    import idna  # its tables take milliseconds to load, and few addresses need them

    try:
        # (UTS 46 maps full-width letters and the like first.)
        return idna.encode(domain, uts46=True).decode().lower()
    except UnicodeError:  # IDNAError is one
        pass
    try:  # (an ASCII label may have an underscore, which idna refuses)
        return ".".join(
            label if label.isascii() else idna.encode(label, uts46=True).decode() for label in domain.split(".")
        )
    except UnicodeError:
        return domain


def is_text(text: str) -> bool:
    """Return True if the text has no line separators beyond ASCII, and can be encoded as UTF-8."""
    return text.isascii() or not _NOT_TEXT.search(text)


def quote_local_part(local_part: str) -> str:
    """Return a local part as it is sent: quoted where it is not a dot-string (RFC 5321 section 4.1.2).

    :raises ProtocolError: it has control characters, which cannot be quoted.
    """
    if not re.fullmatch(_QUOTABLE, local_part) or not is_text(local_part):
        raise ProtocolError(f"a local part cannot have control characters: {local_part!r}")
    if re.fullmatch(DOT_STRING, local_part):
        return local_part
    return '"' + re.sub(_NEEDS_ESCAPE, r"\\\1", local_part) + '"'


def check_domain(domain: str) -> None:
    """Raise ProtocolError unless this is a domain name or an address literal (RFC 5321 section 4.1.3)."""
    if domain.startswith("[") and domain.endswith("]"):
        _check_literal(domain)
    elif not re.fullmatch(DOMAIN, domain) or not is_text(domain):
        raise ProtocolError(f"malformed domain: {domain!r}")
    elif len(domain) > MAX_LABEL and (
        len(domain.encode()) > MAX_DOMAIN or max(map(len, domain.split("."))) > MAX_LABEL
    ):
        raise ProtocolError("domain or label too long (RFC 1035 section 2.3.4)")


def _check_literal(literal: str) -> None:
    from ipaddress import IPv4Address, IPv6Address  # few addresses need it

    inside = literal[1:-1]
    try:
        if inside[:5].lower() == "ipv6:":
            if "%" in inside:
                raise ValueError("a zone has no meaning on another host")
            IPv6Address(inside[5:])
        elif ":" not in inside:
            IPv4Address(inside)
        elif not re.fullmatch(_GENERAL_LITERAL, inside):
            raise ValueError(inside)
    except ValueError:
        raise ProtocolError(f"malformed address literal: {literal!r}") from None
