"""Messages as tests look at them: text, links, codes, attachments.

The code under test may send malformed messages. Nothing in this module raises because of a message: what cannot be
parsed is returned undecoded.
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from html.parser import HTMLParser

_URL = re.compile(r"https?://[^\s<>\"]+", re.IGNORECASE)
_URL_END = ".,;:!?'*_"
_BRACKETS = {")": "(", "]": "[", "}": "{"}

#: 4 to 8 digits that stand alone, two groups of 3 digits, or 6 to 8 capitals and digits mixed. Parts of an amount, a
#: date, a time, a version, an address or a longer number do not match.
_CODE = re.compile(
    r"(?<![\w@#$€£%+=&?])(?<!\d[ .,:/-])(?<!\w[./-])(?:[A-Z]-)?"
    r"(?P<code>\d{3}[ -]\d{3}|\d{4,8}|(?=[A-Z]*\d)(?=\d*[A-Z])[A-Z0-9]{6,8})"
    r"(?![\w@%€£$]|[.,:/-]\w|[ -]\d)"
)
_YEAR = re.compile(r"(?:19|20)\d\d")
_MENTIONS_CODE = re.compile(r"\b(?:codes?|pin|otp|passcode|password|token|kode)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Attachment:
    """A part of a message other than its text: a file, an image, a forwarded message."""

    filename: str | None
    content_type: str
    content: bytes


class Headers(Mapping[str, str]):
    """The decoded header fields by case-insensitive name.

    If several fields have the same name, the mapping has the first one; ``get_all`` returns all.
    """

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields with this name."""
        return [value for each, value in self._fields if each.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        for value in self.get_all(name):
            return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, _ in self._fields))

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self._fields})

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"


@dataclass(frozen=True, repr=False)
class SinkMessage:
    """A message that a sink has received, with its envelope."""

    #: The reverse-path; ``""`` for the null sender.
    sender: str
    #: The accepted recipients of the envelope, Bcc among them.
    recipients: list[str]
    #: The message as it was sent: CRLF, without dot-stuffing.
    raw: bytes
    #: True if it came over TLS.
    tls: bool = False
    #: The authenticated user.
    username: str | None = None
    #: The name that the client gave in HELO or EHLO.
    client_hostname: str | None = None

    @cached_property
    def parsed(self) -> Message:
        """The message as the standard library parses it: an ``EmailMessage``."""
        try:
            return email.message_from_bytes(self.raw, policy=email.policy.default)
        except Exception:  # the policy raises on some defects
            return email.message_from_bytes(self.raw)

    @cached_property
    def headers(self) -> Headers:
        """The header fields, decoded."""
        return Headers([(name, _decode_header(name, str(value))) for name, value in self.parsed.raw_items()])

    @property
    def subject(self) -> str:
        """The decoded Subject field; ``""`` if there is none."""
        return self.headers.get("Subject", "")

    @property
    def text(self) -> str:
        """The plain text, with LF line ends; ``""`` if there is none."""
        return self._contents[0]

    @property
    def html(self) -> str:
        """The HTML, with LF line ends; ``""`` if there is none."""
        return self._contents[1]

    @property
    def attachments(self) -> list[Attachment]:
        """All parts that are neither the plain text nor the HTML."""
        return self._contents[2]

    def links(self) -> list[str]:
        """Return the http and https links in the text and the HTML, without duplicates, in order."""
        found = [_trim_url(match[0]) for match in _URL.finditer(self.text)]
        targets = (href.strip() for href in self._html_parts.hrefs)
        return list(dict.fromkeys([*found, *(href for href in targets if _URL.match(href))]))

    def codes(self) -> list[str]:
        """Return likely one-time codes in the subject and the text, without duplicates, in order.

        These are 4 to 8 digits that stand alone (``123456``, ``123 456``, ``G-123456``), returned without spaces and
        hyphens, and 6 to 8 capitals and digits mixed (``7F3K9Q``). A year counts only in a line that mentions a code.
        """
        found = []
        for line in f"{self.subject}\n{self.text or self._html_parts.text}".splitlines():
            for match in _CODE.finditer(_URL.sub(" ", line)):
                code = re.sub("[ -]", "", match["code"])
                if not _YEAR.fullmatch(code) or _MENTIONS_CODE.search(line):
                    found.append(code)
        return list(dict.fromkeys(found))

    @cached_property
    def _html_parts(self) -> _HTMLParts:
        parts = _HTMLParts()
        try:
            parts.feed(self.html)
            parts.close()
        except Exception:  # malformed markup; keep what was parsed before it
            pass
        return parts

    @cached_property
    def _contents(self) -> tuple[str, str, list[Attachment]]:
        """The text, the HTML and the attachments."""
        texts: dict[str, str] = {}
        attachments = []
        for part in _leaves(self.parsed):
            kind, name, attached = _describe(part)
            if kind in ("text/plain", "text/html") and not attached and name is None and kind not in texts:
                texts[kind] = _decode_text(part)
            else:
                attachments.append(Attachment(name, kind, _decode(part)))
        return texts.get("text/plain", ""), texts.get("text/html", ""), attachments

    def __repr__(self) -> str:
        return f"<SinkMessage {self.subject!r} from {self.sender or '<>'} to {', '.join(self.recipients)}>"


