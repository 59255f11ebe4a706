"""A secret that a server makes for itself once, and keeps in a file."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex, token_urlsafe

#: Octets that a secret has at least, and that its file may have.
LEAST = 16
MOST = 4096


def keep_secret(path: Path) -> str:
    """Return the secret in a file; where there is no such file, make it, with a new secret, for its owner alone.

    Several processes may do this at the same time: all of them get the same secret. The file appears under its name
    when it is whole.

    :raises OSError: the file can neither be read nor made.
    :raises ValueError: what is in it is no secret; the text shows nothing of it.
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
            os.link(draft, path)  # unlike a rename, this does not replace what another process has made meanwhile
        except FileExistsError:
            pass
    finally:
        draft.unlink()
    return _read(path)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MOST + 1)
    try:
        secret = data.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{str(path)!r} holds no secret: it is not UTF-8") from None
    if not LEAST <= len(secret.encode()) <= MOST:
        raise ValueError(f"{str(path)!r} holds no secret: expected {LEAST} to {MOST} octets")
    return secret
