"""Address lists of From, To and the like (RFC 5322 section 3.4, RFC 6532): parsed in linear time, encoded in ASCII.

The rules of this file:

- A list is parsed as a whole or not at all. If a message went only to the recipients that could be parsed, it would be
  lost for the others. The error names the field and the text from which on it is malformed.
- The obsolete forms (RFC 5322 section 4.4) are accepted: routes, blanks around dots and ``@``, empty members. So are
  common mistakes: ``;`` between addresses, an unquoted display name with dots or ``@``, a group without ``;``.
- The time is linear in the length. One pattern with possessive quantifiers cuts the text into tokens, each tried once;
  nested comments are counted, not recursed into. A member is then parsed from its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from greensmtp.protocol.address import Address
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.header_field import encoded_words
from greensmtp.protocol.mailbox import ascii_domain, quote_local_part

#: Characters of the malformed text that an error shows.
MAX_SHOWN = 60

#: Tokens of one member: more than any address, and few enough that a hostile field is neither kept as millions of them
#: nor read to its end.
MAX_TOKENS = 1_000

_FOLD = re.compile(r"(?:\r\n|\r|\n)(?=[ \t])")
#: (With U+0080 to U+009F: what is not UTF-8 is read as Latin-1, and names in Windows-1252 have quotes and dashes there.
#: An address may not, which ``Address.parse`` sees to.)
_ATOM = r'[^\x00-\x20"(),.:;<>@\[\\\]\x7f]++'
#: Blanks, which a quoted local part may have, and the joiners, which names in Persian and Hindi need (RFC 5892 appendix
#: A): whether a domain may have them where it does, IDNA decides.
_INVISIBLE = re.compile(r"[ \u200c\u200d]")
_TOKEN = re.compile(
    rf"""[ \t\r\n]++
    | (?P<word>{_ATOM}(?:\.{_ATOM})*+)
    | (?P<special>[,.:;<>@])
    | (?P<quoted>"(?:[^"\\]++|\\.)*+")
    | (?P<comment>\()
    | (?P<literal>\[(?:[^\[\]\\]++|\\.)*+\])""",
    re.VERBOSE | re.DOTALL,
)
_IN_COMMENT = re.compile(r"(?:[^()\\]++|\\.)*+([()])", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
#: A usual member: an address, perhaps in angle brackets behind a display name. It is a short cut past the tokens and
#: ``Address.parse``, for long lists.
_USUAL_MEMBER = re.compile(
    rf"""[ \t\r\n]*+
    (?:(?:{_ATOM}(?:\.{_ATOM})*+[ \t\r\n]++|"[^"\\]*+"[ \t\r\n]*+)*+(<))?+
    ([A-Za-z0-9_+=-]++(?:\.[A-Za-z0-9_+=-]++)*+@(?=[A-Za-z0-9.-]{{1,63}}+(?![A-Za-z0-9.-]))
     [A-Za-z0-9]++(?:[.-][A-Za-z0-9]++)*+)
    (?(1)>)[ \t\r\n]*+(?:[,;]|\Z)""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    #: ``word`` (atoms with dots between them), ``quoted``, ``literal``, or the special character itself.
    kind: str
    text: str
    start: int
    end: int


class _Member(NamedTuple):
    """One member of a list, as tokens: the text before the angle brackets, and the address."""

    phrase: list[_Token]
    address: list[_Token]


class _Malformed(Exception):
    """The list is malformed from ``start`` on; up to ``end`` if that is known."""

    def __init__(self, start: int, end: int | None = None, why: str = "") -> None:
        self.start, self.end, self.why = start, end, why


def read(text: str, field: str) -> list[str]:
    """Return the addresses of a list and of its groups, in order, as they stand between angle brackets.

    :param field: the header field's name, for the error.
    :raises ProtocolError: a part of the list is malformed; the text names the field and that part.
    """
    text = _FOLD.sub("", text)
    found: list[str] = []
    at = 0
    while (usual := _USUAL_MEMBER.match(text, at)) is not None:
        found.append(usual[2])
        at = usual.end()
    try:
        found += [_mailbox(member.address) for member in _members(_tokens(text, [], at)) if member.address]
    except _Malformed as error:
        raise _unreadable(field, text, error) from None
    return found


def encode(text: str, field: str) -> str:
    """Return the list in ASCII: encoded words in display names and comments (RFC 2047), A-labels in domains.

    :raises ProtocolError: the list is malformed, or a local part is not ASCII, which needs SMTPUTF8.
    """
    text = _FOLD.sub("", text)
    comments: list[tuple[int, int]] = []
    changes: list[tuple[int, int, str]] = []
    try:
        for phrase, address in _members(_tokens(text, comments)):
            _encode_phrase(text, phrase, changes)
            if address:
                _mailbox(address)
                _encode_address(address, changes)
    except _Malformed as error:
        raise _unreadable(field, text, error) from None
    for start, end in comments:
        if not text[start:end].isascii():
            changes.append((start, end, f"({encoded_words(_unescaped(text[start + 1 : end - 1]))})"))
    pieces: list[str] = []
    at = 0
    for start, end, new in sorted(changes):
        if start < at:
            raise ProtocolError(f"cannot encode the {field} field: it has a comment inside a display name")
        pieces += (text[at:start], new)
        at = end
    result = "".join([*pieces, text[at:]])
    if not result.isascii():
        raise ProtocolError(f"cannot encode the {field} field without SMTPUTF8")
    return result


def a_labels(domain: str) -> str | None:
    """Return a domain's A-label form (UTS 46, not transitional: ``ß`` stays ``ß``), or None if it has none."""
    encoded = ascii_domain(domain)
    return encoded if encoded.isascii() else None


# Tokens


def _tokens(text: str, comments: list[tuple[int, int]], at: int = 0) -> Iterator[_Token]:
    """Yield the tokens from ``at`` on, without blanks and comments; add the places of comments to the list."""
    end = len(text)
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise _Malformed(at)
        kind, start, at = found.lastgroup, at, found.end()
        if kind == "comment":
            at = _end_of_comment(text, start)
            comments.append((start, at))
        elif kind is not None:
            token = found[0]
            yield _Token(token if kind == "special" else kind, token, start, at)


def _end_of_comment(text: str, start: int) -> int:
    depth, at = 1, start + 1
    while depth:
        found = _IN_COMMENT.match(text, at)
        if found is None:
            raise _Malformed(start)
        depth += 1 if found[1] == "(" else -1
        at = found.end()
    return at


# Members


def _members(tokens: Iterator[_Token]) -> Iterator[_Member]:
    """Yield the members of a list and of its groups; a group's name is a phrase without an address."""
    member: list[_Token] = []
    opened: _Token | None = None
    in_group = False
    for token in tokens:
        kind = token.kind
        if len(member) > MAX_TOKENS:
            raise _Malformed(member[0].start)
        if opened is not None:
            if kind == "<":
                raise _Malformed(opened.start)
            if kind == ">":
                opened = None
            member.append(token)
        elif kind in (",", ";"):
            if member:
                yield _split(member)
                member = []
            if kind == ";":
                in_group = False
        elif kind == ":":
            if in_group or not member or any(each.kind in ("@", ">") for each in member):
                raise _Malformed(member[0].start if member else token.start, token.end)
            yield _Member(member, [])
            member, in_group = [], True
        else:
            if kind == "<":
                opened = token
            member.append(token)
    if opened is not None:
        raise _Malformed(opened.start)
    if member:
        yield _split(member)


def _split(member: list[_Token]) -> _Member:
    """Split a member into its display name and the address in angle brackets, or return it as an address."""
    if member[-1].kind != ">":
        return _Member([], member)
    kinds = [token.kind for token in member]
    opening = kinds.index("<") if "<" in kinds else 0
    if kinds.count(">") > 1 or kinds.count("<") != 1:
        raise _Malformed(member[0].start, member[-1].end)
    inside = member[opening + 1 : -1]
    if not inside:
        raise _Malformed(member[0].start, member[-1].end, "the angle brackets are empty")
    if inside[0].kind in ("@", ","):
        # A route, to be ignored (RFC 5322 section 4.4).
        colon = kinds.index(":") if ":" in kinds else 0
        if not colon or not set(kinds[opening + 1 : colon]) <= {"@", ",", ".", "word", "literal"}:
            raise _Malformed(member[0].start, member[-1].end)
        inside = member[colon + 1 : -1]
    return _Member(member[:opening], inside)


def _mailbox(tokens: list[_Token]) -> str:
    """Return a member's address as it stands between angle brackets."""
    if not tokens:
        raise _Malformed(0)
    start, end = tokens[0].start, tokens[-1].end
    kinds = [token.kind for token in tokens]
    if kinds == ["word"] and tokens[0].text.lower() == "postmaster":  # RFC 5321 section 4.5.1
        return tokens[0].text
    if kinds.count("@") != 1:
        raise _Malformed(start, end, "an address needs a domain" if "@" not in kinds else "")
    at = kinds.index("@")
    local_part = _dotted(tokens[:at], ("word", "quoted"))
    literal = kinds[at + 1 :] == ["literal"]
    domain = f"[{_unescaped(tokens[-1].text[1:-1]).strip()}]" if literal else _dotted(tokens[at + 1 :], ("word",))
    if local_part is None or domain is None:
        raise _Malformed(start, end)
    try:
        address = str(Address.parse(f"{quote_local_part(local_part)}@{domain}"))
    except ProtocolError as error:
        raise _Malformed(start, end, str(error)) from None
    if not address.isascii() and not _INVISIBLE.sub("", local_part + domain).isprintable():
        raise _Malformed(start, end, "it has a blank beyond ASCII, or an unprintable character")
    return address


def _dotted(tokens: list[_Token], kinds: tuple[str, ...]) -> str | None:
    """Return words with dots between them as one text, or None if the tokens are anything else."""
    if len(tokens) % 2 == 0 or any(
        token.kind not in kinds if number % 2 == 0 else token.kind != "." for number, token in enumerate(tokens)
    ):
        return None
    return "".join(_unescaped(token.text[1:-1]) if token.kind == "quoted" else token.text for token in tokens)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text


def _unreadable(field: str, text: str, error: _Malformed) -> ProtocolError:
    left = text[error.start : error.end].strip()
    shown = f"{left[:MAX_SHOWN]!r}{'...' if len(left) > MAX_SHOWN else ''}"
    why = f" ({error.why})" if error.why else ""
    return ProtocolError(f"the {field} field cannot be read as a list of addresses from {shown} on{why}")


# Encoding


def _encode_phrase(text: str, phrase: list[_Token], changes: list[tuple[int, int, str]]) -> None:
    if not phrase:
        return
    start, end = phrase[0].start, phrase[-1].end
    if text[start:end].isascii():
        return
    if "=?" in text[start:end]:
        raise _Malformed(start, end, "it mixes encoded words and raw UTF-8")
    pieces: list[str] = []
    last = start
    for token in phrase:
        pieces.append(" " if token.start > last else "")
        pieces.append(_unescaped(token.text[1:-1]) if token.kind == "quoted" else token.text)
        last = token.end
    changes.append((start, end, encoded_words("".join(pieces))))


def _encode_address(tokens: list[_Token], changes: list[tuple[int, int, str]]) -> None:
    at = next((number for number, token in enumerate(tokens) if token.kind == "@"), len(tokens))
    for token in tokens[:at]:
        if not token.text.isascii():
            raise _Malformed(token.start, token.end, "a local part beyond ASCII needs SMTPUTF8")
    for token in tokens[at + 1 :]:
        if not token.text.isascii():
            domain = a_labels(token.text)
            if domain is None:
                raise _Malformed(token.start, token.end, "the domain has no A-label form")
            changes.append((token.start, token.end, domain))
