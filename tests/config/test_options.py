"""Options of a middleware in a file: they are validated by the annotations of its constructor."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pytest

from greensmtp.config.load import load
from greensmtp.config.options import NOT_IN_TOML, describe_options, expressible, is_path
from greensmtp.config.problems import ConfigError
from greensmtp.delivery import CeleryTask, Forward, Maildir, Pipe, RedisStream, Spool, Webhook
from greensmtp.middleware import AccessList, PolicyHook

if TYPE_CHECKING:
    from decimal import Decimal


class Mode(Enum):
    """An enumeration."""

    SOFT = "soft"
    HARD = "hard"


class Backend(Protocol):
    """An object, which no file can hold."""

    def check(self, name: str) -> bool: ...


class Probe:
    """A middleware with an option of every type."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        rate: str | Sequence[str],
        *,
        by: Literal["address", "network"] | Callable[[Any], str] = "address",
        often: int = 1,
        seconds: float | None = 1.0,
        networks: Iterable[str] = (),
        codes: tuple[int, ...] = (),
        pair: tuple[str, int] = ("", 0),
        names: frozenset[str] = frozenset(),
        users: Backend | Mapping[str, str] | str = "",
        file: str | Path | None = None,
        either: Path | Mapping[str, int] | str | None = None,
        mode: Mode = Mode.SOFT,
        logger: logging.Logger | None = None,
        rules: list[dict[str, int | str]] | None = None,
        anything: Any = None,
        schema: Annotated[bool, "a name that models have, too"] = False,
        copy=None,
    ) -> None:
        given = dict(locals())
        self.given = {name: value for name, value in given.items() if name != "self"}

    def __call__(self, session: Any, command: Any, proceed: Any) -> Any:
        return proceed(session, command)


def keywords(session: Any = None, command: Any = None, proceed: Any = None, **options: int) -> Any:
    """A factory with arbitrary keyword arguments."""
    return Probe("")


class Silent:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise LookupError


class Unread:
    """A middleware with an annotation that only type checkers can read."""

    def __init__(self, amount: Decimal | None = None, level: int = 0) -> None: ...


SILENT = Silent()


def unfit(amount: Any = 3, mode: Any = SILENT) -> Any:
    """Has an annotation that is no Python, and a default that cannot be shown."""


