"""The tables of docs/conformance: each row is complete, and each test that it names exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "conformance").glob("rfc*.md"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)

#: ``4.1.1.5``, ``3.2 (1)``, ``F.2``, ``4.1.1.6 to 4.1.1.9``, ``RFC 5321 4.1.1.4``
SECTION = re.compile(r"(?:RFC \d+ )?(?:\d+|[A-F])(?:\.\d+)*(?: \(\d+\))?(?: to \d+(?:\.\d+)*)?")

#: Statuses that say something about behaviour, which a test must show.
SHOWN = ("does", "partly", "refuses")


@pytest.fixture(scope="module")
def generate() -> Any:
    """Return docs/generate.py."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def find_tests(path: Path) -> frozenset[str]:
    """Return the tests in a file, those of a class as ``TestClass::test_name``. The file is not imported."""

    def found(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from found(node.body, f"{prefix}{node.name}::")
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                yield prefix + node.name

    return frozenset(found(ast.parse(path.read_text("utf-8")).body))


def exists(test: str) -> bool:
    """Return True if a test exists: ``tests/a/test_b.py::test_c``, perhaps with ``[case]``; or a dialogue."""
    path, _, name = test.partition("::")
    file = ROOT / path
    if not path.startswith("tests/") or not file.is_file():
        return False
    return path.endswith(".smtp") if not name else name.partition("[")[0] in find_tests(file)


@each_page
def test_each_row_has_a_section_a_side_a_level_and_a_status(page: Path, generate: Any) -> None:
    rows = list(generate.requirements(page))
    assert rows
    for row in rows:
        assert all(SECTION.fullmatch(section) for section in row.section.split(", ")), (row.place, row.section)
        assert row.side in generate.SIDES, (row.place, row.side)
        assert row.level in generate.LEVELS, (row.place, row.level)
        assert row.status in generate.STATUSES, (row.place, row.status)
        assert row.requirement, row.place


@each_page
def test_each_test_that_is_named_exists(page: Path, generate: Any) -> None:
    named = [(row.place, test) for row in generate.requirements(page) for test in row.tests]
    assert [(place, test) for place, test in named if not exists(test)] == []


@each_page
def test_what_greensmtp_does_is_shown_by_a_test(page: Path, generate: Any) -> None:
    assert [row.place for row in generate.requirements(page) if row.status in SHOWN and not row.tests] == []


@each_page
def test_what_greensmtp_does_not_do_has_its_reason(page: Path, generate: Any) -> None:
    rows = [row for row in generate.requirements(page) if row.status != "does"]
    assert [row.place for row in rows if not row.greensmtp] == []


@each_page
def test_no_requirement_stands_on_a_page_twice(page: Path, generate: Any) -> None:
    rows = [(row.side, row.requirement) for row in generate.requirements(page)]
    assert [row for row in rows if rows.count(row) > 1] == []


def test_the_index_names_each_page_and_counts_its_rows(generate: Any) -> None:
    index = (ROOT / "docs" / "conformance" / "index.md").read_text("utf-8")
    assert [page.stem for page in PAGES if f"\n{page.stem}\n" not in index] == []
    assert [page.name for page in PAGES if f"({page.name})" not in generate.conformance()] == []


def test_the_index_shows_what_is_not_met(generate: Any) -> None:
    shown = generate.conformance_gaps()
    rows = [row for page in PAGES for row in generate.requirements(page)]
    assert [row.place for row in rows if (row.status in generate.GAPS) != (row.requirement in shown)] == []


def test_each_test_of_conformance_is_named_by_a_row(generate: Any) -> None:
    named = {test for page in PAGES for row in generate.requirements(page) for test in row.tests}
    for path in sorted((ROOT / "tests" / "conformance").glob("test_*.py")):
        place = path.relative_to(ROOT).as_posix()
        assert sorted(name for name in find_tests(path) if f"{place}::{name}" not in named) == []


@pytest.mark.parametrize(
    ("test", "there"),
    [
        ("tests/test_conformance.py::test_each_test_that_is_named_exists", True),
        ("tests/test_conformance.py::test_each_test_that_is_named_exists[rfc5321]", True),
        ("tests/test_conformance.py::test_no_such_test", False),
        ("tests/test_conformance.py::exists", False),
        ("tests/test_conformance.py", False),
        ("tests/no_such_file.py::test_x", False),
        ("docs/generate.py::table", False),
        ("tests/corpus/no-such-dialogue.smtp", False),
    ],
)
def test_a_test_is_found_by_its_name(test: str, there: bool) -> None:
    assert exists(test) is there


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("| 4.1 | server | MUST | x | does | y |", "expected 7 cells, got 6"),
        ("| 4.1 | server | MUST | a | b | does | y | `tests/x.py::test_y` |", "expected 7 cells, got 8"),
    ],
)
def test_a_row_has_seven_cells(tmp_path: Path, generate: Any, line: str, error: str) -> None:
    page = tmp_path / "rfc1.md"
    page.write_text(f"# RFC 1\n\n{line}\n")
    with pytest.raises(ValueError, match=error):
        list(generate.requirements(page))


def test_a_row_is_read_with_all_its_tests(tmp_path: Path, generate: Any) -> None:
    page = tmp_path / "rfc1.md"
    page.write_text("| Section | Side |\n|---|---|\n| 4.1 | server | MUST | a \\| b | does | | `x::a`<br>`x::b` |\n")
    assert list(generate.requirements(page)) == [
        ("rfc1.md:3", "4.1", "server", "MUST", "a \\| b", "does", "", ("x::a", "x::b"))
    ]
