"""A smoke test of the benchmark, which proves nothing about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.workloads import WORKLOADS

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


#: What a machine may lack: a peer, its tools, the compiled build, root. Anything else is a failure.
LACKING = ("is not installed", "install golang", "cannot create", "makes the compiled build", "only root")


def _run_once(work: str, servers: str, output: Path) -> dict[str, Any]:
    """Run one short round; return the results, which name only servers that the machine lacks as skipped."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", work, "--servers", servers]
    ran = subprocess.run(
        [*command, "--output", str(output), "--chart", str(output.with_suffix(".svg"))],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout
    results: dict[str, Any] = json.loads(output.read_text())
    for skipped in results["skipped"].values():
        for server, why in skipped.items():
            lacking = any(text in why for text in LACKING) or why.startswith(f"{server} has no ")
            assert lacking, f"{server}: {why}"
    return results


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
@pytest.mark.parametrize("work", WORKLOADS)
def test_each_workload_measures_each_of_its_servers(program: Callable[[str], str], tmp_path: Path, work: str) -> None:
    program("smtp-source")
    results = _run_once(work, "bare,plain,full", tmp_path / "results.json")
    wanted = {name for name in WORKLOADS[work].servers if name not in CONTENDERS or name in ("bare", "plain", "full")}
    measured = results["medians"].get(work, {})
    assert measured.keys() | results["skipped"].get(work, {}).keys() == wanted
    assert all(values for values in measured.values())


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", CONTENDERS)
def test_each_contender_takes_messages(program: Callable[[str], str], tmp_path: Path, server: str) -> None:
    program("smtp-source")
    results = _run_once("kept", server, tmp_path / "results.json")
    assert results["medians"].get("kept", {}).keys() | results["skipped"].get("kept", {}).keys() == {server}
