"""Write message objects of the standard library's email package as bytes.

- A parsed message is written as it was read: fields that are still the text of their source, and bodies, are unchanged.
- A composed message is written as the email package writes it.
- The caller's message is never changed: the generator works on a copy, since it sets policies and boundaries.
"""

from __future__ import annotations

import copy
import io
import re
import secrets
import socket
from base64 import encodebytes
from binascii import b2a_qp
from email.errors import CloseBoundaryNotFoundDefect, MessageError, MissingHeaderBodySeparatorDefect
from email.generator import BytesGenerator
from email.header import Header
from email.message import Message
from email.mime.base import MIMEBase
from email.policy import SMTPUTF8, EmailPolicy, Policy
from email.utils import formatdate
from functools import lru_cache
from time import time
from typing import Any

from greensmtp.errors import ProtocolError
from greensmtp.protocol import address_list, header_envelope
from greensmtp.protocol.dot_stuffing import with_crlf

#: Bytes in a line, without its end (RFC 5322 section 2.1.1).
MAX_LINE_LENGTH = 998

TOO_DEEP = "the message cannot be written: its parts are nested too deeply"

_ENVELOPE_FIELDS = header_envelope.ADDRESS_FIELDS | {"resent-date"}
_NAME = re.compile(r"[!-9;-~]+")
#: The text of a field that can be written unchanged: each continuation line begins with a blank.
_RAW = re.compile(r"(?:[^\r\n\0]++|(?:\r\n|\r|\n)(?=[ \t]))*+")
_HOST_NAME = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_ONE_FIELD = re.compile(rb"(?:[^\r\n\0]++|\r\n(?=[ \t]))*+\r\n")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
#: The beginning of a body that cannot be taken for a header field.
_NOT_A_FIELD = re.compile(r"(?![!-9;-~]*[ \t]*:)[^\s]")
_RAW_UTF8 = SMTPUTF8.clone(max_line_length=0)


def envelope_fields(message: Message[Any, Any]) -> header_envelope.Fields:
    """Return the fields that name senders and recipients.

    :raises ProtocolError: one of them cannot be read as text.
    """
    return [(lower, _text(value)) for name, value in message.raw_items() if (lower := name.lower()) in _ENVELOPE_FIELDS]


def is_signed(message: Message[Any, Any]) -> bool:
    """True if a signature covers the message or a part of it."""
    return any(
        part.get_content_type() in header_envelope.SIGNED_TYPES
        or any(name.lower() in header_envelope.SIGNATURES for name in part)
        for part in message.walk()
    )


def size(message: Message[Any, Any]) -> int:
    """Return about how many characters the message has.

    :raises ProtocolError: the parts are nested too deeply.
    """
    total = 0
    try:
        for part in message.walk():
            payload = getattr(part, "_payload", "")
            total += len(payload) if isinstance(payload, str) else 0
            total += sum(len(value) for _, value in part.raw_items() if isinstance(value, str))
    except RecursionError:
        raise ProtocolError(TOO_DEEP) from None
    return total


def missing_fields(message: Message[Any, Any], sender: str) -> bytes:
    """Return the Date and Message-ID (RFC 5322 section 3.6) that a composed message lacks.

    Nothing is added to a parsed or signed message.
    """
    composed = isinstance(message, MIMEBase) or (
        isinstance(message.policy, EmailPolicy) and all(hasattr(value, "name") for _, value in message.raw_items())
    )
    names = {name.lower() for name in message}
    if not composed or names & header_envelope.SIGNATURES:
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


