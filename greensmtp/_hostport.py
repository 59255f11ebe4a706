"""Hosts with ports as people write them: ``host:port``, ``[::1]:port``, unix paths, and URLs of mail servers.

This is grammar only. Whether a host can have such a name is for ``protocol.hosts``, whether it exists for the resolver.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HOST_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?")
_BARE_IPV6 = re.compile(r"[^\[\]:]*(?::[^\[\]:]*){2,}")

_UNIX_URL = re.compile(r"(?:(lmtp)\+)?unix:(?://)?(/[^/].*)")
_URL = re.compile(r"(?:(smtps?|lmtp)://)?([^\s/]+)/?")

MAX_PORT = 65535


def is_unix_path(value: object) -> bool:
    """True if it is a Path, or a str that begins with ``/`` or ``.``."""
    return isinstance(value, Path) or (isinstance(value, str) and value.startswith(("/", ".")))


def is_port(value: object) -> bool:
    """True if it is a port number; 0, which stands for any free port, is one."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_PORT


def split(text: str) -> tuple[str, int | None]:
    """Return the host, without brackets, and the port of ``host[:port]``, ``[::1][:port]`` or ``::1``.

    The host may come out empty. A port behind an IPv6 address is recognised only with brackets around the address.

    :raises ValueError: it is none of these, or the port is above 65535.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        if _BARE_IPV6.fullmatch(text):
            return text, None
        raise ValueError(f"expected host:port, like 'mx.example.com:25' or '[::1]:25'; got {text!r}")
    literal, name, digits = match.groups()
    port = None if digits is None else int(digits)
    if port is not None and port > MAX_PORT:
        raise ValueError(f"port: expected at most {MAX_PORT}; got {port}")
    return name if literal is None else literal, port


def join(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address(value: Any) -> tuple[str, int] | None:
    """Return the host and port of ``"host:port"`` or ``(host, port)``; None if it is anything else."""
    host: Any = None
    port: Any = None
    if isinstance(value, str):
        try:
            host, port = split(value)
        except ValueError:
            pass
    elif isinstance(value, tuple | list) and len(value) == 2:
        host, port = value
    if not isinstance(host, str) or not host or not is_port(port):
        return None
    return host, port


@dataclass(frozen=True, slots=True)
class ServerURL:
    """A mail server's URL: a host and perhaps a port, or the path of a unix socket."""

    #: ``smtp``, ``smtps`` or ``lmtp``; None if the text does not say. With a path: ``lmtp`` or None.
    scheme: str | None
    host: str
    port: int | None
    path: str | None = None
    #: True if the host stood in brackets.
    bracketed: bool = False


def parse_url(text: str) -> ServerURL:
    """Parse ``[SCHEME://]HOST[:PORT]`` or ``[lmtp+]unix:PATH``.

    :raises ValueError: it is neither.
    """
    unix = _UNIX_URL.fullmatch(text)
    if unix is not None:
        return ServerURL(unix[1], "", None, unix[2])
    url = _URL.fullmatch(text)
    if url is None:
        raise ValueError(f"expected the URL of a mail server, like smtp://mx.example.com:25; got {text!r}")
    host, port = split(url[2])
    if not host or (":" in host and not url[2].startswith("[")):
        raise ValueError(f"expected the URL of a mail server, like smtp://mx.example.com:25; got {text!r}")
    return ServerURL(url[1], host, port, bracketed=url[2].startswith("["))
