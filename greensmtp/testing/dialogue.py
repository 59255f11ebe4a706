r"""The format of dialogues: SMTP conversations as plain text, which a program can replay.

::

    name: RSET forgets the envelope
    rfc: 5321 4.1.1.5
    topic: order

    S: 220
    C: EHLO client.example
    S: 250
    C: MAIL FROM:<ann@example.org>
    S: 250
    C: RSET
    S: 250
    C: RCPT TO:<bob@example.com>
    S: 503

The rules of the format:

- The header is ``key: value``, a line each, and ends with an empty line. HEADER lists the keys. Lines that begin with
  ``#``, and empty lines in the dialogue, are ignored; ``#`` elsewhere is text.
- ``C: text`` is a line of the client, sent with CRLF; ``C-raw: text`` is sent without. What is sent without a line of
  the server between is sent in one piece. ``\r \n \t \0 \\ \xHH`` stand for bytes, and ``\{text*1000}`` for a text so
  many times. Other characters are sent as UTF-8.
- ``S: pattern`` is one reply, of however many lines: codes (``250``, ``2xx``, ``500|501|5xx``), and perhaps the
  beginning of its text, in which ``*`` stands for anything and ``\n`` for a line break. With ``!`` before it, the text
  must not be so. ``END`` is the end of the connection: alone, or among the codes, where the server may close it
  instead of replying. ``NOTHING`` is that the server waits for more, alone or among the codes.
- A reply 421, ``END`` and ``NOTHING`` among codes end a dialogue where they are what happens: what follows is skipped.
- ``[codes]`` before a line: it counts only if the last reply had such a code. Lines in a row with the same condition
  stand or fall together.
- ``TLS``: the TLS handshake. ``TLS|END``: it may fail, and then the dialogue is over.
- With ``send`` in the header, the dialogue tests a client, and plays the server: ``S: text`` and ``S-raw: text`` are
  sent to it, ``C: pattern`` is a line that it must send, in which ``*`` stands for anything, and ``C: END`` is that it
  closes the connection. ``H:`` is then what sending gave: ``sent``, ``refused`` or ``raised``.
- ``H: event`` is what the server's handlers saw, of which ``record_events`` has the list. If a dialogue has one, it
  has all of them, in order. A server whose handlers cannot be seen is not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from greensmtp._suggest import did_you_mean
from greensmtp.testing.dialogue_text import MAX_SIZE, ReplyPattern, escape, parse_pattern, unescape

#: The keys of a header, and what each is for.
HEADER: Mapping[str, str] = MappingProxyType(
    {
        "name": "one line that says what must happen",
        "rfc": "number and section, such as 5321 4.1.1.5; several are separated by commas",
        "topic": "a word, by which reports are grouped",
        "protocol": "smtp (the default) or lmtp",
        "needs": "EHLO keywords without which the dialogue does not apply, separated by commas: SIZE 1000000, CHUNKING",
        "server": "options of the server, separated by commas: max_recipients=2",
        "refuse": "recipients that the server refuses with 550, separated by commas",
        "users": "users with their passwords, jo:secret, separated by commas",
        "send": "the client is tested: what it is to send, as <reverse-path> <forward-path> ...",
        "body": "the message that the client is to send, with escapes",
    }
)


class DialogueSyntaxError(ValueError):
    """A dialogue is malformed. The text names the file and the line."""


_NO_PATTERN = ReplyPattern(())


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a dialogue."""

    kind: Literal["send", "reply", "end", "nothing", "tls", "hear"]
    #: The number of the line in the file.
    line: int
    #: The line itself, for reports.
    source: str
    data: bytes = b""
    pattern: ReplyPattern = _NO_PATTERN
    #: The step counts only if the last reply had one of these codes.
    condition: ReplyPattern | None = None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation with a server, and what is expected of it. ``parse`` and ``load`` make it."""

    name: str
    steps: tuple[Step, ...]
    rfc: str = ""
    topic: str = ""
    lmtp: bool = False
    needs: tuple[str, ...] = ()
    #: Options of the server: name -> value, a number or a text.
    server: Mapping[str, int | str] = field(default_factory=dict)
    refuse: tuple[str, ...] = ()
    users: Mapping[str, str] = field(default_factory=dict)
    #: What the client that is tested is to send: the reverse-path and the forward-paths. None: a server is tested.
    send: tuple[str, ...] | None = None
    body: bytes = b""
    #: What handlers must have seen; None if the dialogue does not say.
    events: tuple[str, ...] | None = None
    #: Where it stands.
    path: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Dialogue:
        """Read a dialogue from a file.

        :raises DialogueSyntaxError: it is malformed, or not UTF-8.
        :raises OSError: the file cannot be read.
        """
        try:
            text = Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise DialogueSyntaxError(f"{path}: expected UTF-8, and {error.reason} at byte {error.start}") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, path: str = "<dialogue>") -> Dialogue:
        """Read a dialogue from a text; ``path`` is for error messages.

        :raises DialogueSyntaxError: it is malformed.
        """
        parser = _Parser(path)
        for number, line in enumerate(text.split("\n"), 1):
            try:
                parser.feed(number, line)
            except ValueError as error:
                raise DialogueSyntaxError(f"{path}:{number}: {error}") from None
        try:
            return parser.finish()
        except ValueError as error:
            raise DialogueSyntaxError(f"{path}: {error}") from None

    def __str__(self) -> str:
        return self.name


_LINE = re.compile(r"(?:\[([^\]]*)\] *)?(?:TLS(\|END)?|(C-raw|C|S|H):(?: (.*))?)")
_CLIENT_LINE = re.compile(r"(S-raw|S|C|H):(?: (.*))?")
_PATHS = re.compile(r"<[^<>]*>(?: <[^<>]*>)+")
_OPTION = re.compile(r"([a-z_]+)=(\S+)")
_KEYWORD = re.compile(r"[A-Z0-9][A-Z0-9-]*(?: [!-~]+)*")


class _Parser:
    """Takes a file line by line."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._header: dict[str, str] = {}
        self._in_header = True
        self._steps: list[Step] = []
        self._events: list[str] = []
        self._size = 0

    def feed(self, number: int, line: str) -> None:
        """Take the next line."""
        if line.startswith("#"):
            return
        if line != line.rstrip():
            raise ValueError(r"a space or CR at the end of the line cannot be seen: write \x20 or \r")
        if self._in_header:
            self._feed_header(line)
        elif line and "send" in self._header:
            self._feed_client_step(number, line)
        elif line:
            self._feed_step(number, line)

    def _feed_header(self, line: str) -> None:
        if not line:
            self._in_header = not self._header  # empty lines may stand before the header
            return
        key, colon, value = line.partition(":")
        if not colon or key not in HEADER:
            raise ValueError(
                f"expected a header line, like 'name: ...', with a key among {', '.join(HEADER)}, or the empty line "
                f"that ends the header, not {line!r}{did_you_mean(key, HEADER)}"
            )
        if key in self._header:
            raise ValueError(f"{key} is given twice")
        self._header[key] = value.strip()

    def _feed_step(self, number: int, line: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"expected a line that begins with C:, C-raw:, S: or H:, or TLS, not {line!r}")
        condition = None if match[1] is None else parse_pattern(match[1])
        kind, text = match[3], match[4] or ""
        if kind == "H":
            if condition is not None:
                raise ValueError("an event has no condition")
            self._events.append(escape(unescape(text)))
        elif kind == "S":
            self._steps.append(_expectation(number, line, text, condition))
        elif kind is None:
            pattern = ReplyPattern((), or_end=match[2] is not None)
            self._steps.append(Step("tls", number, line, pattern=pattern, condition=condition))
        else:
            data = self._sent(text, line_end=kind == "C")
            self._steps.append(Step("send", number, line, data, condition=condition))

    def _feed_client_step(self, number: int, line: str) -> None:
        match = _CLIENT_LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f"expected a line that begins with S:, S-raw:, C: or H:, since it tests a client, not {line!r}"
            )
        kind, text = match[1], match[2] or ""
        if kind == "H":
            self._events.append(escape(unescape(text)))
        elif kind != "C":
            self._steps.append(Step("send", number, line, self._sent(text, line_end=kind == "S")))
        elif text == "END":
            self._steps.append(Step("end", number, line))
        else:
            pattern = ReplyPattern((), text=unescape(text).decode("utf-8", "surrogateescape"))
            self._steps.append(Step("hear", number, line, pattern=pattern))

    def _sent(self, text: str, *, line_end: bool) -> bytes:
        data = unescape(text) + (b"\r\n" if line_end else b"")
        self._size += len(data)
        if self._size > MAX_SIZE:
            raise ValueError(f"the dialogue sends more than {MAX_SIZE} bytes")
        return data

    def finish(self) -> Dialogue:
        """Return the dialogue."""
        header = self._header
        if not header.get("name"):
            raise ValueError("the header has no name")
        if not self._steps:
            raise ValueError("the dialogue has no lines")
        protocol = header.get("protocol", "smtp")
        if protocol not in ("smtp", "lmtp"):
            raise ValueError(f"protocol is smtp or lmtp, not {protocol!r}")
        needs = tuple(_words(header.get("needs", "")))
        for each in needs:
            if not _KEYWORD.fullmatch(each):
                raise ValueError(f"needs takes EHLO keywords, like CHUNKING or SIZE 1000000, not {each!r}")
        return Dialogue(
            name=header["name"],
            steps=tuple(self._steps),
            rfc=header.get("rfc", ""),
            topic=header.get("topic", ""),
            lmtp=protocol == "lmtp",
            needs=needs,
            server=MappingProxyType(dict(map(_option, _words(header.get("server", ""))))),
            refuse=tuple(_words(header.get("refuse", ""))),
            users=MappingProxyType(dict(map(_user, _words(header.get("users", ""))))),
            send=_paths(header["send"]) if "send" in header else None,
            body=unescape(header.get("body", "")),
            events=tuple(self._events) if self._events else None,
            path=self._path,
        )


def _expectation(number: int, line: str, text: str, condition: ReplyPattern | None) -> Step:
    if text == "END":
        return Step("end", number, line, condition=condition)
    if text == "NOTHING":
        return Step("nothing", number, line, condition=condition)
    return Step("reply", number, line, pattern=parse_pattern(text), condition=condition)


# Values of the header


def _words(value: str) -> Iterator[str]:
    """Yield the values that commas separate."""
    return (word.strip() for word in value.split(",") if word.strip())


def _option(word: str) -> tuple[str, int | str]:
    match = _OPTION.fullmatch(word)
    if match is None:
        raise ValueError(f"server takes options, like max_recipients=2, not {word!r}")
    return match[1], int(match[2]) if match[2].isdigit() else match[2]


def _paths(text: str) -> tuple[str, ...]:
    if not _PATHS.fullmatch(text):
        raise ValueError(f"send takes paths, like <ann@example.org> <bob@example.com>, not {text!r}")
    return tuple(path.strip("<>") for path in text.split(" "))


def _user(word: str) -> tuple[str, str]:
    name, colon, password = word.partition(":")
    if not colon or not name or not password:
        raise ValueError(f"users takes names with passwords, like jo:secret, not {word!r}")
    return name, password
