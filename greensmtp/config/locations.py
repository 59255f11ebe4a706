"""Where a key of a TOML text stands.

tomllib gives values without their lines, and a grammar of our own would disagree with it some day. So tomllib itself
is asked: a key stands where the text has to go on to, for the key to be in what is read of it.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from typing import Any

#: The way to a value: keys of tables, and numbers (from 0) in arrays.
KeyPath = tuple[str | int, ...]


class TomlText:
    """A TOML text, its data, and the lines of its keys.

    :raises TomlError: it is not TOML; with the line.
    """

    def __init__(self, text: str) -> None:
        # tomllib does the same; here a prefix is not to end within a CRLF.
        self._lines = text.replace("\r\n", "\n").split("\n")
        self._prefixes: dict[int, dict[str, Any] | None] = {}
        try:
            self.data = tomllib.loads(text)
        except ValueError as error:
            raise self._explain(error) from None
        except RecursionError:
            raise TomlError("this is nested too deeply", len(self._lines)) from None

    def line_of(self, path: KeyPath) -> int:
        """The line, from 1, on which this key's assignment or table begins; of a key that is not there, that of the
        table where it is missing."""
        while path and not is_in(self.data, path):
            path = path[:-1]
        if not path:
            return 1
        # A text cut off within an assignment is no TOML; so what is complete with the next line began there.
        return bisect_left(range(1, len(self._lines) + 1), True, key=lambda line: is_in(self._upto(line), path)) + 1

    def _upto(self, line: int) -> dict[str, Any]:
        """The data of the shortest readable beginning of the text that has these lines."""
        for end in range(line, len(self._lines)):
            if end not in self._prefixes:
                try:
                    self._prefixes[end] = tomllib.loads("\n".join(self._lines[:end]))
                except ValueError:
                    self._prefixes[end] = None
            data = self._prefixes[end]
            if data is not None:
                return data
        return self.data

    def _explain(self, error: ValueError) -> TomlError:
        """tomllib's words, which end in the place, taken apart."""
        match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        if match is None:  # a number of too many digits
            return TomlError(str(error), 1)
        text = match[1][:1].lower() + match[1][1:]
        return TomlError(text, int(match[2]) if match[2] else len(self._lines))


class TomlError(ValueError):
    """A text is not TOML.

    :param line: from 1.
    """

    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


def is_in(data: Any, path: KeyPath) -> bool:
    """There is something at the end of this way."""
    for key in path:
        if isinstance(data, list):
            if not isinstance(key, int) or key >= len(data):
                return False
        elif not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True
