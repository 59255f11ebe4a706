"""Write the effective configuration as TOML, without its secrets. Reading it gives the same configuration."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomlkit

from greensmtp.config.load import Loaded
from greensmtp.config.locations import KeyPath
from greensmtp.config.model import change_paths
from greensmtp.config.secrets import hide
from greensmtp.server.limits import Limits


def write(loaded: Loaded) -> str:
    """Return the TOML text: every key with its value or default; for a listener, only the keys that it sets itself."""
    return toml(hide(effective(loaded), loaded.references))


def effective(loaded: Loaded) -> dict[str, Any]:
    """Return the configuration as the data of a file, including its secrets."""
    config = loaded.config
    data = config.model_dump(by_alias=True)
    data["limits"] = asdict(Limits(**config.limits.given()))
    for entry, listener in zip(data["listeners"], config.listeners, strict=True):
        entry["limits"], entry["extensions"] = listener.limits.given(), listener.extensions.given()
        for key in entry.keys() - listener.model_fields_set:
            del entry[key]
    change_paths(data, lambda path: Path(path).absolute())  # so that the text can be read from any folder
    for path, arguments in loaded.arguments.items():
        entry = _at(data, path)
        if entry.get("only") == []:
            del entry["only"]
        if "for" in entry and entry["for"] is None:
            del entry["for"]
        entry |= {key: str(value.absolute()) for key, value in arguments.items() if isinstance(value, Path)}
    return data


def _at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data


def toml(data: dict[str, Any]) -> str:
    """Return the data as a TOML document; ``None`` becomes ``false``, and references are written inline."""
    return tomlkit.dumps(_writable(data)).lstrip("\n")


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        items = {key: _writable(each) for key, each in value.items()}
        if items.keys() in ({"env"}, {"file"}):
            reference = tomlkit.inline_table()
            reference.update(items)
            return reference
        return items
    if isinstance(value, list | tuple):
        return [_writable(each) for each in value]
    return False if value is None else value
