"""The picture of ``greensmtp top``: it fits, it is that of the documentation, and it trusts no text."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from greensmtp.cli.top_view import curve, draw, duration, size
from greensmtp.service.overview import Overview

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "top_picture.py"


@pytest.fixture
def script() -> Any:
    """The module that draws the picture of the documentation."""
    spec = importlib.util.spec_from_file_location("top_picture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(report: Any, width: int = 100, height: int = 40) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False, markup=False)
    console.print(draw(report, {}, height=height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_picture_of_the_documentation_is_up_to_date(script: Any) -> None:
    assert script.picture() == script.PICTURE.read_text("utf-8"), "run python docs/top_picture.py"


@pytest.mark.parametrize("height", [24, 40, 60])
def test_it_fits_the_terminal(script: Any, height: int) -> None:
    overview = Overview()
    for pid in range(1, 30):
        snapshot = script._snapshot(pid, 1)
        for table in ("senders", "peers", "rejections", "sessions"):
            snapshot[table] = snapshot[table] * 10
        overview.add(pid, snapshot)
    for number in (1, 29):
        overview.keep(range(1, number + 1))
        lines = shown(overview.report(), 80, height)
        assert max(map(len, lines)) <= 80
        assert len(lines) < max(height, 34)


def test_text_of_clients_cannot_control_the_terminal(script: Any) -> None:
    snapshot = script._snapshot(1, 1)
    hostile = "\x1b[2J[bold]\u202e"
    snapshot["senders"] = [[hostile, 1, 1, 1]]
    snapshot["peers"] = [[hostile, 1, 1, 1]]
    snapshot["rejections"] = [[hostile, 550, hostile, 1]]
    snapshot["listeners"] = [hostile]
    snapshot["sessions"] = [each | {"id": hostile, "peer": hostile, "doing": hostile} for each in snapshot["sessions"]]
    snapshot["sessions"] += [each | {"sender": None, "identity": hostile} for each in snapshot["sessions"]]
    overview = Overview()
    overview.add(1, snapshot)
    text = "".join(shown(overview.report(), 200))
    assert text.isprintable()
    assert "[bold]" in text


def test_rates_and_sums_of_processes(script: Any) -> None:
    overview = Overview()
    for pid in (1, 2):
        for second in (0, 2):
            snapshot = script._snapshot(pid, second)
            snapshot["totals"]["messages"] = 100 * pid + second * 10
            overview.add(pid, snapshot)
    report = overview.report()
    assert report["total"]["rates"]["messages"] == 20
    assert report["total"]["totals"]["messages"] == 340
    assert [each["rates"]["messages"] for each in report["processes"]] == [10, 10]
    assert report["total"]["rejections"][0] == ["RCPT", 550, "5.1.1 <...>: no such user", 2920]
    assert Overview().report()["total"]["rates"]["messages"] == 0


def test_figures_for_people() -> None:
    assert [size(each) for each in (0, 999, 1500, 123456, 5e9, 7e12)] == [
        *("0 B", "999 B", "1.5 kB", "123 kB", "5.0 GB", "7.0 TB")
    ]
    assert [duration(each) for each in (1, 99, 700, 10_000)] == ["1 s", "99 s", "12 min", "2.8 h"]
    assert curve([0, 1, 4, 8]) == "▁▁▄█"
    assert curve([0, 0]) == "▁▁"
    assert curve([]) == ""
