"""The lines of a TOML text's keys, for error messages.

tomllib reads the data: it is strict and quick. Only when there is an error to report is the text parsed a second time,
by tomlkit. tomlkit knows no positions, but it keeps the indentation of every key and table header. So the text for the
second parse has the number of each line at its beginning, written as spaces and tabs.
"""

from __future__ import annotations

import re
import tomllib
from functools import cached_property
from typing import Any

import tomlkit
from tomlkit.container import Container
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Table

#: The path of a value: keys of tables, and numbers (from 0) in arrays.
KeyPath = tuple[str | int, ...]

#: Characters that a line number takes: digits of base 2, space and tab.
_WIDTH = 24
_AS_INDENTATION = {"0": " ", "1": "\t"}


class TomlText:
    """A TOML text, its data, and the lines of its keys.

    :raises TomlError: it is not TOML; with the line.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            self.data = tomllib.loads(text)
        except ValueError as error:
            raise self._explain(error) from None
        except RecursionError:
            raise TomlError("nested too deeply", text.count("\n") + 1) from None

    def line_of(self, path: KeyPath) -> int:
        """Return the line, from 1, of this key's assignment or table header; for a missing key, that of its table."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines[path] if path else 1

    @cached_property
    def _lines(self) -> dict[KeyPath, int]:
        """The line of each key; of a table without a header, the line of its first key."""
        lines: dict[KeyPath, int] = {}
        try:
            _collect(tomlkit.parse(_number_lines(self._text)), (), lines)
        except (TOMLKitError, RecursionError):  # tomllib has accepted the text: only its lines are unknown
            pass
        return lines

    def _explain(self, error: ValueError) -> TomlError:
        """Separate the position from tomllib's text."""
        match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        if match is None:  # a number of too many digits
            return TomlError(str(error), 1)
        text = match[1][:1].lower() + match[1][1:]
        if text == "invalid value":
            text += ": strings need quotes, and booleans are true or false"
        return TomlError(text, int(match[2]) if match[2] else self._text.count("\n") + 1)


class TomlError(ValueError):
    """A text is not TOML.

    :param line: from 1.
    """

    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


def _number_lines(text: str) -> str:
    """Indent every line by its number. Inside multi-line strings this changes values, which are not used."""
    codes = str.maketrans(_AS_INDENTATION)
    return "\n".join(f"{number:0{_WIDTH}b}".translate(codes) + line for number, line in enumerate(text.split("\n"), 1))


def _collect(item: Any, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    """Add the lines of this item, and of every item in it, in the order of the text."""
    if isinstance(item, AoT):
        for number, table in enumerate(item.body):
            _collect(table, (*path, number), lines)
        return
    indent = "" if isinstance(item, Container) else item.trivia.indent[:_WIDTH]
    if len(indent) == _WIDTH:  # a dotted key's inner tables have none
        number = int("".join("1" if character == "\t" else "0" for character in indent), 2)
        for end in range(1, len(path) + 1):
            lines.setdefault(path[:end], number)
    container = item.value if isinstance(item, Table) else item
    # Arrays and inline tables have the line of their key. A container's body has all parts of a table that is continued
    # further down, while the mapping has only their sum.
    for key, child in container.body if isinstance(container, Container) else ():
        if key is not None:  # None is a comment or an empty line
            _collect(child, (*path, key.key), lines)
