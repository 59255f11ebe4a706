"""A message's bytes in a form that a server can accept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from greensmtp.protocol.dot_stuffing import with_crlf
from greensmtp.protocol.mime_lines import MimeLines, may_be_binary
from greensmtp.thread_pool import in_thread_pool

P = ParamSpec("P")
T = TypeVar("T")

#: Bytes from which on a message is processed in the thread pool, since that takes milliseconds.
LARGE = 64 * 1024


@dataclass(slots=True)
class Form:
    """The message as it is sent."""

    #: Its bytes; of a large file, only those of the header section.
    content: bytes
    #: Bytes of the whole message as SIZE counts them (RFC 1870): with CRLFs, before dot-stuffing.
    size: int
    eight_bit: bool
    #: True if it cannot be sent as lines, so that it needs BINARYMIME.
    binary: bool
    #: True if the rest is read from a file.
    has_rest: bool = False
    stuffed: tuple[bytes, ...] | None = None


def offload(length: int, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a function, in the thread pool if this length, with which its work grows, is LARGE or more."""
    return in_thread_pool(function, *arguments, **options) if length > LARGE else function(*arguments, **options)


def in_lines(content: bytes) -> Form:
    """Return the form of a whole message, with CRLF at its line ends unless it is binary."""
    nul = b"\0" in content
    lines = with_crlf(content)
    # A message that declares binary content, but is unchanged as lines, does not need BINARYMIME. Searching for the
    # declaration is a pass over all of it.
    unchanged = lines is content and content.endswith(b"\r\n")
    binary = False
    if nul or (not unchanged and may_be_binary(content)):
        mime, needs_binary = offload(len(content), _mime_lines, content)
        binary = nul or needs_binary
        lines = mime if binary else lines
    if not binary and lines and not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    return Form(lines, len(lines), not lines.isascii(), binary)


def _mime_lines(content: bytes) -> tuple[bytes, bool]:
    encoder = MimeLines()
    return encoder.feed(content) + encoder.finish(), encoder.needs_binary
