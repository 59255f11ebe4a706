"""What several test files say or build: SASL answers, chunks, and the beginning of a message."""

from __future__ import annotations

from base64 import b64encode


def b64(text: str | bytes) -> str:
    """Encode text, or bytes, in base64."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()
