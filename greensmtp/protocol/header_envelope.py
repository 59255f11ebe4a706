"""The header section of a message to be sent: envelope, Bcc, ASCII form (RFC 5322 section 3.6, RFC 5321 appendix B)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from greensmtp.protocol import address_list
from greensmtp.protocol.errors import EnvelopeMissing, ProtocolError
from greensmtp.protocol.header_field import encoded_words

#: Header fields in order: name in lower case, and text as it stands in the message.
Fields = Sequence[tuple[str, str]]

#: The header fields that hold address lists.
ADDRESS_FIELDS = frozenset(
    f"{resent}{name}" for resent in ("", "resent-") for name in ("from", "sender", "reply-to", "to", "cc", "bcc")
)
#: A message that has one of these was resent (RFC 5322 section 3.6.6).
_RESENT = frozenset(f"resent-{name}" for name in ("date", "from", "sender", "to", "cc", "bcc"))
#: Header fields that sign the message or a part of it: such a message is sent unchanged, or not at all.
SIGNATURES = frozenset({"dkim-signature", "domainkey-signature", "arc-seal", "arc-message-signature"})
SIGNED_TYPES = frozenset({"multipart/signed", "multipart/encrypted", "application/pkcs7-mime"})

#: Header fields whose grammar has no place for encoded words. All others are unstructured text, or address lists.
_STRUCTURED = re.compile(
    r"(?:resent-)?(?:date|message-id)|in-reply-to|references|received(?:-spf)?|return-path|mime-version"
    r"|content-(?!description).*|list-.*|dkim-.*|domainkey-.*|arc-.*|auto-submitted|authentication-results"
    r"|autocrypt(?:-.*)?|disposition-notification-options|feedback-id|delivered-to|x-original-to"
)

_END_OF_LINE = rb"(?:\r\n|\r|\n)"
#: A field with its continuation lines.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:((?:[^\r\n]++|%(end)s(?=[ \t]))*+)(?:%(end)s|\Z)" % {b"end": _END_OF_LINE})
_BCC = re.compile(
    rb"(?:\A|(?<=\n)|(?<=\r)(?!\n))(?:resent-)?bcc[ \t]*+:[^\r\n]*+%(end)s?(?:[ \t][^\r\n]*+%(end)s?)*+"
    % {b"end": _END_OF_LINE},
    re.I,
)
_PREAMBLE = re.compile(rb"(?:\xef\xbb\xbf)?+(?:From [^\r\n]*+%(end)s)?+" % {b"end": _END_OF_LINE})
_FOLD = re.compile(r"(?:\r\n|\r|\n)(?=[ \t])")


def split(message: bytes) -> int:
    """Return the offset of the body, or the length of the message if it has none.

    The header section ends with an empty line; its line ends may be CRLF, LF or CR.
    """
    if message[:1] in (b"\r", b"\n"):
        return 2 if message.startswith(b"\r\n") else 1
    # Two line ends in a row always contain one of these pairs. (``find`` is many times faster than a pattern, and may
    # have to search all of a large message.)
    first = len(message)
    for pair in (b"\n\n", b"\n\r", b"\r\r"):
        found = message.find(pair, 0, first + 1)
        if found >= 0:
            first = found
    end = first + 2
    if end > len(message):
        return len(message)
    return end + (message[first + 1] == 13 and message[end : end + 1] == b"\n")


def without_mbox_line(message: bytes) -> bytes:
    """Return the message without a byte order mark and an mbox file's ``From `` line (RFC 4155)."""
    found = _PREAMBLE.match(message)
    return message[found.end() :] if found is not None and found[0] else message


def without_bcc(head: bytes) -> bytes:
    """Return the header section without Bcc and Resent-Bcc; every other byte is kept."""
    return _BCC.sub(b"", head) if b"bcc" in head.lower() else head


def is_signed(head: bytes) -> bool:
    """True if a signature covers the header section or the body."""
    return any(
        name in SIGNATURES
        or (name == "content-type" and value.partition(b";")[0].strip().lower().decode("latin-1") in SIGNED_TYPES)
        for name, value, _ in _read(head)
    )


def names(head: bytes) -> frozenset[str]:
    """Return the names of the fields, in lower case; those in front of a line that is not a field."""
    return frozenset(name for name, _, _ in _read(head))


def parse(head: bytes) -> Fields:
    """Return the fields.

    :raises ProtocolError: a line is not a header field, so fields behind it might be missed.
    """
    fields: list[tuple[str, str]] = []
    end = len(head)
    for name, value, at in _read(head):
        fields.append((name, text_of(value)))
        end = at
    left = head[end:].strip(b"\r\n")
    if left:
        line = left.splitlines()[0][:60]
        raise ProtocolError(f"the header section has a line that is not a header field: {line!r}")
    return fields


