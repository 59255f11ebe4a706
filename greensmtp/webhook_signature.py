"""Signatures of HTTP requests by Standard Webhooks: HMAC-SHA256 over an ID, a time and the body.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from greensmtp.errors import ArgumentError

#: Seconds that a request may be old, or early.
TOLERANCE = 300.0

_PREFIX = "whsec_"


def read_secrets(secret: str | Sequence[str] | None) -> list[bytes]:
    """Return the keys of secrets: the bytes behind ``whsec_`` in base64, or those of any other text.

    :raises ArgumentError: there is none, one of them is empty, or is no base64.
    """
    if secret is None:
        return []
    given = (secret,) if isinstance(secret, str) else tuple(secret)
    if not given:
        raise ArgumentError("secret", "expected a text, or several; got an empty array")
    return [_read_secret(each) for each in given]


def _read_secret(text: str) -> bytes:
    try:
        key = base64.b64decode(text[len(_PREFIX) :], validate=True) if text.startswith(_PREFIX) else text.encode()
    except (binascii.Error, ValueError):
        raise ArgumentError("secret", f"expected base64 behind {_PREFIX}") from None
    if not key:
        raise ArgumentError("secret", "expected a text that is not empty")
    return key


class Signing:
    """The signatures of one request, one for each key.

    :param content: the body, or its beginning; ``update`` takes the rest.
    """

    def __init__(self, keys: Sequence[bytes], identifier: str, moment: str, content: bytes = b"") -> None:
        self._hashes = [hmac.new(key, f"{identifier}.{moment}.".encode() + content, hashlib.sha256) for key in keys]

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        for each in self._hashes:
            each.update(data)

    def text(self) -> str:
        """Return the value of ``webhook-signature``; empty without a key."""
        return " ".join(f"v1,{base64.b64encode(each.digest()).decode()}" for each in self._hashes)


def signed_headers(keys: Sequence[bytes], identifier: str, body: bytes) -> dict[str, str]:
    """Return the headers for a request with this body."""
    moment = str(int(time.time()))
    headers = {"webhook-id": identifier, "webhook-timestamp": moment}
    if keys:
        headers["webhook-signature"] = Signing(keys, identifier, moment, body).text()
    return headers


def check_signature(
    secret: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    name: str = "webhook-signature",
    now: Callable[[], float] = time.time,
) -> None:
    """Check the signature of a request, in the application that gets it.

    :param secret: the secret, or several of which one must fit.
    :param headers: those of the request, in lower case.
    :param name: the header with the signature.
    :raises ValueError: it is missing or wrong, or the request is more than five minutes old or early.
    """
    try:
        identifier, moment, given = headers["webhook-id"], headers["webhook-timestamp"], headers[name]
        age = abs(now() - int(moment))
    except (KeyError, ValueError, OverflowError):
        raise ValueError("the request is not signed") from None
    if age > TOLERANCE:
        raise ValueError("the request is too old")
    wanted = [Signing([key], identifier, moment, body).text() for key in read_secrets(secret)]
    if not any(hmac.compare_digest(each.encode(), one.encode()) for each in given.split() for one in wanted):
        raise ValueError("the signature is wrong")


def check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return headers of HTTP that are fit to be sent.

    :raises ArgumentError: one of them is not.
    """
    given: dict[str, Any] = dict(headers or {})
    for name, value in given.items():
        is_text = isinstance(value, str) and f"{name}{value}".isascii() and value.isprintable()
        if not is_text or not name.replace("-", "").isalnum():
            raise ArgumentError("headers", f"expected names and values of printable ASCII; {name!r} is wrong")
    return given
