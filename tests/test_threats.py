"""docs/topics/threats.md: each row names tests, each of them exists, and no test of an attack is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/topics/threats.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| threat ")
]


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:60] for row in ROWS])
def test_each_row_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 3
    assert all(row)
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[2])
    assert named
    assert ", ".join(f"`{path}::{name}`" for path, name in named) == row[2]
    for path, name in named:
        assert name in names_in(path)


def test_every_kind_of_attack_is_on_the_page() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/attacks").glob("test_*.py")}
    assert {path for path in files if f"`{path}::" not in PAGE} == set()
