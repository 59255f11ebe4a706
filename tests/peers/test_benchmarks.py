"""A smoke test of the benchmark, which proves nothing about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

#: One of each kind.
WORK = "kept,each,pipelined,big,starttls,tls,idle,slow,bdat_1g,import"


@pytest.mark.parametrize("work", ["kept,idle", pytest.param(WORK, marks=pytest.mark.exhaustive)])
def test_a_smoke_run_measures_what_it_is_told_to(program: Callable[[str], str], tmp_path: Path, work: str) -> None:
    program("smtp-source")
    output, chart = tmp_path / "results.json", tmp_path / "chart.svg"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", work, "--servers", "plain,bare", "--check"]
    ran = subprocess.run(
        [*command, "--output", str(output), "--chart", str(chart)],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
    )
    assert ran.returncode == ("MISSED" in ran.stdout), ran.stdout
    results = json.loads(output.read_text())
    assert results["skipped"] == {}, ran.stdout
    assert list(results["medians"]) == work.split(",")
    for workload in {"kept", "each", "pipelined", "big", "starttls", "tls"}.intersection(work.split(",")):
        medians = results["medians"][workload]
        assert list(medians) == ["bare", "plain"]
        assert all(value > 0 for each in medians.values() for value in each.values())
    assert "plain to the floor" in ran.stdout
    assert chart.read_text().startswith("<svg ")