unfit.__annotations__["amount"] = "at most ten"


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return the arguments of the factory for these lines of a file."""
    factories = {"probe": Probe, "keywords": keywords, "unread": Unread, "unfit": unfit, "builtin": dict}
    monkeypatch.setattr("greensmtp.config.load.middleware_factory", factories.__getitem__)

    def read(lines: str, use: str = "probe") -> dict[str, Any]:
        path = tmp_path / "greensmtp.toml"
        path.write_text(f"[[middleware]]\nuse = '{use}'\n{lines}\n")
        (given,) = load(path).arguments.values()
        return given

    return read


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("rate = '1/minute'", "1/minute"),
        ("rate = ['1/minute', '2/hour']", ["1/minute", "2/hour"]),
        ("by = 'network'", "network"),
        ("often = 7", 7),
        ("seconds = 7", 7.0),
        ("seconds = 0.5", 0.5),
        ("seconds = inf", float("inf")),
        ("seconds = false", None),
        ("networks = ['10.0.0.0/8']", ["10.0.0.0/8"]),
        ("codes = [1, 2, 3]", (1, 2, 3)),
        ("pair = ['a', 1]", ("a", 1)),
        ("names = ['a', 'b', 'a']", frozenset("ab")),
        ("users = { beep = 'boop' }", {"beep": "boop"}),
        ("users = 'htpasswd:/etc/users'", "htpasswd:/etc/users"),
        ("file = false", None),
        ("either = 'text'", "text"),
        ("either = { a = 1 }", {"a": 1}),
        ("mode = 'hard'", Mode.HARD),
        ("rules = [{ a = 1 }, { b = 'x' }]", [{"a": 1}, {"b": "x"}]),
        ("anything = { deep = [1, 'x', 2.5] }", {"deep": [1, "x", 2.5]}),
        ("schema = true", True),
        ("copy = 1", 1),
        ("'users'.\"dotted\" = 'x'", {"dotted": "x"}),
    ],
)
def test_the_constructor_gets_the_values_of_the_file(
    arguments: Callable[..., dict[str, Any]], line: str, value: Any
) -> None:
    given = arguments(line if line.startswith("rate") else f"rate = '1'\n{line}")
    name = line.partition(" ")[0].partition(".")[0].strip("'")
    assert given.keys() == {"rate", name}
    assert given[name] == value
    assert type(given[name]) is type(value)
    assert Probe(**given).given[name] == value


def test_a_relative_path_option_starts_from_the_files_folder(
    arguments: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert arguments("rate = '1'\nfile = 'sub/list'")["file"] == tmp_path / "sub" / "list"
    assert arguments("rate = '1'\nfile = '/etc/list'")["file"] == Path("/etc/list")


def test_a_url_in_the_place_of_a_path_stays_a_url(arguments: Callable[..., dict[str, Any]]) -> None:
    """The store of large messages is a folder, or a bucket."""
    assert arguments("rate = '1'\nfile = 's3://bucket/prefix'")["file"] == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("factory", "option"),
    [
        (Pipe, "folder"),
        (Forward, "ca"),
        (Webhook, "ca"),
        (Webhook, "store"),
        (CeleryTask, "store"),
        (RedisStream, "store"),
        (Maildir, "path"),
        (Spool, "path"),
        (PolicyHook, "ca"),
        (AccessList, "allow_file"),
        (AccessList, "deny_file"),
    ],
)
def test_options_of_the_catalogue_that_are_paths_start_from_the_files_folder(
    factory: Callable[..., Any], option: str
) -> None:
    assert is_path(inspect.signature(factory, eval_str=True).parameters[option].annotation)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("", "1: middleware.rate: Probe: must be given"),
        ("rate = 3", "3: middleware.rate: Probe: expected a string or an array; got an integer"),
        ("rate = ['x',\n 3]", "3: middleware.rate: Probe: expected a string; got an integer"),
        ("rate = ''\nby = 'moon'", '4: middleware.by: Probe: expected "address" or "network"'),
        ("rate = ''\noften = true", "4: middleware.often: Probe: expected an integer; got true or false"),
        ("rate = ''\nseconds = '1'", "4: middleware.seconds: Probe: expected a number; got a string"),
        ("rate = ''\nnetworks = '10.0.0.0/8'", "4: middleware.networks: Probe: expected an array; got a string"),
        ("rate = ''\npair = ['a']", "4: middleware.pair"),
        ("rate = ''\nusers = 3", "4: middleware.users: Probe: expected a table or a string; got an integer"),
        (
            "rate = ''\n[middleware.users]\na = 'x'\nb = 3",
            "6: middleware.users.b: Probe: expected a string; got an integer",
        ),
        ("rate = ''\nmode = 'harsh'", '4: middleware.mode: Probe: expected "soft" or "hard"'),
        (
            "rate = ''\nlogger = 'x'",
            "4: middleware.logger: Probe: expected logging.Logger | None, which TOML cannot express",
        ),
        (
            "rate = ''\nrules = [{ a = [] }]",
            "4: middleware.rules.a: Probe: expected an integer or a string; got a",
        ),
        ("rate = ''\nratee = ''", "4: middleware.ratee: Probe: there is no such key; did you mean rate?"),
    ],
)
def test_a_wrong_type_is_reported_with_its_line(
    arguments: Callable[..., dict[str, Any]], lines: str, complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        arguments(lines)
    (line,) = caught.value.lines
    assert line.partition("greensmtp.toml:")[2].replace("probe: ", "Probe: ").startswith(complaint)


def test_a_callable_with_keyword_arguments_gets_any_option(arguments: Callable[..., dict[str, Any]]) -> None:
    assert arguments("command = 'x'\nany = 1\nmore = [1]", "keywords") == {"command": "x", "any": 1, "more": [1]}
    assert arguments("x = 1", "builtin") == {"x": 1}


def test_an_unresolvable_annotation_accepts_anything(arguments: Callable[..., dict[str, Any]]) -> None:
    assert arguments("amount = 3\nlevel = 'x'", "unread") == {"amount": 3, "level": "x"}
    assert arguments("amount = 'x'", "unfit") == {"amount": "x"}


@pytest.mark.parametrize(
    ("annotation", "form"),
    [
        (Collection[int], list[int]),
        (Mapping[str, Sequence[str]], dict[str, list[str]]),
        (dict, dict),
        (list, list),
        (Backend, NOT_IN_TOML),
        (Backend | Callable[[], int], NOT_IN_TOML),
        (list[Backend], NOT_IN_TOML),
        (dict[str, Backend], NOT_IN_TOML),
        (tuple[int, Backend], NOT_IN_TOML),
        (None, None),
        (object, Any),
        (Annotated[int, "more"], int),
        (Backend | int, int),
    ],
)
def test_a_type_is_reduced_to_what_toml_can_express(annotation: Any, form: Any) -> None:
    assert expressible(annotation) == form


def test_options_that_toml_cannot_express_are_not_described() -> None:
    names = {option.partition("=")[0] for option in describe_options(Probe).split(", ")}
    assert "logger" not in names
    assert {"rate", "users", "file", "schema", "copy"} <= names
    assert describe_options(unfit) == "amount=3, mode=..."
    assert describe_options(keywords) == "session=None, command=None, proceed=None, ..."
