"""Where to listen, as the command line writes it: ``smtps://127.0.0.1:465``, ``lmtp+unix:/run/lmtp.sock``."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

_UNIX = re.compile(r"(lmtp\+)?unix:(?://)?(/[^/].*)")
_TCP = re.compile(r"(?:(smtps?|lmtp)://)?(?:\[([^\]]*)\]|([^\s:/\[\]]+)):([0-9]{1,5})/?")

#: Octets in the path of a unix socket, which sockaddr_un bounds.
MAX_UNIX_PATH = 107 if sys.platform == "linux" else 103

HELP = (
    "127.0.0.1:1025, [::1]:1025, smtps://127.0.0.1:1465, lmtp://127.0.0.1:1024, unix:/run/mail.sock "
    "or lmtp+unix:/run/lmtp.sock"
)


@dataclass(frozen=True, slots=True)
class Listen:
    """One listener."""

    #: What SMTPServer takes: ``(host, port)``, or a unix path.
    address: tuple[str, int] | str
    lmtp: bool = False
    implicit_tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Listen:
        """
        :raises ValueError: it is none of the forms; the text shows them.
        """
        unix = _UNIX.fullmatch(text)
        if unix is not None:
            if len(os.fsencode(unix[2])) > MAX_UNIX_PATH:
                raise ValueError(f"cannot listen on {text!r}: the path is longer than {MAX_UNIX_PATH} octets")
            return cls(unix[2], lmtp=unix[1] is not None)
        tcp = _TCP.fullmatch(text)
        if tcp is None or int(tcp[4]) > 65535:
            raise ValueError(f"cannot listen on {text!r}: write it like {HELP}")
        scheme, literal, host, port = tcp.groups()
        if literal is not None:
            try:
                IPv6Address(literal.partition("%")[0])
            except ValueError:
                raise ValueError(f"cannot listen on {text!r}: [{literal}] is not an IPv6 address") from None
        return cls((literal or host, int(port)), lmtp=scheme == "lmtp", implicit_tls=scheme == "smtps")

    def url(self, address: Any = None) -> str:
        """It as a URL; with the address that it was bound to, the real port."""
        address = self.address if address is None else address
        if not isinstance(address, tuple):
            return f"{'lmtp+' if self.lmtp else ''}unix:{address}"
        scheme = "lmtp" if self.lmtp else "smtps" if self.implicit_tls else "smtp"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{scheme}://{host}:{address[1]}"
