"""SRS: forwarded reverse-paths lead back, and nobody else can make one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greensmtp.delivery import SRS

DAY = 86400.0


def srs(domain: str = "relay.example", secrets: str | list[str] = "secret", days: float = 20_000) -> SRS:
    return SRS(domain, secrets, now=lambda: days * DAY)


def test_an_address_goes_there_and_back() -> None:
    made = srs().forward("jo@example.com")
    assert made.startswith("SRS0=")
    assert made.endswith("=example.com=jo@relay.example")
    assert srs().reverse(made) == "jo@example.com"
    assert srs().reverse(made.lower()) == "jo@example.com"  # some servers change the case


def test_the_null_sender_and_our_own_domain_stay() -> None:
    assert srs().forward("") == ""
    assert srs().forward("jo@Relay.example") == "jo@Relay.example"


def test_what_was_forwarded_before_goes_back_by_the_first_server() -> None:
    first, second, third = srs("one.example", "1"), srs("two.example", "2"), srs("three.example", "3")
    once = first.forward("jo@example.com")
    twice = second.forward(once)
    thrice = third.forward(twice)
    assert twice.startswith("SRS1=")
    assert len(thrice) - len(twice) == len("three.example") - len("two.example")  # it does not grow
    assert third.reverse(thrice) == once
    assert first.reverse(once) == "jo@example.com"


def test_an_old_secret_is_accepted() -> None:
    old = srs(secrets="old").forward("jo@example.com")
    assert srs(secrets=["new", "old"]).reverse(old) == "jo@example.com"
    with pytest.raises(ValueError, match="the hash is wrong"):
        srs(secrets="new").reverse(old)


@pytest.mark.parametrize(
    "address",
    [
        "SRS0=AAAA=AA=example.com=jo@relay.example",
        "SRS0=nonsense@relay.example",
        "SRS0====@relay.example",
        "SRS1=AAAA=one.example==AAAA=AA=example.com=jo@relay.example",
        "srs1=@relay.example",
    ],
)
def test_what_we_have_not_made_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"hash|malformed"):
        srs().reverse(address)


@pytest.mark.parametrize("days", [22, 500, 1000])
def test_an_address_has_its_time(days: int) -> None:
    made = srs().forward("jo@example.com")
    assert srs(days=20_021).reverse(made) == "jo@example.com"
    with pytest.raises(ValueError, match="too old"):
        srs(days=20_000 + days).reverse(made)


def test_other_addresses_are_not_ours() -> None:
    assert srs().reverse("jo@relay.example") is None
    assert srs().reverse("SRS0=AAAA=AA=example.com=jo@other.example") is None


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="@"), min_size=1, max_size=60))
def test_any_local_part_goes_there_and_back(local_part: str) -> None:
    made = srs().forward(f"{local_part}@example.com")
    if not local_part.upper().startswith(("SRS0", "SRS1")):
        assert srs().reverse(made) == f"{local_part}@example.com"
