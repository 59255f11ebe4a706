"""``[extensions]`` and ``lenient_addresses``, of all listeners and of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from greensmtp.config import dump
from greensmtp.config.build import assemble
from greensmtp.config.load import load
from greensmtp.testing import dial

TEXT = """
hostname = "mx.example.com"
lenient_addresses = true

[extensions]
CHUNKING = false
DSN = true
MT-PRIORITY = "MIXER"
DELIVERBY = 60
FUTURERELEASE = [86400, "2035-01-31T12:00:00Z"]

[[listeners]]
url = "127.0.0.1:1025"

[[listeners]]
url = "lmtp://127.0.0.1:1026"
lenient_addresses = false
[listeners.extensions]
CHUNKING = true
DSN = false
8BITMIME = false

[delivery]
maildir = false
"""


@pytest.mark.parametrize("again", [False, True], ids=["as written", "as printed"])
def test_a_listeners_extensions_are_added_to_the_common_ones(tmp_path: Path, again: bool) -> None:
    path = tmp_path / "greensmtp.toml"
    path.write_text(TEXT)
    if again:
        path.write_text(dump.write(load(path)))
    first, second = (each.server for each in assemble(load(path)).serving)
    common = {"MT-PRIORITY MIXER", "DELIVERBY 60", "FUTURERELEASE 86400 2035-01-31T12:00:00Z"}
    with dial(first) as peer:
        offered = {line[4:] for line in peer.hello().split("\n")}
        assert common | {"DSN", "8BITMIME"} <= offered
        assert "CHUNKING" not in offered
        peer.line("MAIL FROM:a@example.org")
        peer.expect("250")
    with dial(second) as peer:
        offered = {line[4:] for line in peer.hello(verb="LHLO").split("\n")}
        assert common | {"CHUNKING"} <= offered
        assert not {"DSN", "8BITMIME"} & offered
        peer.line("MAIL FROM:a@example.org")
        peer.expect("501 5.5.4 Syntax: MAIL FROM:<address> [parameters] (no angle brackets)")
