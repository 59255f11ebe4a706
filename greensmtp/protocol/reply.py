"""Replies (RFC 5321 section 4.2): a code, one or more lines of text, an enhanced status code."""

from __future__ import annotations

import re
from collections.abc import Iterable

from greensmtp.protocol import enhanced_status
from greensmtp.protocol.errors import ProtocolError

#: Characters of text in one line. A reply line has at most 512 octets, code and CRLF included (RFC 5321 section
#: 4.5.3.1.5); the longest enhanced code (``5.255.255``) and its space must fit too.
MAX_TEXT = 512 - len("250-") - len("\r\n") - len("5.255.255 ")

_UNPRINTABLE = re.compile(r"[^\x20-\x7e\t]")


class Reply:
    """One reply. It is immutable, and encoded once, when it is first sent.

    ``Reply(250, "2.1.5 fine")``, ``Reply(250, "fine", "and dandy")``, ``Reply(250, "two\\nlines")``.

    Each line of a 2xx, 4xx or 5xx reply is sent with an enhanced status code (RFC 2034): that at the beginning of the
    text, or else the usual one of the reply code. ``enhanced=None`` sends none, as the banner and the replies to HELO
    and EHLO need it. Characters that are not printable ASCII are sent as ``?``, and a line too long for RFC 5321 is
    folded into several. So any text makes exactly one well-formed reply.

    :param code: 200 to 599.
    :param lines: the text, without codes and CRLF.
    :raises ProtocolError: a code out of range, or an enhanced code of another class than the reply's.
    """

    __slots__ = ("code", "ends_connection", "enhanced", "lines", "wire")

    code: int
    #: The text, one string a line, without the enhanced code.
    lines: tuple[str, ...]
    #: ``"2.1.5"``, or None.
    enhanced: str | None
    #: True for 221 and 421, behind which the server closes the connection (RFC 5321 section 4.2.3).
    ends_connection: bool
    #: The encoded reply, once ``encode`` has been called; None before.
    wire: bytes | None

    def __init__(self, code: int, *lines: str, enhanced: str | None = "") -> None:
        if not isinstance(code, int):
            raise TypeError(f"Reply takes a code first, like Reply(550, '5.7.1 no'), not {code!r}")
        if not 200 <= code <= 599:
            raise ProtocolError(f"a reply code is 200 to 599, not {code!r}")
        text = "\n".join(lines)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        texts = text.split("\n")
        if enhanced == "":
            texts, enhanced = _take_enhanced(code, texts)
        elif enhanced is not None:
            _check_enhanced(code, enhanced)
        self.code = code
        self.lines = tuple(texts)
        self.enhanced = enhanced
        self.ends_connection = code in (221, 421)
        self.wire = None

    @property
    def text(self) -> str:
        """The lines, joined by newlines."""
        return "\n".join(self.lines)

    @property
    def is_positive(self) -> bool:
        """True for 2xx: the command has succeeded."""
        return self.code < 300

    @property
    def is_intermediate(self) -> bool:
        """True for 3xx: the server waits for more."""
        return 300 <= self.code < 400

    @property
    def is_transient_failure(self) -> bool:
        """True for 4xx: a later try may succeed."""
        return 400 <= self.code < 500

    @property
    def is_permanent_failure(self) -> bool:
        """True for 5xx: the same command will fail again."""
        return self.code >= 500

    def handed_on(self) -> Reply:
        """Return the reply of a next hop as a relay may pass it to its own client, with its enhanced code.

        421 becomes 451, since 421 would close the connection to a client that has done nothing wrong.
        """
        return Reply(451, *self.lines, enhanced=self.enhanced) if self.code == 421 else self

    def encode(self) -> bytes:
        """Return the reply as bytes, with its last CRLF."""
        if self.wire is None:
            self.wire = self._encode()
        return self.wire

    def _encode(self) -> bytes:
        if self.code == 334 and not self.text:
            return b"334 \r\n"  # the one reply that needs the space (RFC 4954 section 8); msmtp insists on it
        prefix = f"{self.enhanced} " if self.enhanced else ""
        texts: list[str] = []
        for line in self.lines:
            if len(line) > MAX_TEXT or not line.isascii() or not line.isprintable():
                texts.extend(_fold(_UNPRINTABLE.sub("?", line)))
            else:
                texts.append(line)
        wire = f"{self.code} {prefix}{texts[-1]}".rstrip(" ") + "\r\n"
        if len(texts) > 1:
            lines = [f"{self.code}-{prefix}{text}".rstrip(" ") for text in texts[:-1]]
            wire = "\r\n".join((*lines, wire))
        return wire.encode("ascii")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reply):
            return NotImplemented
        return (self.code, self.lines, self.enhanced) == (other.code, other.lines, other.enhanced)

    def __hash__(self) -> int:
        return hash((self.code, self.lines, self.enhanced))

    def __str__(self) -> str:
        words = (str(self.code), self.enhanced, self.text)
        return " ".join(word for word in words if word)

    def __repr__(self) -> str:
        return f"Reply({str(self)!r})"


def _take_enhanced(code: int, texts: list[str]) -> tuple[list[str], str | None]:
    """Remove the enhanced codes from the beginning of the lines; the first line's is that of the reply."""
    default = enhanced_status.default_for(code)
    if default is None:
        return texts, None
    found = enhanced_status.LEADING.match(texts[0])
    if found is None:
        return texts, default
    enhanced = found[1]
    _check_enhanced(code, enhanced)
    return [enhanced_status.LEADING.sub("", text, count=1) for text in texts], enhanced


def _check_enhanced(code: int, enhanced: str) -> None:
    if not enhanced_status.CODE.fullmatch(enhanced):
        raise ProtocolError(f"an enhanced status code is like 5.7.1, not {enhanced!r} (RFC 3463 section 2)")
    if enhanced[0] != str(code)[0]:
        raise ProtocolError(
            f"enhanced status code {enhanced} does not go with reply code {code}: "
            f"its first digit must be {code // 100} (RFC 3463 section 2)"
        )


def _fold(text: str) -> Iterable[str]:
    """Yield a text in pieces that fit a reply line, cut at spaces where possible."""
    while len(text) > MAX_TEXT:
        cut = text.rfind(" ", 1, MAX_TEXT)
        cut = cut if cut > 0 else MAX_TEXT
        yield text[:cut]
        text = text[cut:].lstrip(" ")
    yield text
