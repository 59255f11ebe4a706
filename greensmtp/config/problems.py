"""Problems of a configuration: where they are, and how they are reported."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from greensmtp._suggest import nearest
from greensmtp.config.locations import KeyPath, TomlText
from greensmtp.errors import ArgumentError, GreenSMTPError


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a configuration.

    :param path: the key.
    :param text: what is wrong with its value.
    :param owner: the middleware or plugin that has this option.
    """

    path: KeyPath
    text: str
    owner: str = ""


class ConfigError(GreenSMTPError):
    """A configuration cannot be used.

    :param lines: one for each problem: ``greensmtp.toml:12: limits.max_size: there is no such key``.
    :param options: True if a command-line option causes one of them.
    """

    def __init__(self, lines: Iterable[str], *, options: bool = False) -> None:
        self.lines = list(lines)
        self.options = options
        super().__init__("\n".join(self.lines))


class Source:
    """Where the values come from: a file, and the command-line options that override it.

    :param name: the file's name as it was given; empty if there is no file.
    :param options: the options by the path that they have set; without a file, all options.
    :param secrets: values that must not be shown. Values of one or two characters are not hidden.
    """

    def __init__(self, name: str, text: TomlText, options: Mapping[KeyPath, str], secrets: Iterable[str] = ()) -> None:
        self.name = name
        self._text = text
        self._options = options
        self._secrets = sorted((secret for secret in secrets if len(secret) > 2), key=len, reverse=True)

    def option(self, path: KeyPath) -> str | None:
        """Return the option that has set this value; None if none has."""
        return next((option for key, option in self._options.items() if path[: len(key)] == key), None)

    def key(self, path: KeyPath) -> str:
        """The name of a key for an error message: the option that has set it, or its own name."""
        return self.option(path) or str(path[-1])

    def place(self, path: KeyPath) -> str:
        """Return where a value is set: ``--hostname``, or ``greensmtp.toml:3: hostname``."""
        option = self.option(path)
        if option is not None:
            return option
        key = ".".join(part for part in path if isinstance(part, str))
        return ": ".join(filter(None, (f"{self.name}:{self._text.line_of(path)}" if self.name else "", key)))

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """Return one error for all problems: options first, then in the order of the file."""
        ordered = sorted(problems, key=lambda problem: self._order(problem.path))
        options = any(self.option(problem.path) is not None for problem in ordered)
        return ConfigError(dict.fromkeys(self._format(problem) for problem in ordered), options=options)

    def _order(self, path: KeyPath) -> int:
        return 0 if self.option(path) is not None else self._text.line_of(path)

    def _format(self, problem: Problem) -> str:
        option = self.option(problem.path)
        place = self.place(problem.path) if option is None else f"Invalid value for '{option}'"
        return ": ".join(filter(None, (place, problem.owner, self._hide(problem.text))))

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
        return text


# pydantic's errors in the terms of TOML

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "tuple_type": "an array",
    "set_type": "an array",
    "frozen_set_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dataclass_type": "a table",
    "path_type": "a path",
}

_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
    datetime.date: "a date",
    datetime.datetime: "a date",
    datetime.time: "a time",
}


def explain(error: ValidationError, data: Any, known: Mapping[KeyPath, Iterable[str]], path: KeyPath) -> list[Problem]:
    """Return pydantic's errors as problems: one for each key, even if its type is a union.

    :param data: the data that was validated.
    :param known: the valid keys, by the path of their table without indexes.
    :param path: the path of the data in the configuration.
    """
    found: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_real(details, data), []).append(details)
    problems = []
    for place, several in found.items():
        if any(place == other[: len(place)] for other in found if len(other) > len(place)):
            continue  # the errors further inside belong to the intended member of a union
        if several[0]["type"] == "extra_forbidden":
            table = tuple(key for key in place[:-1] if isinstance(key, str))
            text = no_such_key(str(place[-1]), table, known)
        elif several[0]["type"] == "missing":
            text = "must be given"
        else:
            text = _wrong(several)
        problems.append(Problem((*path, *place), text))
    return problems


def no_such_key(name: str, table: tuple[str, ...], known: Mapping[KeyPath, Iterable[str]]) -> str:
    """Return the error for an unknown key: with the nearest key, the table that has such a key, or all keys."""
    names = sorted(known.get(table, ()))
    elsewhere = sorted((path for path, there in known.items() if name in there), key=len)
    near = nearest(name, names) or next((".".join(map(str, (*path, name))) for path in elsewhere), None)
    if near is not None:
        return f"there is no such key; did you mean {near}?"
    return f"there is no such key (there are: {', '.join(names)})" if names else "there is no such key"


def _real(details: ErrorDetails, data: Any) -> KeyPath:
    """Return the path of an error in the data, without pydantic's names for members of unions."""
    place: list[str | int] = []
    *way, last = details["loc"] or ("",)
    for key in way:
        if (isinstance(data, dict) and key in data) or (isinstance(data, list) and isinstance(key, int)):
            data = data[key]  # type: ignore[index]
            place.append(key)
    if details["type"] == "missing" or (isinstance(data, dict) and last in data) or isinstance(last, int):
        place.append(last)
    return tuple(place)


def _wrong(several: list[ErrorDetails]) -> str:
    wanted = []
    for details in several:
        kind = details["type"]
        if kind == "value_error":
            error = details.get("ctx", {}).get("error", details["msg"])
            return error.text if isinstance(error, ArgumentError) else str(error)
        if kind in ("literal_error", "enum"):
            wanted.append(str(details.get("ctx", {}).get("expected")).replace("'", '"'))
        elif kind in _EXPECTED:
            wanted.append(_EXPECTED[kind])
        elif kind == "too_short":
            return f"expected at least {details['ctx']['min_length']} entry"
        else:
            return details["msg"].replace("Input should", "should", 1)
    expected = " or ".join(dict.fromkeys(wanted))
    # The value itself is not shown, since it may be a secret.
    given = _KINDS.get(type(several[0]["input"]))
    if given is None or '"' in expected or given in wanted:
        return f"expected {expected}"
    hint = ": put it in quotes" if given in ("a date", "a time") and "a string" in wanted else ""
    return f"expected {expected}; got {given}{hint}"
