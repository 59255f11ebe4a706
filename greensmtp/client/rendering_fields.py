"""Header fields of message objects: read as text, and written as bytes."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Set
from email.errors import MessageError
from email.header import Header
from email.message import Message
from email.mime.base import MIMEBase
from email.policy import SMTPUTF8, EmailPolicy
from email.utils import formatdate
from functools import lru_cache
from time import time
from typing import Any

from greensmtp.errors import ProtocolError
from greensmtp.protocol import address_list, header_envelope
from greensmtp.protocol.dot_stuffing import with_crlf

#: Maximum length of a line in bytes, without CRLF (RFC 5322 section 2.1.1).
MAX_LINE_LENGTH = 998

#: Characters that stand for non-ASCII bytes in parsed text.
SURROGATE = re.compile(r"[\ud800-\udfff]")
_ENVELOPE_FIELDS = header_envelope.ADDRESS_FIELDS | {"resent-date"}
_NAME = re.compile(r"[!-9;-~]+")
#: The text of a field that can be written unchanged: each continuation line begins with a blank.
_RAW = re.compile(r"(?:[^\r\n\0]++|(?:\r\n|\r|\n)(?=[ \t]))*+")
_ONE_FIELD = re.compile(rb"(?:[^\r\n\0]++|\r\n(?=[ \t]))*+\r\n")
_HOST_NAME = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_RAW_UTF8 = SMTPUTF8.clone(max_line_length=0)


def envelope_fields(message: Message[Any, Any]) -> header_envelope.Fields:
    """Return the fields that name senders and recipients.

    :raises ProtocolError: one of them cannot be read as text.
    """
    return [(lower, _text(value)) for name, value in message.raw_items() if (lower := name.lower()) in _ENVELOPE_FIELDS]


def is_composed(message: Message[Any, Any]) -> bool:
    """True if the program has written the message, rather than parsed it."""
    return isinstance(message, MIMEBase) or (
        isinstance(message.policy, EmailPolicy) and all(hasattr(value, "name") for _, value in message.raw_items())
    )


def missing_fields(names: Set[str], sender: str) -> bytes:
    """Return the Date and Message-ID (RFC 5322 section 3.6) that a message lacks; nothing is added to a signed one.

    :param names: the names of its header fields, in lower case.
    """
    if names & header_envelope.SIGNATURES:
        return b""
    lines: list[str] = []
    if "date" not in names:
        lines.append(f"Date: {_date(int(time()))}\r\n")
    if "message-id" not in names:
        domain = address_list.a_labels(sender.rpartition("@")[2]) if "@" in sender else _own_name()
        lines.append(f"Message-ID: <{secrets.token_hex(16)}@{domain or _own_name()}>\r\n")
    return "".join(lines).encode()


@lru_cache(maxsize=1)
def _date(now: int) -> str:
    return formatdate(now, localtime=True)


def _own_name() -> str:
    """Return this machine's name if it can be the right side of a Message-ID, else ``localhost``."""
    name = socket.gethostname()
    return name if _HOST_NAME.fullmatch(name) else "localhost"


def write_field(name: str, value: Any, policy: Any) -> bytes:
    """Return a field in its wire form: unchanged from its source, or folded by the policy.

    :raises ValueError: the result is not one field.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected the name of a header field; got {name[:40]!r}")
    is_source = isinstance(value, str) and not hasattr(value, "name")
    if is_source and _RAW.fullmatch(value):
        data = f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")
        # With the compat32 policy, composed fields are plain text too: long or non-ASCII ones need folding.
        if isinstance(policy, EmailPolicy) or (
            (value.isascii() or SURROGATE.search(value)) and max(map(len, data.splitlines())) <= MAX_LINE_LENGTH
        ):
            return with_crlf(data)
    if getattr(policy, "utf8", False):
        return _fold(name, value, policy)
    is_list = hasattr(type(value), "addresses") or name.lower() in header_envelope.ADDRESS_FIELDS
    if is_list and (not (text := _text(value)).isascii() or ('"' in text and _has_encoded_word(value))):
        # The email package writes encoded words into addresses, and drops the quotes around a name with a comma, which
        # turns the name into an address.
        try:
            return header_envelope.folded_list(name, text)
        except ProtocolError:
            if _is_readable(text, name):
                return f"{name}: {text}\r\n".encode()  # which needs SMTPUTF8
    return _fold(name, value, policy)


def _fold(name: str, value: Any, policy: Any) -> bytes:
    """Return a field as the policy folds it.

    :raises ValueError: the result is not one field.
    """
    data: bytes = policy.fold_binary(name, value)
    if _ONE_FIELD.fullmatch(data) and b"=?" not in data:
        return data
    data = with_crlf(data)
    text = _text(value)
    if text.isascii() and "=?" not in text:
        # The email package turns a long token (a signature, say) into encoded words, or puts an empty line before it.
        data = header_envelope.folded(name, text)
    if not _ONE_FIELD.fullmatch(data):
        raise ValueError(f"the {name} field would end before its value does")
    return data


def _text(value: Any) -> str:
    """Return a field's text as it is, or will be, in the message.

    :raises ProtocolError: it cannot be read as text.
    """
    try:
        if isinstance(value, Header):
            text = value.encode(maxlinelen=0)
            # Header("Jo <jo@example.com>", "utf-8") hides the address in an encoded word.
            return text if "@" in text else str(value)
        defects = [str(defect) for defect in getattr(value, "defects", ())]
        if defects and _has_encoded_word(value):
            # Its str() may lack the parts that could not be parsed, and the field may be written decoded.
            if any("invalid" in defect for defect in defects):
                raise ProtocolError(
                    f"the {value.name} field cannot be read as a list of addresses from {str(value)!r} on"
                )
        elif defects:
            # Parts that could not be parsed are missing in its str(), but are written.
            folded: str = value.fold(policy=_RAW_UTF8)
            return folded.partition(":")[2].strip()
        return header_envelope.text_of(str(value).encode("utf-8", "surrogateescape"))
    except (MessageError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ProtocolError(f"a header field cannot be read: {type(error).__name__}: {error}") from error


def _has_encoded_word(value: Any) -> bool:
    """True if this field was composed from text with encoded words, or if that is unknown."""
    tokens = [getattr(value, "_parse_tree", None)] if hasattr(type(value), "addresses") else []
    for token in tokens:
        if token is None or getattr(token, "token_type", "") == "encoded-word":
            return True
        if isinstance(token, list):
            tokens += token
    return False


def _is_readable(text: str, name: str) -> bool:
    try:
        return bool(address_list.read(text, name))
    except ProtocolError:
        return False
