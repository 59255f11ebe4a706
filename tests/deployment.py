"""The files of docs/deploy, with the paths, names and ports of a test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Certificate

FOLDER = Path(__file__).resolve().parent.parent / "docs/deploy"


def read(name: str, changes: Mapping[str, str]) -> str:
    """Return a file with these strings replaced, each of which it must have."""
    return change((FOLDER / name).read_text("utf-8"), changes)


def change(text: str, changes: Mapping[str, str]) -> str:
    """Return a text with these strings replaced, each of which it must have."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the file"
        text = text.replace(old, new)
    return text


def places(folder: Path, certificate: Certificate | None = None) -> dict[str, str]:
    """Return what to replace so that a configuration writes to a folder of the test, and finds a certificate."""
    changes = {"/var/lib/greensmtp/mail": str(folder / "mail")}
    if certificate is not None:
        changes["/etc/greensmtp/tls/fullchain.pem"] = os.fspath(certificate.certfile)
        changes["/etc/greensmtp/tls/privkey.pem"] = os.fspath(certificate.keyfile)
    return changes
