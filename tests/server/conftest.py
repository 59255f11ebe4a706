"""Fixtures of the server's tests."""

from __future__ import annotations

import pytest

from greensmtp.server import shutdown


@pytest.fixture
def short_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give connections that ``stop`` has cut off 50 ms to end, not 400."""
    monkeypatch.setattr(shutdown, "KILL_SECONDS", 0.05)