def _leaves(part: Message) -> Iterator[Message]:
    """Yield the parts that have content; a forwarded message is one part."""
    payload = part.get_payload()
    if isinstance(payload, list) and _describe(part)[0].startswith("multipart/"):
        for inner in payload:
            if isinstance(inner, Message):
                yield from _leaves(inner)
    else:
        yield part


def _describe(part: Message) -> tuple[str, str | None, bool]:
    """Return the content type, the file name, and whether it is an attachment."""
    try:
        return part.get_content_type(), part.get_filename(), part.get_content_disposition() == "attachment"
    except Exception:  # a header field that cannot be parsed
        return "application/octet-stream", None, True


def _decode(part: Message) -> bytes:
    payload = part.get_payload()
    if isinstance(payload, list):  # a message within this one
        return b"".join(inner.as_bytes() for inner in payload if isinstance(inner, Message))
    try:
        content = part.get_payload(decode=True)
    except Exception:
        content = None
    return content if isinstance(content, bytes) else str(payload).encode("utf-8", "surrogateescape")


def _decode_text(part: Message) -> str:
    content = _decode(part)
    try:
        text = content.decode(str(part.get_content_charset("utf-8")))
    except (LookupError, ValueError):  # an unknown charset, or bytes that it does not have
        text = content.decode("utf-8", "replace")
    return text.replace("\r\n", "\n")


def _decode_header(name: str, value: str) -> str:
    """Decode a field; bytes beyond ASCII, which the parser keeps as surrogates, are decoded as UTF-8."""
    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        return str(email.policy.default.header_fetch_parse(name, value))
    except Exception:  # the standard library's parsers raise various errors on malformed fields
        return " ".join(value.split())


def _trim_url(url: str) -> str:
    """Remove the punctuation of the surrounding sentence from a URL."""
    while url[-1] in _URL_END or (url[-1] in _BRACKETS and url.count(_BRACKETS[url[-1]]) < url.count(url[-1])):
        url = url[:-1]
    return url


class _HTMLParts(HTMLParser):
    """Collects the visible text and the link targets of an HTML document."""

    _BLOCKS = frozenset({"p", "br", "div", "tr", "td", "th", "li", "h1", "h2", "h3", "h4", "title"})

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self._pieces: list[str] = []
        self._hidden = 0

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("style", "script"):
            self._hidden += 1
        elif tag in self._BLOCKS:
            self._pieces.append("\n")
        if tag in ("a", "area"):
            self.hrefs.extend(value for name, value in attrs if name == "href" and value)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "script"):
            self._hidden = max(0, self._hidden - 1)
        elif tag in self._BLOCKS:
            self._pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._pieces.append(data)
