"""What is wrong with a configuration, where it stands, and how that is said."""

from __future__ import annotations

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

    :param lines: one for each mistake: ``greensmtp.toml:12: limits.max_size: there is no such key``.
    :param options: an option of the command line is among the culprits.
    """

    def __init__(self, lines: Iterable[str], *, options: bool = False) -> None:
        self.lines = list(lines)
        self.options = options
        super().__init__("\n".join(self.lines))


class Source:
    """Where values have come from: a file, and options of the command line, which override it.

    :param name: the file's, as it was given; empty where there is none.
    :param options: the option by the path that it has set; without a file, all there are.
    :param secrets: what must not be shown. (What has one or two characters is no secret.)
    """

    def __init__(self, name: str, text: TomlText, options: Mapping[KeyPath, str], secrets: Iterable[str] = ()) -> None:
        self.name = name
        self._text = text
        self._options = options
        self._secrets = sorted((secret for secret in secrets if len(secret) > 2), key=len, reverse=True)

    def option(self, path: KeyPath) -> str | None:
        """The option that has set this, if one has."""
        return next((option for key, option in self._options.items() if path[: len(key)] == key), None)

    def key(self, path: KeyPath) -> str:
        """The name of a key for an error message: the option that has set it, or its own name."""
        return self.option(path) or str(path[-1])

    def place(self, path: KeyPath) -> str:
        """``--hostname``, or ``greensmtp.toml:3: hostname``."""
        option = self.option(path)
        if option is not None:
            return option
        key = ".".join(part for part in path if isinstance(part, str))
        return ": ".join(filter(None, (f"{self.name}:{self._text.line_of(path)}" if self.name else "", key)))

    def error(self, mistakes: Iterable[Problem]) -> ConfigError:
        """All of them as one error, options first, then in the order of the file."""
        ordered = sorted(mistakes, key=lambda mistake: self._order(mistake.path))
        options = any(self.option(mistake.path) is not None for mistake in ordered)
        return ConfigError(dict.fromkeys(self._say(mistake) for mistake in ordered), options=options)

    def _order(self, path: KeyPath) -> int:
        return 0 if self.option(path) is not None else self._text.line_of(path)

    def _say(self, mistake: Problem) -> str:
        option = self.option(mistake.path)
        place = self.place(mistake.path) if option is None else f"Invalid value for '{option}'"
        return ": ".join(filter(None, (place, mistake.owner, self._hide(mistake.text))))

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
        return text


# What pydantic finds, in our words

_TAKES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dataclass_type": "a table",
    "path_type": "a path",
}

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    str: "text",
    list: "a list",
    dict: "a table",
}


def explain(error: ValidationError, data: Any, known: Mapping[KeyPath, Iterable[str]], path: KeyPath) -> list[Problem]:
    """pydantic's errors as mistakes: one for each key, however many forms the key may take.

    :param data: what was looked at.
    :param known: the names that there are, by the path of their table without its numbers.
    :param path: where the data stands.
    """
    found: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_real(details, data), []).append(details)
    mistakes = []
    for place, several in found.items():
        if any(place == other[: len(place)] for other in found if len(other) > len(place)):
            continue  # of a union, the form that was meant has been entered
        if several[0]["type"] == "extra_forbidden":
            table = tuple(key for key in place[:-1] if isinstance(key, str))
            text = no_such_key(str(place[-1]), table, known)
        elif several[0]["type"] == "missing":
            text = "must be given"
        else:
            text = _wrong(several)
        mistakes.append(Problem((*path, *place), text))
    return mistakes


def no_such_key(name: str, table: tuple[str, ...], known: Mapping[KeyPath, Iterable[str]]) -> str:
    """A wrong name, and the nearest right one; where none is near, the table that has it, or all there are."""
    names = sorted(known.get(table, ()))
    elsewhere = sorted((path for path, there in known.items() if name in there), key=len)
    near = nearest(name, names) or next((".".join(map(str, (*path, name))) for path in elsewhere), None)
    if near is not None:
        return f"there is no such key; did you mean {near}?"
    return f"there is no such key (there are: {', '.join(names)})" if names else "there is no such key"


def _real(details: ErrorDetails, data: Any) -> KeyPath:
    """The way to a place in the data, without pydantic's names for the forms of unions that stand in between."""
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
        elif kind in _TAKES:
            wanted.append(_TAKES[kind])
        elif kind == "too_short":
            return f"takes {details['ctx']['min_length']} or more"
        else:
            return details["msg"].replace("Input should", "should", 1)
    takes = " or ".join(dict.fromkeys(wanted))
    # What was given is not shown, for it may be a secret.
    given = _KINDS.get(type(several[0]["input"]), "that")
    return f"takes {takes}" if '"' in takes or given in wanted else f"takes {takes}, not {given}"
