"""A file and the command line's options become a configuration, or all that is wrong with them is told at once."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from greensmtp._suggest import nearest
from greensmtp.config.defaults import DEFAULT_STACK
from greensmtp.config.locations import KeyPath, TomlError, TomlText
from greensmtp.config.model import PATHS, Config, MiddlewareSection, PluginSection, Section, known_keys
from greensmtp.config.options import option_model
from greensmtp.config.problems import ConfigError, Problem, Source, explain, no_such_key
from greensmtp.config.secrets import References
from greensmtp.plugins import PluginError, middleware_factory

#: Octets in a configuration file.
MAX_OCTETS = 1024 * 1024

_SURROGATE = re.compile("[\ud800-\udfff]")

#: What the command line sets holds everywhere: what is removed, also from each listener, before it is set. (A key
#: belongs to its certificate.)
_REPLACES: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("hostname",): (("hostname",),),
    ("tls_cert",): (("tls_cert",), ("tls_key",)),
    ("tls_key",): (("tls_key",),),
    ("limits", "max_message_size"): (("limits", "max_message_size"),),
}


@dataclass(frozen=True, slots=True)
class Override:
    """What an option of the command line says."""

    option: str
    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True, repr=False)  # there may be secrets in it
class Loaded:
    """A configuration in which each key is right in itself."""

    config: Config
    source: Source
    #: Where values stood in the environment or in files.
    references: dict[KeyPath, dict[str, str]]
    #: The arguments of each middleware, by its path; of each plugin, too, once it has been loaded.
    arguments: dict[KeyPath, dict[str, Any]] = field(default_factory=dict)
    #: Each plugin's entry as it was written, with references resolved: its options can be read only when it is loaded.
    plugins: list[dict[str, Any]] = field(default_factory=list)
    #: Where paths begin.
    folder: Path = field(default_factory=Path)


def load(
    path: Path | None = None, overrides: Iterable[Override] = (), options: Mapping[KeyPath, str] | None = None
) -> Loaded:
    """Read the file, if there is one, have the options override it, and check everything that can be checked without
    making anything.

    :param options: all options by the path they set: where there is no file, mistakes are told by their names.
    :raises ConfigError: with all mistakes.
    """
    text, name = (TomlText(""), "") if path is None else (_read(path), str(path))
    folder = Path() if path is None else path.parent
    references = References(folder)
    data = references.resolve(text.data)
    for pattern in PATHS:
        _anchor(data, pattern, folder)
    places = dict(options or {}) if path is None else {}
    for override in overrides:
        _override(data, override)
        places[override.path] = override.option
    source = Source(name, text, places, references.values)
    broken = [*_broken_text(data)]
    if broken:  # nothing else can be made of it
        raise source.error([*references.mistakes, *broken])
    config, mistakes = _validate(Config, data, known_keys(), ())
    mistakes += _plugin_keys(data)
    arguments: dict[KeyPath, dict[str, Any]] = {}
    for place, entry in _middleware(data):
        given, wrong = _arguments(place, entry, folder)
        arguments[place] = given
        mistakes += wrong
    # What could not be had has been replaced by something that may be wrong in its place.
    missing = {mistake.path for mistake in references.mistakes}
    mistakes = [*references.mistakes, *(mistake for mistake in mistakes if mistake.path not in missing)]
    if mistakes or config is None:
        raise source.error(mistakes)
    # (What an option has overridden is the option's, and no secret.)
    found = {key: value for key, value in references.found.items() if source.option(key) is None}
    return Loaded(config, source, found, arguments, data.get("plugins", []), folder)


def _read(path: Path) -> TomlText:
    try:
        with path.open("rb") as file:
            octets = file.read(MAX_OCTETS + 1)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from None
    if len(octets) > MAX_OCTETS:
        raise ConfigError([f"{path}: too long for a configuration: more than {MAX_OCTETS} octets"])
    try:
        return TomlText(octets.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: this is not UTF-8"]) from None
    except TomlError as error:
        raise ConfigError([f"{path}:{error.line}: {error}"]) from None


def _anchor(data: Any, place: tuple[str | None, ...], folder: Path) -> None:
    """Have a path begin at the file's folder."""
    key, *rest = place
    if key is None:
        for inner in data if isinstance(data, list) else ():
            _anchor(inner, tuple(rest), folder)
    elif isinstance(data, dict) and key in data:
        if rest:
            _anchor(data[key], tuple(rest), folder)
        elif isinstance(data[key], str) and data[key] and data[key] != "stderr":
            data[key] = str(folder / data[key])


def _override(data: dict[str, Any], override: Override) -> None:
    *tables, key = override.path
    table: Any = data
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return  # a mistake, which will be told
    listeners = data.get("listeners")
    for place in _REPLACES.get(override.path, ()):
        for inner in (data, *(listeners if isinstance(listeners, list) else ())):
            _remove(inner, place)
    table[key] = override.value


