"""Any bytes as an ``EmailMessage``: the standard library's parser, without the errors that it raises on wild input.

The rules of this file:

- Nothing raises: not parsing, not reading a field, a parameter or a part, not writing the message as bytes again. Where
  the standard library's parser of a field fails, the field is its text.
- A byte order mark before the first field is skipped: editors save it with a message. (The standard library skips the
  ``From `` line of an mbox file.)
- The time is proportional to the size. The parsers of fields are quadratic, so fields of more than ``MAX_TEXT`` or
  ``MAX_STRUCTURED`` characters are not parsed, and no more than ``MAX_FIELDS`` of a message; nor are parts that are
  nested deeper than ``MAX_DEPTH``.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from email import policy
from email.headerregistry import HeaderRegistry, SingleAddressHeader, UniqueSingleAddressHeader
from email.message import EmailMessage
from email.parser import BytesParser
from functools import partial
from itertools import count
from typing import Any, BinaryIO, cast

#: Characters in a field that is parsed, as text and as structured text (addresses and the like). The standard library
#: takes 0.1 s for the worst such field, and 10 s for one four times as long.
MAX_TEXT = 8_192
MAX_STRUCTURED = 2_048
#: Fields of a message that are parsed, those of its parts included; further ones are text. The standard library takes
#: 0.1 to 1 ms for the shortest, so a message of 1 MB could take more than a minute.
MAX_FIELDS = 2_000
#: Levels of nested parts.
MAX_DEPTH = 50

_LINE_ENDS = re.compile(r"[\r\n]+")


class LenientMessage(EmailMessage):
    """An ``EmailMessage`` of wild input: the best reading of its bytes. No method that reads it raises."""

    #: The number of parts around this one.
    depth = 0

    def attach(self, payload: Any) -> None:
        """Add a part.

        :raises ValueError: parts are nested too deeply. (The parser's time grows with the square of the depth, and
            code that reads parts recursively would fail.)
        """
        if self.depth >= MAX_DEPTH:
            raise ValueError(f"parts are nested more than {MAX_DEPTH} deep")
        payload.depth = self.depth + 1
        super().attach(payload)

    def get_content(self, *args: Any, **kwargs: Any) -> Any:
        """Return the content: text as a str, even if its charset is unknown, and any other content unchanged."""
        try:
            return super().get_content(*args, **kwargs)
        except Exception:
            payload = self.get_payload(decode=True)
            return payload.decode("utf-8", "replace") if self.get_content_maintype() == "text" else payload

    def get_payload(self, i: int | None = None, decode: bool = False) -> Any:
        """Return the payload, decoded as far as it can be."""
        payload: Any
        get: Any = super().get_payload
        try:
            payload = get(i, decode)
        except Exception:
            payload = self.__dict__["_payload"]  # as the parser has left it
        if decode and i is None and not isinstance(payload, bytes) and not self.is_multipart():
            return str(payload).encode("utf-8", "surrogateescape")
        return payload

    def is_attachment(self) -> bool:
        """True if the disposition is that of an attachment."""
        return self.get_content_disposition() == "attachment"

    def get_body(self, *args: Any, **kwargs: Any) -> Any:
        """Return the part with the text of the message, or None."""
        try:
            return super().get_body(*args, **kwargs)
        except Exception:
            return None

    def iter_attachments(self) -> Any:
        """Yield the parts other than the text of the message; none where the structure is malformed."""
        try:
            return iter(list(super().iter_attachments()))
        except Exception:
            return iter(())

    def iter_parts(self) -> Any:
        """Yield the parts of a multipart, one after another."""
        try:
            return iter(list(super().iter_parts()))
        except Exception:
            return iter(())

    def as_bytes(self, *args: Any, **kwargs: Any) -> bytes:
        """Return the message as bytes; where that fails, its fields and an empty body."""
        try:
            return super().as_bytes(*args, **kwargs)
        except Exception:
            return "".join(f"{name}: {value}\n" for name, value in self.items()).encode("utf-8", "replace") + b"\n"

    def as_string(self, *args: Any, **kwargs: Any) -> str:
        """Return the message as text; where that fails, its fields and an empty body."""
        try:
            return super().as_string(*args, **kwargs)
        except Exception:
            return self.as_bytes().decode("utf-8", "replace")

    def __str__(self) -> str:
        return self.as_string()

    def __bytes__(self) -> bytes:
        return self.as_bytes()


class _Text(str):
    """A field that is not parsed. (What has a name is taken for parsed.)"""

    name = ""


class _LenientPolicy(policy.EmailPolicy):
    """The default policy, except that a field is text where its parser raises or would take too long.

    There is one for each message.
    """

    #: How many fields the message has had so far.
    fields = count()

    def header_fetch_parse(self, name: str, value: str) -> Any:
        if hasattr(value, "name"):  # parsed already
            return value
        if len(value) <= (MAX_STRUCTURED if name.lower() in _STRUCTURED else MAX_TEXT):
            try:
                return super().header_fetch_parse(name, value)
            except Exception:
                pass
        return _as_text(value)

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        try:
            name, value = super().header_source_parse(sourcelines)
        except Exception:
            return "", "".join(sourcelines)
        return name, value if next(self.fields) < MAX_FIELDS else _Text(_as_text(value))

    def fold(self, name: str, value: str) -> str:
        try:
            return str(super().fold(name, value))
        except Exception:
            return f"{name}: {_as_text(value)}{self.linesep}"

    def fold_binary(self, name: str, value: str) -> bytes:
        try:
            return super().fold_binary(name, value)
        except Exception:
            return f"{name}: {_as_text(value)}{self.linesep}".encode("utf-8", "replace")


class _LenientSender(SingleAddressHeader):
    """Sender: one address, and perhaps none or several in wild input."""

    @property
    def address(self) -> Any:
        """The first address; None where there is none."""
        return next(iter(self.addresses), None)


class _LenientUniqueSender(_LenientSender, UniqueSingleAddressHeader):
    """The same for the field that a message has once."""


_REGISTRY: Any = HeaderRegistry()  # (typeshed knows no class of a field that is not whole)
_REGISTRY.map_to_type("sender", _LenientUniqueSender)
_REGISTRY.map_to_type("resent-sender", _LenientSender)

#: The fields with a grammar of their own.
_STRUCTURED = frozenset(_REGISTRY.registry) - {"subject"}


def _as_text(value: str) -> str:
    """Return the field as one line; bytes that are not UTF-8 become U+FFFD."""
    return _LINE_ENDS.sub("", value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


_new_policy = partial(_LenientPolicy, message_factory=LenientMessage, refold_source="none", header_factory=_REGISTRY)


def parse(file: BinaryIO, *, headers_only: bool = False) -> LenientMessage:
    """Parse a message from its file, from the current position on.

    :param headers_only: leave the body unparsed; it becomes the payload, as text.
    """
    start = file.tell()
    if file.read(len(BOM_UTF8)) != BOM_UTF8:
        file.seek(start)
    try:
        message: Any = BytesParser(policy=_new_policy(fields=count())).parse(file, headersonly=headers_only)
        return cast(LenientMessage, message)
    except Exception:
        if headers_only:
            return LenientMessage(policy=_new_policy(fields=count()))
    file.seek(start)
    return parse(file, headers_only=True)
