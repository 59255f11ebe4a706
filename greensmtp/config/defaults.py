"""What is meant where nothing is said, but for the limits, which have theirs. (Imports little: every command does.)"""

from __future__ import annotations

import re
from typing import Any

#: The stack where no other is said, outermost first: what does no harm on a developer's machine, where all clients
#: have one address and may be a test of load. One that wants a library which is not installed is left out.
DEFAULT_STACK: tuple[dict[str, Any], ...] = (
    {"use": "Logging"},
    {"use": "ConnectionLimit", "per_address": 500, "per_network": False},
    {"use": "Tarpit", "delay": 0.5, "maximum": 5.0, "free": 5},
    {"use": "RateLimit", "limit": "60000/minute", "strategy": "fixed-window"},
)

DEFAULT_URL = "127.0.0.1:1025"
DEFAULT_MAILDIR = "maildir"


def parse_size(text: str) -> int:
    """Octets: ``1000``, ``500k``, ``32M``, ``1G`` (powers of 1024).

    :raises ValueError: it is none.
    """
    match = re.fullmatch(r"(\d{1,12})([kmg]?)b?", text.strip().lower(), re.ASCII)
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is not a size: write octets, or 500k, 32M, 1G")
    return int(match[1]) << 10 * " kmg".index(match[2] or " ")
