"""Fixtures of several test files."""

from __future__ import annotations

from pathlib import Path

import pytest

from greensmtp.delivery import Maildir


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    return Maildir(tmp_path / "maildir")
