"""Load a configuration from a file and the command line's options; report all problems at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from greensmtp._suggest import nearest
from greensmtp.config.defaults import DEFAULT_STACK
from greensmtp.config.locations import KeyPath, TomlError, TomlText
from greensmtp.config.model import (
    Config,
    DeliveriesSection,
    MiddlewareSection,
    PluginSection,
    change_paths,
    keys_of,
    known_keys,
)
from greensmtp.config.options import option_model
from greensmtp.config.problems import ConfigError, Problem, Source, explain, no_such_key
from greensmtp.config.secrets import References
from greensmtp.plugins import PluginError, delivery_factory, middleware_factory

#: Maximum size of a configuration file, in bytes.
MAX_BYTES = 1024 * 1024

_SURROGATE = re.compile("[\ud800-\udfff]")

#: An option applies to all listeners. So before it is set, these keys are removed from the file's data and from each of
#: its listeners. A private key is removed together with its certificate.
_REPLACES: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("hostname",): (("hostname",),),
    ("tls_cert",): (("tls_cert",), ("tls_key",)),
    ("tls_key",): (("tls_key",),),
    ("proxy_from",): (("proxy_from",),),
    ("limits", "max_message_size"): (("limits", "max_message_size"),),
    ("delivery", "maildir"): (("deliveries",),),
}


@dataclass(frozen=True, slots=True)
class Override:
    """A value that a command-line option sets."""

    option: str
    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True, repr=False)  # it may contain secrets
class Loaded:
    """A configuration in which each key is valid by itself."""

    config: Config
    source: Source
    #: The references to the environment and to files, by the path of the value.
    references: dict[KeyPath, dict[str, str]]
    #: The arguments of each middleware and delivery by its path; plugins are added as they are loaded.
    arguments: dict[KeyPath, dict[str, Any]] = field(default_factory=dict)
    #: Each plugin's table, with references resolved. Its options are validated when the plugin is loaded.
    plugins: list[dict[str, Any]] = field(default_factory=list)
    #: The folder that relative paths start from.
    folder: Path = field(default_factory=Path)

    def maildirs(self) -> list[str]:
        """Return the path of each Maildir that is used, once, with its placeholders."""
        found: list[str] = []
        for path, entries in self.config.all_deliveries():
            if path == ("deliveries",) and self.config.delivery.maildir is not None:
                found.append(self.config.delivery.maildir)
            found += [
                str(self.arguments[(*path, number)]["path"])
                for number, entry in enumerate(entries)
                if entry.use == "Maildir"
            ]
        return list(dict.fromkeys(found))


def load(
    path: Path | None = None,
    overrides: Iterable[Override] = (),
    options: Mapping[KeyPath, str] | None = None,
    content: bytes | None = None,
) -> Loaded:
    """Read the file, apply the options, and check everything that can be checked without creating anything.

    :param path: the file; None for the defaults.
    :param overrides: the options that were given.
    :param options: the names of all options, by the path that they set; errors use them if there is no file.
    :param content: what the file contained when it was read before; it is not read again.
    :raises ConfigError: something is wrong; the error lists all problems.
    """
    text, name = TomlText(""), ""
    if path is not None:
        text, name = _parse(path, read(path) if content is None else content), str(path)
    folder = Path() if path is None else path.parent
    references = References(folder)
    data = references.resolve(text.data)
    change_paths(data, lambda relative: folder / relative)
    places = dict(options or {}) if path is None else {}
    for override in overrides:
        _override(data, override)
        places[override.path] = override.option
    source = Source(name, text, places, references.values)
    unusable = [*_unusable(data)]
    if unusable:
        raise source.error([*references.problems, *unusable])
    config, problems = _validate(Config, data, known_keys(), ())
    problems += _plugin_keys(data)
    arguments: dict[KeyPath, dict[str, Any]] = {}
    for kind, place, entry in _tables(data):
        given, wrong = _arguments(kind, place, entry, folder)
        arguments[place] = given
        problems += wrong
    if config is not None and config.deliveries and "maildir" not in config.delivery.model_fields_set:
        config.delivery.maildir = None
    # A reference that could not be resolved has been replaced by an empty string, which may cause a second problem.
    missing = {problem.path for problem in references.problems}
    problems = [*references.problems, *(problem for problem in problems if problem.path not in missing)]
    if problems or config is None:
        raise source.error(problems)
    # A value that an option has set is not a reference any more.
    found = {key: value for key, value in references.found.items() if source.option(key) is None}
    return Loaded(config, source, found, arguments, data.get("plugins", []), folder)


def read(path: Path) -> bytes:
    """Return the content of a configuration file.

    :raises ConfigError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{path}: too large for a configuration: more than {MAX_BYTES} bytes"])
    return data


