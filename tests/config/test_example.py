"""examples/greensmtp.toml has every key, and every line of it is valid."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import greensmtp.middleware
from greensmtp.config.defaults import DEFAULT_STACK
from greensmtp.config.dump import effective
from greensmtp.config.load import load
from greensmtp.config.model import Config, known_keys
from greensmtp.config.options import NOT_IN_TOML, expressible
from greensmtp.config.problems import ConfigError
from greensmtp.plugins import installed_deliveries
from greensmtp.server.limits import Limits

Serve = Callable[..., Any]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "greensmtp.toml"
#: With what is commented out.
WHOLE = re.sub(r"(?m)^#(?=[^\s#])", "", EXAMPLE.read_text("utf-8"))


def tables(data: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """Return the keys of every table by its path; the tables of an array count as one."""
    found: dict[tuple[str, ...], set[str]] = {}
    for each in data if isinstance(data, list) else [data]:
        if isinstance(each, dict):
            found.setdefault(path, set()).update(each)
            for key, value in each.items():
                for place, keys in tables(value, (*path, key)).items():
                    found.setdefault(place, set()).update(keys)
    return found


def test_every_key_is_there() -> None:
    used = tables(tomllib.loads(WHOLE))
    #: What a listener may have of its own is explained where it is said for all.
    shown_elsewhere = {("listeners", name) for name in ("limits", "extensions", "middleware")}
    missing = {
        ".".join(map(str, (*path, name)))
        for path, names in known_keys().items()
        if path not in shown_elsewhere
        for name in names
        if name not in used.get(tuple(map(str, path)), ())
    }
    assert not missing
    assert shown_elsewhere <= used.keys()


@pytest.mark.parametrize("name", greensmtp.middleware.__all__)
def test_every_option_of_every_middleware_is_there(name: str) -> None:
    entries = [entry for entry in tomllib.loads(WHOLE)["middleware"] if entry["use"] == name]
    assert entries, f'examples/greensmtp.toml lacks [[middleware]] use = "{name}"'
    used = {key for entry in entries for key in entry}
    parameters = inspect.signature(getattr(greensmtp.middleware, name), eval_str=True).parameters.values()
    assert not {each.name for each in parameters if expressible(each.annotation) is not NOT_IN_TOML} - used


@pytest.mark.parametrize("name", installed_deliveries())
def test_every_option_of_every_delivery_is_there(name: str) -> None:
    entries = [entry for entry in tomllib.loads(WHOLE)["deliveries"] if entry["use"] == name]
    used = {key for entry in entries for key in entry}
    parameters = inspect.signature(installed_deliveries()[name].load(), eval_str=True).parameters.values()
    assert not {each.name for each in parameters if expressible(each.annotation) is not NOT_IN_TOML} - used


@pytest.mark.parametrize("name", greensmtp.middleware.__all__)
def test_the_example_shows_the_defaults_of_each_middleware(name: str) -> None:
    """A simple value is the parameter's default, or the one in the default stack."""
    entries = [entry for entry in tomllib.loads(WHOLE)["middleware"] if entry["use"] == name]
    for parameter in inspect.signature(getattr(greensmtp.middleware, name)).parameters.values():
        if isinstance(parameter.default, str | int | float):
            given = {entry[parameter.name] for entry in entries if parameter.name in entry}
            usual = {entry[parameter.name] for entry in DEFAULT_STACK if parameter.name in entry}
            assert given <= {parameter.default} | usual, parameter.name


def test_every_line_is_valid_including_commented_out_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "greensmtp.toml"
    path.write_text(WHOLE)
    for reference in re.findall(r'\benv = "(\w+)"', WHOLE):
        monkeypatch.setenv(reference, "secret")
    for reference in re.findall(r'\bfile = "([\w./-]+)"', WHOLE):
        (tmp_path / reference).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / reference).write_text("secret\n")
    try:
        load(path)
    except ConfigError as error:
        pytest.fail("\n".join(error.lines))


def test_every_comment_is_either_prose_or_a_usable_line() -> None:
    """``# words`` or ``#key = value``: without the space, a word would be read as a key."""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# ") and line != "#":
            assert re.match(r"#(?:[\w.\"-]+ = .|\[.+\]$|[\]}]|  )", line), line


def test_the_example_states_the_real_defaults() -> None:
    data = effective(load(EXAMPLE))
    assert data["limits"] == asdict(Limits())
    assert data["logging"] == effective(load())["logging"]
    stack = [{key: value for key, value in entry.items() if key != "level"} for entry in data["middleware"]]
    assert stack == [*DEFAULT_STACK]
    assert Config().plugins == data["plugins"]


def test_it_serves(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text(EXAMPLE.read_text())
    server = serve("--config", "greensmtp.toml", "--listen", "127.0.0.1:0")
    with server.dial() as peer:
        peer.hello()
        assert peer.deliver("Subject: hi\r\n\r\nho\r\n").startswith("250")
    assert server.stop() == 0
    assert len(server.mail) == 1


DOCUMENT = (EXAMPLE.parent.parent / "docs" / "reference" / "configuration.md").read_text("utf-8")


def test_the_document_names_every_key_that_is_not_a_limit() -> None:
    for path, names in known_keys().items():
        for name in names if not {"limits", "extensions"} & {*path} else ():
            assert re.search(rf"`(?:\w+\.)?{name}[` ]|\[{name}\]", DOCUMENT), name


def test_the_example_in_the_document_is_valid(tmp_path: Path) -> None:
    text = next(block for block in re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL) if "[[listeners]]" in block)
    (tmp_path / "greensmtp.toml").write_text(text)
    assert len(load(tmp_path / "greensmtp.toml").config.listeners) == 2
