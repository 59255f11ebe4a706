"""Default values of the configuration; those of the limits are in ``greensmtp.server.limits``.

Every command imports this module, so it does not import pydantic.
"""

from __future__ import annotations

import re
from typing import Any

#: The default stack, outermost first. It must suit a developer's machine, where all clients have one address and may
#: belong to a load test. A middleware whose library is not installed is left out.
DEFAULT_STACK: tuple[dict[str, Any], ...] = (
    {"use": "Logging"},
    {"use": "LoadShed"},
    {"use": "ConnectionLimit", "per_address": 500, "per_network": False},
    {"use": "Tarpit", "delay": 0.5, "maximum": 5.0, "free": 5},
    {"use": "RateLimit", "limit": "60000/minute", "strategy": "fixed-window"},
)

DEFAULT_URL = "127.0.0.1:1025"
DEFAULT_MAILDIR = "maildir"


def parse_size(text: str) -> int:
    """Return the number of bytes that ``1000``, ``500k``, ``32M`` or ``1G`` stands for; the units are powers of 1024.

    :raises ValueError: it is not a size, or 0.
    """
    match = re.fullmatch(r"(\d{1,12})([kmg]?)b?", text.strip().lower(), re.ASCII)
    if match is None or not int(match[1]):
        raise ValueError(f"expected a number of bytes, like 1000, 500k, 32M or 1G; got {text!r}")
    return int(match[1]) << 10 * " kmg".index(match[2] or " ")
