"""Responses of clients in a SASL exchange: each mechanism's, parsed strictly. A malformed one raises Refused."""

from __future__ import annotations

import re

from greensmtp.protocol import canned
from greensmtp.protocol.sasl.exchange import Refused

#: Bytes in the name of a user; the longest mailbox has 254 (RFC 5321 section 4.5.3.1.3).
MAX_NAME = 255

#: Characters in a client's SCRAM nonce. The challenge repeats it, and must fit a reply line.
MAX_NONCE = 128


def parse_plain(response: bytes) -> tuple[str, str, str]:
    """Parse ``authzid NUL authcid NUL passwd`` (RFC 4616 section 2)."""
    parts = parse_text(response).split("\0")
    if len(parts) != 3:
        raise Refused(canned.AUTH_MALFORMED)
    authzid, authcid, password = parts
    return authzid and parse_name(authzid), parse_name(authcid), password


def parse_cram_md5(response: bytes) -> tuple[str, str]:
    """Parse ``username SP digest`` (RFC 2195 section 2)."""
    name, _, digest = parse_text(response).rpartition(" ")
    if not _DIGEST.fullmatch(digest):
        raise Refused(canned.AUTH_MALFORMED)
    return parse_name(name), digest


def parse_scram_first(response: bytes) -> tuple[str, str, str]:
    """Parse ``gs2-header client-first-message-bare`` (RFC 5802 section 7); return binding flag, authzid and name."""
    match = _SCRAM_FIRST.fullmatch(parse_text(response))
    if match is None:
        raise Refused(canned.AUTH_MALFORMED)
    authzid = _unescape(match[2] or "")
    return match[1], authzid and parse_name(authzid), parse_name(_unescape(match[3]))


def parse_oauthbearer(response: bytes) -> tuple[str, str]:
    """Parse ``gs2-header kvsep *(key=value kvsep) kvsep`` (RFC 7628 section 3.1); return name and token, or ``""``."""
    match = _OAUTHBEARER.fullmatch(parse_text(response))
    if match is None:
        raise Refused(canned.AUTH_MALFORMED)
    name = _unescape(match[1] or "")
    return name and parse_name(name), _bearer(match[2])


def parse_xoauth2(response: bytes) -> tuple[str, str]:
    """Parse ``user=name ^A auth=Bearer token ^A ^A``; return name and token."""
    match = _XOAUTH2.fullmatch(parse_text(response))
    if match is None:
        raise Refused(canned.AUTH_MALFORMED)
    return parse_name(match[1]), _bearer(match[2])


_DIGEST = re.compile(r"[0-9a-f]{32}")
_SCRAM_FIRST = re.compile(
    rf"(n|y|p=[A-Za-z0-9.-]{{1,64}}),(?:a=([^,\0]+))?,n=([^,\0]+),r=[!-+\--~]{{1,{MAX_NONCE}}}(?:,.*)?"
)
_OAUTHBEARER = re.compile(r"[ny],(?:a=([^,\0]+))?,\x01((?:[A-Za-z]+=[^\0\x01]*\x01)*)\x01")
_XOAUTH2 = re.compile(r"user=([^\0\x01]*)\x01((?:[A-Za-z]+=[^\0\x01]*\x01)*)\x01")
_BEARER = re.compile(r"(?:^|\x01)auth=bearer +([A-Za-z0-9._~+/-]+=*) *\x01", re.IGNORECASE)
_ESCAPED = re.compile(r"=(2C|3D)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def parse_text(response: bytes) -> str:
    """Decode UTF-8."""
    try:
        return response.decode()
    except UnicodeDecodeError:
        raise Refused(canned.AUTH_MALFORMED) from None


def parse_name(name: str) -> str:
    """Return the name of a user if it is short enough, printable, and not empty."""
    if len(name.encode()) > MAX_NAME or _CONTROL.search(name):
        raise Refused(canned.AUTH_MALFORMED)
    if not name:
        raise Refused(canned.AUTH_INVALID)
    return name


def parse_external(response: bytes) -> str:
    """Return the authzid of EXTERNAL; ``""`` for none (RFC 4422 appendix A)."""
    authzid = parse_text(response)
    return parse_name(authzid) if authzid else ""


def parse_password(password: str) -> str:
    """Return a password if it is not empty. (LDAP servers treat an empty one as an anonymous login, which succeeds.)"""
    if "\0" in password:
        raise Refused(canned.AUTH_MALFORMED)
    if not password:
        raise Refused(canned.AUTH_INVALID)
    return password


def _unescape(name: str) -> str:
    """Decode a saslname (RFC 5802 section 7)."""

    def character(match: re.Match[str]) -> str:
        if match[1] is None:
            raise Refused(canned.AUTH_MALFORMED)
        return "," if match[1] == "2C" else "="

    return _ESCAPED.sub(character, name)


def _bearer(pairs: str) -> str:
    """Return the bearer token (RFC 6750 section 2.1); ``""`` if there is none, or another kind of credentials."""
    match = _BEARER.search(pairs)
    return "" if match is None else match[1]