def is_utf8(data: bytes) -> bool:
    """Return True if the bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def text_of(value: bytes) -> str:
    """Return a field's text: decoded as UTF-8 (RFC 6532), or else as Latin-1, which has a character for each byte."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def sender(fields: Fields) -> str:
    """Return the mailbox in Sender, or else the first in From; of a resent message, in the Resent fields.

    :raises ProtocolError: there is none, it is malformed, or the message was resent more than once.
    """
    prefix = _prefix(fields)
    senders = _mailboxes(fields, f"{prefix}Sender") or _mailboxes(fields, f"{prefix}From")
    if not senders:
        raise EnvelopeMissing(f"the message has no {prefix}From or {prefix}Sender header", "sender")
    return senders[0]


def recipients(fields: Fields) -> list[str]:
    """Return the mailboxes in To, Cc and Bcc, each once; of a resent message, in the Resent fields.

    :raises ProtocolError: there is none, one is malformed, or the message was resent more than once.
    """
    prefix = _prefix(fields)
    found = [mailbox for name in ("To", "Cc", "Bcc") for mailbox in _mailboxes(fields, f"{prefix}{name}")]
    if not found:
        raise EnvelopeMissing(f"the message names no recipient in {prefix}To, {prefix}Cc or {prefix}Bcc", "recipients")
    return list(dict.fromkeys(found))


def _prefix(fields: Fields) -> str:
    """Return ``"Resent-"`` if the message was resent (RFC 5322 section 3.6.6), else ``""``."""
    resent = [name for name, _ in fields if name in _RESENT]
    if len(resent) != len(set(resent)):
        raise EnvelopeMissing("the message was resent more than once", "sender", "recipients")
    return "Resent-" if resent else ""


def _mailboxes(fields: Fields, name: str) -> list[str]:
    wanted = name.lower()
    return [mailbox for field, text in fields if field == wanted for mailbox in address_list.read(text, name)]


# ASCII


def in_ascii(head: bytes) -> bytes | None:
    """Return the header section with raw UTF-8 as encoded words (RFC 2047), for servers without SMTPUTF8.

    Fields in ASCII are not touched. Return None if a field cannot be encoded without changing its meaning, or if the
    message is signed.
    """
    if is_signed(head):
        return None
    pieces: list[bytes] = []
    at = 0
    for found in _FIELD.finditer(head):
        if found.start() != at:
            return None
        at = found.end()
        field = found[0]
        if not field.isascii():
            try:
                field = _encoded(found[1].decode(), found[2].decode())
            except (ProtocolError, UnicodeDecodeError):
                return None
        pieces.append(field)
    rest = head[at:]
    return b"".join([*pieces, rest]) if rest.isascii() else None


def _encoded(name: str, value: str) -> bytes:
    value = _FOLD.sub("", value).strip(" \t")
    lower = name.lower()
    if lower in ADDRESS_FIELDS:
        return folded_list(name, value)
    if _STRUCTURED.fullmatch(lower) or "=?" in value:
        raise ProtocolError(f"the {name} field cannot be encoded")
    # One run from the first non-ASCII word to the last: readers drop the blanks between two encoded words.
    words = value.split(" ")
    beyond = [number for number, word in enumerate(words) if not word.isascii()]
    first, last = beyond[0], beyond[-1] + 1
    text = encoded_words(" ".join(words[first:last]))
    return folded(name, " ".join([*words[:first], text, *words[last:]]))


def folded_list(name: str, value: str) -> bytes:
    """Return an address field in ASCII, folded.

    :raises ProtocolError: the list is malformed, or cannot be encoded.
    """
    return folded(name, address_list.encode(value, name))


def folded(name: str, text: str, width: int = 76) -> bytes:
    """Return a field in ASCII, folded at blanks into lines of at most ``width`` characters where possible."""
    lines: list[str] = []
    line, length = [f"{name}:"], len(name) + 1
    for word in text.split(" "):
        # (A line of blanks alone would be an obsolete form, so the word stays in this line.)
        if length + 1 + len(word) > width and word and any(line[1:]):
            lines.append(" ".join(line))
            line, length = ["", word], 1 + len(word)
        else:
            line.append(word)
            length += 1 + len(word)
    return "\r\n".join([*lines, " ".join(line), ""]).encode()


def _read(head: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, value and end of each field, up to the first line that is not one."""
    at = 0
    while (found := _FIELD.match(head, at)) is not None:
        at = found.end()
        yield found[1].decode().lower(), found[2], at
