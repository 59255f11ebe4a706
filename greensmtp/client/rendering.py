"""Write message objects of the standard library's email package as bytes.

- A parsed message is written as it was read: fields that are still the text of their source, and bodies, are unchanged.
- A composed message is written as the email package writes it.
- The caller's message is never changed: the generator works on a copy, since it sets policies and boundaries.
"""

from __future__ import annotations

import copy
import io
import re
from base64 import encodebytes
from binascii import b2a_qp
from email.errors import CloseBoundaryNotFoundDefect, MessageError, MissingHeaderBodySeparatorDefect
from email.generator import BytesGenerator
from email.message import Message
from email.policy import SMTPUTF8, EmailPolicy, Policy
from functools import lru_cache
from typing import Any

from greensmtp.client.rendering_fields import SURROGATE, write_field
from greensmtp.errors import ProtocolError
from greensmtp.protocol import header_envelope
from greensmtp.protocol.dot_stuffing import with_crlf

TOO_DEEP = "the message cannot be written: its parts are nested too deeply"

#: The beginning of a body that cannot be mistaken for a header field.
_NOT_A_FIELD = re.compile(r"(?![!-9;-~]*[ \t]*:)[^\s]")


def is_signed(message: Message[Any, Any]) -> bool:
    """True if a signature covers the message or a part of it."""
    return any(
        part.get_content_type() in header_envelope.SIGNED_TYPES
        or any(name.lower() in header_envelope.SIGNATURES for name in part)
        for part in message.walk()
    )


def size(message: Message[Any, Any]) -> int:
    """Return the approximate number of characters of the message.

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
        if isinstance(text, str) and not text.isascii() and not SURROGATE.search(text):
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


class _Writer(BytesGenerator):
    """The email package's generator, changed for parsed fields and binary bodies."""

    _fp: Any

    def _write_headers(self, msg: Any) -> None:
        for name, value in msg.raw_items():
            self._fp.write(write_field(name, value, self.policy))
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
    """True if a part was parsed without an empty line after its header section, and its body cannot be a field.

    (base64 in message/rfc822 is parsed like that.)
    """
    if not _has_defect(part, MissingHeaderBodySeparatorDefect):
        return False
    text = getattr(part, "_payload", None)
    return isinstance(text, str) and _NOT_A_FIELD.match(text) is not None
