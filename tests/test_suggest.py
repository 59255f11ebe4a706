"""The nearest right name."""

from __future__ import annotations

import pytest

from greensmtp._suggest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "names", "near"),
    [
        ("recieved", ["received", "message"], "received"),
        ("rate_limit", ["RateLimit", "Tarpit"], "RateLimit"),
        ("over-tls", ["over_tls"], "over_tls"),
        ("STARTLS", ["STARTTLS", "SIZE"], "STARTTLS"),
        ("xyzzy", ["received", "message"], None),
        ("", ["received"], None),
        ("received", [], None),
    ],
)
def test_the_nearest_name_is_found_regardless_of_case_and_hyphens(
    name: str, names: list[str], near: str | None
) -> None:
    assert nearest(name, names) == near
    assert did_you_mean(name, names) == ("" if near is None else f"; did you mean {near!r}?")


def test_a_higher_cutoff_needs_more_alike_names() -> None:
    assert nearest("optionl", ["optional"], cutoff=0.9) == "optional"
    assert nearest("options", ["optional"], cutoff=0.9) is None
