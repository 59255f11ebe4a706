"""The lines of a TOML text's keys, for error messages.

tomllib reads the data: it is strict and quick. Only when there is something to report is the text parsed a second time,
by tomlkit, which keeps the layout. tomlkit does not tell positions, but it writes the text back as it was. So every
item gets a mark in front of it, and the lines on which the marks come out are the items' lines.
"""

from __future__ import annotations

import re
import tomllib
from functools import cached_property
from typing import Any

#: The path of a value: keys of tables, and numbers (from 0) in arrays.
KeyPath = tuple[str | int, ...]

#: A NUL cannot occur in TOML.
_MARK = re.compile("\0([0-9]+)\0")


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
        """The line of each key; of a table or array without a line of its own, the line of its first key."""
        import tomlkit
        from tomlkit.exceptions import TOMLKitError

        paths: list[KeyPath] = []
        try:
            document = tomlkit.parse(self._text)
            _mark(document, (), paths)
            marked = document.as_string()
        except (TOMLKitError, RecursionError):  # tomllib has accepted the text, so only the line is unknown
            return {}
        lines: dict[KeyPath, int] = {}
        for number, line in enumerate(marked.split("\n"), 1):
            for mark in _MARK.findall(line):
                path = paths[int(mark)]
                for end in range(1, len(path) + 1):
                    lines.setdefault(path[:end], number)
        return lines

    def _explain(self, error: ValueError) -> TomlError:
        """Separate the position from tomllib's text."""
        match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        if match is None:  # a number of too many digits
            return TomlError(str(error), 1)
        text = match[1][:1].lower() + match[1][1:]
        return TomlError(text, int(match[2]) if match[2] else self._text.count("\n") + 1)


class TomlError(ValueError):
    """A text is not TOML.

    :param line: from 1.
    """

    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


def _mark(item: Any, path: KeyPath, paths: list[KeyPath]) -> None:
    """Put a mark before every item below this one; a mark has the index of the item's path in ``paths``."""
    children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, child in children:
        inner = (*path, key)
        trivia = getattr(child, "trivia", None)  # not of a table whose parts stand apart
        if trivia is not None:
            trivia.indent = f"\0{len(paths)}\0{trivia.indent}"
            paths.append(inner)
        _mark(child, inner, paths)
