"""Listeners as URLs: ``smtps://127.0.0.1:465``, ``lmtp+unix:/run/lmtp.sock``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from greensmtp._hostport import join, parse_url

#: Maximum length of the path of a unix socket, in bytes (``sockaddr_un``).
MAX_UNIX_PATH = 107 if sys.platform == "linux" else 103

HELP = (
    "127.0.0.1:1025, [::1]:1025, smtps://127.0.0.1:1465, lmtp://127.0.0.1:1024, unix:/run/mail.sock "
    "or lmtp+unix:/run/lmtp.sock"
)


@dataclass(frozen=True, slots=True)
class Listen:
    """A listener: its address, protocol and TLS mode."""

    #: ``(host, port)``, or a unix path.
    address: tuple[str, int] | str
    lmtp: bool = False
    implicit_tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Parse a URL, see ``HELP``.

        :raises ValueError: it has none of these forms; the text lists them.
        """
        try:
            url = parse_url(text)
        except ValueError:
            url = None
        if url is None or (url.path is None and url.port is None):
            raise ValueError(f"expected a URL like {HELP}; got {text!r}")
        lmtp = url.scheme == "lmtp"
        if url.path is not None:
            if len(os.fsencode(url.path)) > MAX_UNIX_PATH:
                raise ValueError(f"cannot listen on {text!r}: the path is longer than {MAX_UNIX_PATH} bytes")
            return cls(url.path, lmtp)
        if url.bracketed:
            try:
                IPv6Address(url.host.partition("%")[0])
            except ValueError:
                raise ValueError(f"cannot listen on {text!r}: [{url.host}] is not an IPv6 address") from None
        assert url.port is not None
        return cls((url.host, url.port), lmtp, implicit_tls=url.scheme == "smtps")

    def url(self, address: Any = None) -> str:
        """Return the listener as a URL; with the bound address, the URL has the real port."""
        address = self.address if address is None else address
        if not isinstance(address, tuple):
            return f"{'lmtp+' if self.lmtp else ''}unix:{address}"
        scheme = "lmtp" if self.lmtp else "smtps" if self.implicit_tls else "smtp"
        return f"{scheme}://{join(address[0], address[1])}"
