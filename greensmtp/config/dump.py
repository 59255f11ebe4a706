"""The effective configuration as TOML, without its secrets: what is read again is the same configuration."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from greensmtp.config.load import Loaded
from greensmtp.config.locations import KeyPath
from greensmtp.config.model import PATHS
from greensmtp.config.secrets import hide
from greensmtp.server.limits import Limits

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def write(loaded: Loaded) -> str:
    """Every key, defaults too; of a listener, what is its own alone."""
    return toml(hide(effective(loaded), loaded.references))


def effective(loaded: Loaded) -> dict[str, Any]:
    """It as data, as a file would have it, secrets included."""
    config = loaded.config
    data = config.model_dump()
    data["limits"] = asdict(Limits(**config.limits.given()))
    for entry, listener in zip(data["listeners"], config.listeners, strict=True):
        entry["limits"] = listener.limits.given()
        for key in entry.keys() - listener.model_fields_set:
            del entry[key]
    for place in PATHS:
        _make_absolute(data, place)
    for path, arguments in loaded.arguments.items():
        entry = _at(data, path)
        if entry.get("only") == []:
            del entry["only"]
        entry |= {key: str(value.absolute()) for key, value in arguments.items() if isinstance(value, Path)}
    return data


def _at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data


def _make_absolute(data: Any, place: tuple[str | None, ...]) -> None:
    """Whatever folder the text is read from, the path is the same."""
    key, *rest = place
    if key is None:
        for inner in data:
            _make_absolute(inner, tuple(rest))
    elif rest:
        _make_absolute(data[key], tuple(rest))
    elif data.get(key) and data[key] != "stderr":
        data[key] = str(Path(data[key]).absolute())


# A small writer: tomllib only reads.


def toml(data: dict[str, Any]) -> str:
    """A document: single values first, then tables and arrays of tables, each with a header."""
    return "\n".join(_table(data, ())).strip() + "\n"


def _table(data: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    lines, tables = [], []
    for key, value in data.items():
        inner = (*path, key)
        if _is_tables(value):
            for each in value:
                tables += ["", f"[[{_key(inner)}]]", *_table(each, inner)]
        elif isinstance(value, dict) and not _is_reference(value):
            tables += ["", f"[{_key(inner)}]", *_table(value, inner)]
        else:
            lines.append(f"{_key((key,))} = {_value(value)}")
    return lines + tables


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _is_reference(value: dict[str, Any]) -> bool:
    return len(value) == 1 and value.keys() <= {"env", "file"}


def _key(path: tuple[str, ...]) -> str:
    return ".".join(key if _BARE_KEY.fullmatch(key) else _text(key) for key in path)


def _value(value: Any) -> str:
    if value is None:
        return "false"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key((key,))} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)  # inf and nan, too


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
