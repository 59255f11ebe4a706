"""Limits: the default, the range and the error message of each keyword."""

from __future__ import annotations

import dataclasses
import inspect
import re
from math import inf, nan
from typing import Any, cast

import pytest

import greensmtp.server.limits
from greensmtp import SMTPServer
from greensmtp.server.limits import Limits

#: keyword -> default, the least, what an error says that it takes
TABLE: dict[str, tuple[Any, Any, str]] = {
    "max_line_length": (512, 64, "a whole number of at least 64"),
    "max_auth_line_length": (12_288, 64, "a whole number of at least 64"),
    "max_message_size": (32 * 1024 * 1024, 1, "a whole number of at least 1, or None for no limit"),
    "max_recipients": (1_000, 1, "a whole number of at least 1"),
    "max_errors": (20, 1, "a whole number of at least 1"),
    "max_idle_commands": (100, 1, "a whole number of at least 1"),
    "max_connections": (1_000, 1, "a whole number of at least 1, or None for no limit"),
    "command_timeout": (300.0, 0.001, "a number of seconds above 0"),
    "data_timeout": (180.0, 0.001, "a number of seconds above 0"),
    "ack_timeout": (120.0, 0.001, "a number of seconds above 0"),
    "handler_timeout": (300.0, 0.001, "a number of seconds above 0"),
    "tls_timeout": (30.0, 0.001, "a number of seconds above 0"),
    "proxy_timeout": (30.0, 0.001, "a number of seconds above 0"),
    "min_data_rate": (64.0, 0, "a number of at least 0"),
    "data_rate_grace": (60.0, 0, "a number of at least 0"),
    "max_body_line_length": (None, 78, "a whole number of at least 78, or None for no limit"),
}
NO_LIMIT = {"max_message_size", "max_connections", "max_body_line_length"}

WRONG: dict[str, tuple[Any, ...]] = {
    "a whole number": (-1, 0, 1.0, 1e9, inf, nan, "1", b"1", True, False, (), -(10**400)),
    "a number": (-1, -0.5, -inf, nan, "1", b"1", True, False, (), 1j, -(10**400)),
}


def wrong_values(name: str) -> list[Any]:
    """Return values that this keyword does not take."""
    _, least, takes = TABLE[name]
    values = [value for start, wrong in WRONG.items() if takes.startswith(start) for value in wrong]
    if least not in (0, 0.001):
        values.append(least - 1)
    if least == 0.001:
        values += [0, 0.0]
    return values if name in NO_LIMIT else [*values, None]


def test_the_table_has_every_keyword() -> None:
    assert [field.name for field in dataclasses.fields(Limits)] == [
        *(name for name in TABLE if name != "max_body_line_length"),
        "bare_newlines",
        "max_body_line_length",
    ]


@pytest.mark.parametrize("name", TABLE)
def test_a_keyword_has_its_default_and_its_range(name: str) -> None:
    default, least, _ = TABLE[name]
    assert getattr(Limits(), name) == default
    for value in (least, default, 10**6, *([10**400] if isinstance(least, int) else [0.5, inf])):
        assert getattr(Limits(**{name: value}), name) == value


@pytest.mark.parametrize("name", sorted(NO_LIMIT))
def test_none_is_no_limit(name: str) -> None:
    keywords: dict[str, Any] = {name: None}
    assert getattr(Limits(**keywords), name) is None


@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_value_is_refused_by_name(name: str) -> None:
    for value in wrong_values(name):
        with pytest.raises(ValueError, match=f"^{re.escape(f'{name} takes {TABLE[name][2]}, not {value!r}')}$"):
            Limits(**{name: value})


def test_bare_newlines_are_normalized_rejected_or_kept() -> None:
    assert Limits().bare_newlines == "normalize"
    assert Limits(bare_newlines="reject").bare_newlines == "reject"
    assert Limits(bare_newlines="keep").bare_newlines == "keep"


@pytest.mark.parametrize("value", ["", "Reject", "allow", None, True, 1, [], b"reject"])
def test_bare_newlines_are_nothing_else(value: Any) -> None:
    with pytest.raises(ValueError, match=r'^bare_newlines takes "normalize", "reject" or "keep", not '):
        Limits(bare_newlines=value)


def test_limits_are_keywords_and_stay_as_they_are() -> None:
    with pytest.raises(TypeError):
        Limits(512)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="max_speed"):
        Limits(max_speed=1)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().max_errors = 5  # type: ignore[misc]


@pytest.mark.parametrize("name", [name for name in TABLE if name.endswith("_timeout")])
def test_the_shortest_timeout_may_be_any_of_them(name: str) -> None:
    keywords: dict[str, Any] = {name: 0.25}
    assert Limits(**keywords).shortest_timeout == 0.25
    assert Limits().shortest_timeout == 30.0


@pytest.mark.parametrize("name", [*TABLE, "bare_newlines"])
def test_a_server_takes_each_of_them(name: str) -> None:
    value: Any = "keep" if name == "bare_newlines" else 5_000
    server = SMTPServer(("127.0.0.1", 0), **{name: value})
    assert getattr(server.limits, name) == value
    wrong: dict[str, Any] = {name: "plenty"}
    with pytest.raises(ValueError, match=f"^{name} takes "):
        SMTPServer(("127.0.0.1", 0), **wrong)


def test_each_of_them_is_explained() -> None:
    """The comment before a field is its documentation."""
    source = inspect.getsource(greensmtp.server.limits.Limits).splitlines()
    for field in dataclasses.fields(Limits):
        line = next(number for number, text in enumerate(source) if text.startswith(f"    {field.name}:"))
        assert source[line - 1].startswith("    #:"), field.name


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("max_mesage_size", "max_message_size"),
        ("hostnam", "hostname"),
        ("cert_file", "certfile"),
        ("middlewares", "middleware"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"^SMTPServer takes no argument '{wrong}'; did you mean '{meant}'\?$"):
        SMTPServer("127.0.0.1:0", **{wrong: cast("Any", None)})


def test_limits_may_be_given_as_such() -> None:
    limits = Limits(max_recipients=7)
    assert SMTPServer(("127.0.0.1", 0), limits=limits).limits is limits
    assert SMTPServer(("127.0.0.1", 0), limits=None).limits.max_recipients == 1_000


def test_limits_and_their_keywords_together_are_refused() -> None:
    with pytest.raises(TypeError, match=r"give limits=Limits\(\.\.\.\) or its keywords \(max_errors\), not both"):
        SMTPServer(("127.0.0.1", 0), limits=Limits(), max_errors=3)


@pytest.mark.parametrize("wrong", [{"max_errors": 3}, 7, "7", Limits])
def test_what_are_no_limits_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"limits must be a greensmtp\.Limits"):
        SMTPServer(("127.0.0.1", 0), limits=wrong)
