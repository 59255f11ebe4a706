"""The short form of each fault. ``python -m tests.faults NAME --full`` is the long one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.faults import FAULTS
from tests.faults.run import Fault, NotPermitted, Unavailable, run_fault
from tests.faults.service import ROOT, need_mode
from tests.programs import missing

_CASES = [(fault, mode) for fault in FAULTS.values() for mode in fault.modes]


@pytest.mark.subprocess
@pytest.mark.timeout(170)  # seconds; on a quiet machine each takes a tenth of it
@pytest.mark.xdist_group("faults")
@pytest.mark.parametrize(("fault", "mode"), _CASES, ids=lambda each: each if isinstance(each, str) else each.name)
def test_what_must_hold_holds_in_the_short_form(fault: Fault, mode: str) -> None:
    try:
        need_mode(mode)
    except Unavailable as why:
        pytest.skip(str(why))
    try:
        run = run_fault(fault, full=False, mode=mode, minutes=None, verbose=False)
    except NotPermitted as why:
        pytest.skip(str(why))
    except Unavailable as why:
        missing(str(why))
    assert run.checks
    assert not run.failures


@pytest.mark.exhaustive
@pytest.mark.subprocess
@pytest.mark.timeout(280)  # on a fast machine, there are 300,000 messages to look at
@pytest.mark.xdist_group("faults")
def test_nothing_is_left_behind_after_two_minutes_of_full_load() -> None:
    run = run_fault(FAULTS["soak"], full=False, mode="plain", minutes=2, verbose=False)
    assert not run.failures


@pytest.mark.subprocess
def test_the_table_is_listed() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--list"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    for fault in FAULTS.values():
        assert f"{fault.name:12} {fault.does}\n" in ran.stdout
        assert fault.must in ran.stdout
