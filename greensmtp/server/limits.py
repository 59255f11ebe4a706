"""Limits: every bound and every timeout of a server, with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, get_args

from greensmtp.errors import ArgumentError

BareNewlines = Literal["normalize", "reject", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """Bounds on what a client can make a server do, in bytes, seconds and counts. Also keywords of ``SMTPServer``.

    :raises ValueError: a value is out of range; the text names the keyword and what it takes.
    """

    #: Bytes in a command line, CRLF included (RFC 5321 section 4.5.3.1.4). What an extension adds to a command's line
    #: comes on top, as its RFC says; an AUTH line may have ``max_auth_line_length``.
    max_line_length: int = 512
    #: Bytes in an AUTH line and in each answer to a challenge (RFC 4954 section 4.3).
    max_auth_line_length: int = 12_288
    #: Bytes in a message as the client sends it, dots unstuffed; None: no limit. Announced by SIZE (RFC 1870).
    max_message_size: int | None = 32 * 1024 * 1024
    #: Accepted recipients in a transaction; one more gets 452 (RFC 5321 section 4.5.3.1.8 asks for 100 at least), and
    #: counts as an error after as many again. Announced by LIMITS (RFC 9422).
    max_recipients: int = 1_000
    #: 5xx replies until 421 closes the connection; an accepted message resets the count.
    max_errors: int = 20
    #: Commands that bring no message nearer (RSET, NOOP, VRFY, EHLO ...), small chunks and 4xx replies until 421; an
    #: accepted message resets the count.
    max_idle_commands: int = 100
    #: Connections that are served at once. One more gets 421 at once, or displaces one of the busiest address. None: no
    #: limit.
    max_connections: int | None = 1_000
    #: Seconds for a command to arrive as a whole (RFC 5321 section 4.5.3.2.7: 5 minutes). A client that does not read
    #: its replies is dropped after as long.
    command_timeout: float = 300.0
    #: Seconds for each piece of a body (RFC 5321 section 4.5.3.2.5: 3 minutes).
    data_timeout: float = 180.0
    #: Seconds for the receivers of a signal to decide its ack.
    ack_timeout: float = 120.0
    #: Seconds for handlers and middleware to handle one command, after acceptance too, and for ``disconnect`` handlers.
    #: Time spent waiting for the client does not count, nor does an ack that is decided elsewhere.
    handler_timeout: float = 300.0
    #: Seconds for a TLS handshake.
    tls_timeout: float = 30.0
    #: Seconds for the whole PROXY header of a proxy in ``proxy_from``.
    proxy_timeout: float = 30.0
    #: Bytes a second that a body must bring on average, over the time spent waiting for the client; 0: any.
    min_data_rate: float = 64.0
    #: Seconds of waiting until ``min_data_rate`` is enforced.
    data_rate_grace: float = 60.0
    #: A bare CR or LF in a body: ``"normalize"`` (a bare LF becomes CRLF in the content, a bare CR a space),
    #: ``"reject"`` (drained, then 554) or ``"keep"`` (content like any other). None of them ever ends data. A body
    #: of type BINARYMIME (RFC 3030) is binary, and passed on unchanged.
    bare_newlines: BareNewlines = "normalize"
    #: Bytes in a line of a body that is not BINARYMIME, CRLF included (RFC 5321 section 4.5.3.1.6 asks for 1,000);
    #: None: any, since much real mail has longer lines, which do no harm to a server that streams.
    max_body_line_length: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name))

    @property
    def shortest_timeout(self) -> float:
        """The shortest timeout, in seconds."""
        return min(
            self.command_timeout,
            self.data_timeout,
            self.ack_timeout,
            self.handler_timeout,
            self.tls_timeout,
            self.proxy_timeout,
        )


class LimitsDict(TypedDict, total=False):
    """The same fields, as keywords of ``SMTPServer`` for type checkers. A test holds the two equal."""

    max_line_length: int
    max_auth_line_length: int
    max_message_size: int | None
    max_recipients: int
    max_errors: int
    max_idle_commands: int
    max_connections: int | None
    command_timeout: float
    data_timeout: float
    ack_timeout: float
    handler_timeout: float
    tls_timeout: float
    proxy_timeout: float
    min_data_rate: float
    data_rate_grace: float
    bare_newlines: BareNewlines
    max_body_line_length: int | None


#: keyword -> its least value, where that is not 1
_LEAST = {"max_line_length": 64, "max_auth_line_length": 64, "max_recipients": 1, "max_body_line_length": 78}
_MAY_BE_NONE = frozenset({"max_message_size", "max_connections", "max_body_line_length"})
_MAY_BE_ZERO = frozenset({"min_data_rate", "data_rate_grace"})


def _check(name: str, value: Any) -> None:
    if name == "bare_newlines":
        if value not in get_args(BareNewlines):
            raise ArgumentError("bare_newlines", f'takes "normalize", "reject" or "keep", not {value!r}')
        return
    if value is None and name in _MAY_BE_NONE:
        return
    counted = name.startswith("max_")
    wanted = f"a whole number of at least {_LEAST.get(name, 1)}" if counted else "a number of seconds above 0"
    if name in _MAY_BE_ZERO:
        wanted = "a number of at least 0"
    if name in _MAY_BE_NONE:
        wanted += ", or None for no limit"
    kinds = (int,) if counted else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ArgumentError(name, f"takes {wanted}, not {value!r}")
    # (Written so that NaN, of which no comparison is true, fails.)
    if not value >= _LEAST.get(name, 1 if counted else 0) or (value == 0 and name not in _MAY_BE_ZERO):
        raise ArgumentError(name, f"takes {wanted}, not {value!r}")