def _parse(path: Path, data: bytes) -> TomlText:
    try:
        return TomlText(data.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8"]) from None
    except TomlError as error:
        raise ConfigError([f"{path}:{error.line}: {error}"]) from None


def _override(data: dict[str, Any], override: Override) -> None:
    *tables, key = override.path
    table: Any = data
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            return  # the validation will report it
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
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, explain(error, data, known, path)


def _unusable(data: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """Find values that would break the checks: a NUL, command-line arguments that are not UTF-8, huge integers.

    The system's C functions end a path, a host name or a password at a NUL. Python represents invalid UTF-8 by
    surrogates, which TOML cannot contain. TOML's integers have 64 bits, and Python refuses to print very long ones.
    """
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _unusable(value, (*path, key))
    elif isinstance(data, str):
        if "\0" in data:
            yield Problem(path, "must not contain a NUL character")
        elif _SURROGATE.search(data):
            yield Problem(path, "must be UTF-8")
    elif isinstance(data, int) and data.bit_length() > 63:
        yield Problem(path, "expected an integer of at most 64 bits; got a larger one")


def _plugin_keys(data: dict[str, Any]) -> Iterator[Problem]:
    """Report keys of plugins that cannot be options.

    The options are known only when the plugin has been loaded. These are wrong in any case: misspelled ``name`` and
    ``optional``, and keys of a table without a name.
    """
    ours = PluginSection.model_fields
    plugins = data.get("plugins")
    for number, entry in enumerate(plugins if isinstance(plugins, list) else ()):
        for key in entry.keys() - ours.keys() if isinstance(entry, dict) else ():
            if not isinstance(entry.get("name"), str) or nearest(key, ours, cutoff=0.9):
                text = no_such_key(key, ("plugins",), {("plugins",): ours})
                yield Problem(("plugins", number, key), text)


#: The keys of tables with ``use``, at the top and in listeners, and what these tables are.
_KINDS: dict[str, type[BaseModel]] = {"middleware": MiddlewareSection, "deliveries": DeliveriesSection}


def _tables(data: dict[str, Any]) -> Iterator[tuple[str, KeyPath, dict[str, Any]]]:
    """Yield every middleware and delivery table that has a name, with its path; the rest of the data may be invalid."""
    listeners = data.get("listeners")
    for key in _KINDS:
        found: list[tuple[KeyPath, Any]] = [((key,), data.get(key, list(DEFAULT_STACK if key == "middleware" else ())))]
        for number, listener in enumerate(listeners if isinstance(listeners, list) else ()):
            if isinstance(listener, dict):
                found.append((("listeners", number, key), listener.get(key)))
        for path, entries in found:
            for number, entry in enumerate(entries if isinstance(entries, list) else ()):
                if isinstance(entry, dict) and isinstance(entry.get("use"), str):
                    yield key, (*path, number), entry


def _arguments(kind: str, path: KeyPath, entry: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    try:
        factory = (middleware_factory if kind == "middleware" else delivery_factory)(entry["use"])
    except PluginError as error:
        return {}, [Problem((*path, "use"), str(error))]
    return read_options(path, entry["use"], factory, entry, section=_KINDS[kind], folder=folder)


def read_options(
    path: KeyPath,
    name: str,
    factory: Callable[..., Any],
    entry: dict[str, Any],
    *,
    section: type[BaseModel],
    folder: Path,
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the keys of a table that are not the section's own, as arguments for ``factory``, and all problems.

    They are checked against the annotations of ``factory``.
    """
    model = option_model(factory, folder)
    ours = keys_of(section)
    names = [*ours, *(each.alias or name for name, each in model.model_fields.items())]
    options = {key: value for key, value in entry.items() if key not in ours}
    found, problems = _validate(model, options, {(): names}, path)
    if found is None:
        return {}, [replace(each, owner=name) for each in problems]
    return _given(found), []


def _given(options: BaseModel) -> dict[str, Any]:
    """Return the options that were set, by their own names, as pydantic has read them."""
    fields = type(options).model_fields
    named = {(fields[name].alias or name): getattr(options, name) for name in options.model_fields_set & fields.keys()}
    return named | (options.model_extra or {})