def render(message: Message[Any, Any], *, utf8: bool = False, seven_bit: bool = False) -> bytes:
    """Return the message as bytes, without Bcc.

    :param utf8: write composed fields as raw UTF-8 (RFC 6532).
    :param seven_bit: encode bodies that are not ASCII, or binary.
    :raises ProtocolError: the message cannot be written.
    """
    data = io.BytesIO()
    try:
        own = _copy(message, seven_bit=seven_bit)
        # An empty line always ends the header section of the message itself.
        own.defects = [defect for defect in own.defects if not isinstance(defect, MissingHeaderBodySeparatorDefect)]
        for name in ("bcc", "resent-bcc"):
            if name in message:
                del own[name]
        if seven_bit and "mime-version" not in own and "content-transfer-encoding" in own:
            own["MIME-Version"] = "1.0"
        _Writer(data, mangle_from_=False, policy=_policy(message.policy, utf8)).flatten(own)
    except RecursionError:
        raise ProtocolError(TOO_DEEP) from None
    except (MessageError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ProtocolError(f"the message cannot be written: {type(error).__name__}: {error}") from error
    return data.getvalue()


@lru_cache(maxsize=64)
def _policy(policy: Policy[Any], utf8: bool) -> Policy[Any]:
    if utf8 and not isinstance(policy, EmailPolicy):
        policy = SMTPUTF8
    policy = policy.clone(linesep="\r\n", cte_type="8bit", mangle_from_=False)
    return policy.clone(utf8=True) if isinstance(policy, EmailPolicy) and utf8 else policy


def _copy(message: Message[Any, Any], *, seven_bit: bool) -> Message[Any, Any]:
    """Return a copy with its own lists of fields and parts."""
    own = copy.copy(message)
    del own[""]  # makes a new list of fields, even without such a field
    if own.is_multipart():
        parts: Any = message.get_payload()
        own.set_payload([_copy(part, seven_bit=seven_bit) for part in parts])
        if seven_bit and _encoding(own) in ("8bit", "binary"):
            own.replace_header("Content-Transfer-Encoding", "7bit")
    else:
        text = getattr(own, "_payload", None)
        if isinstance(text, str) and not text.isascii() and not _SURROGATE.search(text):
            # Parsed from text rather than bytes: the generator cannot write it.
            charset = own.get_content_charset("utf-8")
            data = text.encode("utf-8" if charset == "us-ascii" else charset)
            own.set_payload(data.decode("ascii", "surrogateescape"))
        if seven_bit:
            _encode_body(own)
    return own


def _encoding(part: Message[Any, Any]) -> str:
    return str(part.get("content-transfer-encoding", "")).strip().lower()


def _encode_body(part: Message[Any, Any]) -> None:
    """Apply a transfer encoding (RFC 2045 section 6) to a body that is not ASCII, or binary."""
    encoding = _encoding(part)
    if encoding not in ("", "7bit", "8bit", "binary"):
        return
    data: Any = part.get_payload(decode=True)
    if not data or (data.isascii() and encoding != "binary"):
        if encoding == "8bit":
            part.replace_header("Content-Transfer-Encoding", "7bit")
        return
    encoding, encoded = "base64", b""
    if part.get_content_maintype() == "text" and b"\0" not in data:
        lines = with_crlf(data)
        quoted = b2a_qp(lines.replace(b"\r\n", b"\n"), istext=True)
        encoded = encodebytes(lines)
        if len(quoted) <= len(encoded):
            encoding, encoded = "quoted-printable", quoted
    else:
        encoded = encodebytes(data)
    if "content-type" not in part:
        part["Content-Type"] = f'text/plain; charset="{"utf-8" if header_envelope.is_utf8(data) else "unknown-8bit"}"'
    part.set_payload(encoded.decode())
    if "content-transfer-encoding" in part:
        part.replace_header("Content-Transfer-Encoding", encoding)
    else:
        part["Content-Transfer-Encoding"] = encoding


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


class _Writer(BytesGenerator):
    """The email package's generator, changed for parsed fields and binary bodies."""

    _fp: Any

    def _write_headers(self, msg: Any) -> None:
        for name, value in msg.raw_items():
            self._fp.write(_field(name, value, self.policy))
        if not _lacks_empty_line(msg):
            self._fp.write(b"\r\n")

    def _write_lines(self, lines: Any) -> None:
        # In one step: the package's own loop over lines holds the interpreter lock for 0.3 s with 8 MB.
        if lines:
            self._fp.write(with_crlf(lines.encode("ascii", "surrogateescape")))

    def _dispatch(self, msg: Any) -> None:
        # A body that is text is written as text, even if its type is multipart and no parts were found.
        if msg.is_multipart():
            super()._dispatch(msg)  # type: ignore[misc]
        else:
            self._handle_text(msg)

    def _handle_multipart(self, msg: Any) -> None:
        super()._handle_multipart(msg)  # type: ignore[misc]
        if msg.epilogue is None and _has_defect(msg, CloseBoundaryNotFoundDefect):
            # The parsed message had no closing delimiter, and a signature would not cover an added one.
            end = f"\r\n--{msg.get_boundary()}--\r\n".encode("ascii", "surrogateescape")
            at = self._fp.tell() - len(end)
            self._fp.seek(at)
            if self._fp.read() == end:
                self._fp.seek(at)
                self._fp.truncate()

    def _handle_text(self, msg: Any) -> None:
        if _encoding(msg) == "binary" and not msg.is_multipart():
            self._fp.write(msg.get_payload(decode=True) or b"")
        else:
            super()._handle_text(msg)  # type: ignore[misc]

    _writeBody = _handle_text


def _has_defect(part: Any, kind: type[Exception]) -> bool:
    return any(isinstance(defect, kind) for defect in part.defects)


def _lacks_empty_line(part: Any) -> bool:
    """True if a part was read without an empty line after its header section, and its body does not begin like a field.

    (base64 in message/rfc822 is parsed like that.)
    """
    if not _has_defect(part, MissingHeaderBodySeparatorDefect):
        return False
    text = getattr(part, "_payload", None)
    return isinstance(text, str) and _NOT_A_FIELD.match(text) is not None


def _field(name: str, value: Any, policy: Any) -> bytes:
    if not _NAME.fullmatch(name):
        raise ValueError(f"invalid header field name {name[:40]!r}")
    is_source = isinstance(value, str) and not hasattr(value, "name")
    if is_source and _RAW.fullmatch(value):
        data = f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")
        # With the compat32 policy, composed fields are plain text too: long or non-ASCII ones need folding.
        if isinstance(policy, EmailPolicy) or (
            (value.isascii() or _SURROGATE.search(value)) and max(map(len, data.splitlines())) <= MAX_LINE_LENGTH
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
            # Its str() may lack what could not be parsed, and the field may be written decoded.
            if any("invalid" in defect for defect in defects):
                raise ProtocolError(
                    f"the {value.name} field cannot be read as a list of addresses from {str(value)!r} on"
                )
        elif defects:
            # What could not be parsed is missing in its str(), but is written.
            folded: str = value.fold(policy=_RAW_UTF8)
            return folded.partition(":")[2].strip()
        return header_envelope.text_of(str(value).encode("utf-8", "surrogateescape"))
    except (MessageError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ProtocolError(f"a header field cannot be read: {type(error).__name__}: {error}") from error
