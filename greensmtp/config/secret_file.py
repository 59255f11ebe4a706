"""A secret that the server generates once and keeps in a file."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex, token_urlsafe

#: Minimum and maximum length of a secret, in bytes.
MIN_BYTES = 16
MAX_BYTES = 4096


def keep_secret(path: Path) -> str:
    """Return the secret in a file; create the file, readable by its owner only, if it does not exist.

    Several processes may do this at the same time: all of them get the same secret. The file appears under its name
    only when it is complete.

    :raises OSError: the file can neither be read nor created.
    :raises ValueError: the file does not contain a secret; the text shows nothing of its content.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    draft = path.with_name(f".{path.name}.{token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike a rename, it replaces no file that another process has created meanwhile
        except FileExistsError:
            pass
    finally:
        draft.unlink()
    return _read(path)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        secret = data.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} contains no secret: it is not UTF-8") from None
    if not MIN_BYTES <= len(secret.encode()) <= MAX_BYTES:
        raise ValueError(f"{str(path)!r} contains no secret: expected {MIN_BYTES} to {MAX_BYTES} bytes")
    return secret
