"""Users and their AUTH commands, for the tests of Auth."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from greensmtp.middleware import Auth

USERS = {"jo": "sesame", "ann": "pa=ss,wörd"}
PLAIN_JO = b64encode(b"\0jo\0sesame").decode()
PLAIN_WRONG = b64encode(b"\0jo\0wrong").decode()


def ignore(value: object) -> None:
    """Drop a value, so that a lambda with it returns no decision."""


def offered(hello: str) -> list[str]:
    """Return the mechanisms in a reply to EHLO."""
    found = re.search(r"^250[ -]AUTH (.+)$", hello, re.MULTILINE)
    return found[1].split() if found else []


def keeping(seen: list[Any], what: Callable[..., Any]) -> Callable[..., None]:
    """Return a handler that accepts, and keeps something."""

    def handler(session: Any, ack: Any, **fields: Any) -> None:
        seen.append(what(session, **fields))
        ack.accept()

    return handler


def in_the_clear(backend: Any = USERS, **options: Any) -> Auth:
    return Auth(backend, allow_plaintext=True, **options)
