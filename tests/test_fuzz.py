"""The targets of fuzzing, on their seeds, on what fuzzing has found before, and on random bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

FINDINGS = Path(__file__).parent / "fuzz" / "findings"

each_target = pytest.mark.parametrize("name", TARGETS)


@each_target
def test_seeds_and_earlier_findings_pass(name: str) -> None:
    target = TARGETS[name]
    found = [path.read_bytes() for path in sorted((FINDINGS / name).glob("*"))]
    for data in (*target.seeds(), *found, b""):
        target.check(data)


@each_target
@given(data=st.binary(max_size=300))
def test_random_bytes_pass(name: str, data: bytes) -> None:
    TARGETS[name].check(data)
