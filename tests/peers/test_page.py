"""docs/conformance/peers.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_each_test_on_the_page_of_peers_exists() -> None:
    page = (ROOT / "docs" / "conformance" / "peers.md").read_text("utf-8")
    named = re.findall(r"`(tests/[^:`]*)::(\w+)`", page)
    assert len(named) > 20
    assert [f"{file}::{name}" for file, name in named if f"\ndef {name}(" not in (ROOT / file).read_text("utf-8")] == []