def _remove(table: Any, path: tuple[str, ...]) -> None:
    for key in path[:-1]:
        table = table.get(key) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table.pop(path[-1], None)


def _validate(
    model: type[Any], data: Any, known: Mapping[KeyPath, Iterable[str]], path: KeyPath
) -> tuple[Any, list[Problem]]:
    # As JSON: there, strict means what a file can say (a list for a tuple, a text for a path) and nothing looser.
    try:
        read = model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        return None, explain(error, data, known, path)
    mistakes = [
        Problem((*path, *place), f"takes text, not a {kind}: put it in quotes")
        for place, kind in _moments(data)
        if isinstance(_value_at(read, place), str)
    ]
    return (None, mistakes) if mistakes else (read, [])


def _moments(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where TOML has a date or a time, which JSON has to write as text."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _moments(value, (*path, key))
    elif isinstance(data, datetime.time):
        yield path, "time"
    elif isinstance(data, datetime.date):
        yield path, "date"


def _value_at(read: Any, path: KeyPath) -> Any:
    """What has been made of the value at this place; None where that cannot be told."""
    for key in path:
        if isinstance(read, BaseModel):
            names = {field.alias or name: name for name, field in type(read).model_fields.items()}
            extra = read.model_extra or {}
            if key in extra:  # of a section of ours: an option, which is looked at by itself
                read = None if isinstance(read, Section) else extra[key]
            else:
                read = getattr(read, names.get(str(key), ""), None)
        elif isinstance(read, dict):
            read = read.get(key)
        elif isinstance(read, list | tuple) and isinstance(key, int) and key < len(read):
            read = read[key]
        else:
            return None
    return read


def _broken_text(data: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """A NUL ends a path, a host name or a password for the system's C functions. Surrogates stand for octets of the
    command line that are no UTF-8: what is printed as TOML could not have them."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _broken_text(value, (*path, key))
    elif isinstance(data, str):
        if "\0" in data:
            yield Problem(path, "must not have a NUL character in it")
        elif _SURROGATE.search(data):
            yield Problem(path, "must be UTF-8")


def _plugin_keys(data: dict[str, Any]) -> Iterator[Problem]:
    """Keys of plugins that cannot be options, which else are known only once the plugin has been loaded: misspelled
    ones of ours, and those of an entry that names no plugin."""
    ours = PluginSection.model_fields
    plugins = data.get("plugins")
    for number, entry in enumerate(plugins if isinstance(plugins, list) else ()):
        for key in entry.keys() - ours.keys() if isinstance(entry, dict) else ():
            if not isinstance(entry.get("name"), str) or nearest(key, ours, cutoff=0.9):
                text = no_such_key(key, ("plugins",), {("plugins",): ours})
                yield Problem(("plugins", number, key), text)


def _middleware(data: dict[str, Any]) -> list[tuple[KeyPath, dict[str, Any]]]:
    """Every entry of every stack that has a name, right or wrong as the rest may be."""
    stacks: list[tuple[KeyPath, Any]] = [(("middleware",), data.get("middleware", list(DEFAULT_STACK)))]
    listeners = data.get("listeners")
    for number, listener in enumerate(listeners if isinstance(listeners, list) else ()):
        if isinstance(listener, dict):
            stacks.append((("listeners", number, "middleware"), listener.get("middleware")))
    return [
        ((*path, number), entry)
        for path, stack in stacks
        if isinstance(stack, list)
        for number, entry in enumerate(stack)
        if isinstance(entry, dict) and isinstance(entry.get("use"), str)
    ]


def _arguments(path: KeyPath, entry: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    try:
        factory = middleware_factory(entry["use"])
    except PluginError as error:
        return {}, [Problem((*path, "use"), str(error))]
    return read_options(path, entry["use"], factory, entry, section=MiddlewareSection, folder=folder)


def read_options(
    path: KeyPath,
    name: str,
    factory: Callable[..., Any],
    entry: dict[str, Any],
    *,
    section: type[BaseModel],
    folder: Path,
) -> tuple[dict[str, Any], list[Problem]]:
    """The keys of an entry that are not the section's own, as arguments of ``factory``, checked by its annotations."""
    model = option_model(factory, folder)
    ours = section.model_fields.keys()
    names = [*ours, *(each.alias or name for name, each in model.model_fields.items())]
    options = {key: value for key, value in entry.items() if key not in ours}
    found, mistakes = _validate(model, options, {(): names}, path)
    if found is None:
        return {}, [replace(each, owner=name) for each in mistakes]
    return _given(found), []


def _given(options: BaseModel) -> dict[str, Any]:
    """What was set, by its own name, as pydantic has read it."""
    fields = type(options).model_fields
    named = {(fields[name].alias or name): getattr(options, name) for name in options.model_fields_set & fields.keys()}
    return named | (options.model_extra or {})
