"""Secrets: values that stand in the environment or in files, and what a configuration shows of them when printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from greensmtp.config.locations import KeyPath
from greensmtp.config.problems import Problem

#: Octets in a file that holds a value.
MAX_OCTETS = 64 * 1024

HIDDEN = "***"

_SECRET_KEY = re.compile(r"(?i)(?:.*_)?(?:pass(?:word|wd|phrase)?|pw|secret|token|credential|api_?key|private_?key)s?")
_USER_INFO = re.compile(r"(?<=://)\S*@")
_SECRET_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:pass(?:word|wd|phrase)?|secret|token|key)=)[^&\s]*")


class References:
    """Replaces ``{ env = "NAME" }`` and ``{ file = "path" }`` by what they name, wherever a value may stand.

    A table is a reference when it has one key, ``env`` or ``file``, and that is text. A file is looked for from the
    configuration's folder; a newline at its end is no part of the value.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: The reference at each place where one stood; files with their whole path.
        self.found: dict[KeyPath, dict[str, str]] = {}
        self.values: list[str] = []
        self.mistakes: list[Problem] = []

    def resolve(self, data: Any, path: KeyPath = ()) -> Any:
        """The data, with values in the references' place; an empty one where there is a mistake."""
        if isinstance(data, list):
            return [self.resolve(value, (*path, number)) for number, value in enumerate(data)]
        if not isinstance(data, dict):
            return data
        if path and len(data) == 1:
            ((kind, name),) = data.items()
            if kind in ("env", "file") and isinstance(name, str):
                return self._value(kind, name, path)
        return {key: self.resolve(value, (*path, key)) for key, value in data.items()}

    def _value(self, kind: str, name: str, path: KeyPath) -> str:
        if kind == "file":
            name = str((self._folder / name).absolute())
        self.found[path] = {kind: name}
        try:
            value = _from_file(name) if kind == "file" else os.environ[name]
            value.encode()
        except KeyError:
            self.mistakes.append(Problem(path, f"the environment has no variable {name!r}"))
        except UnicodeEncodeError:  # which would show it
            self.mistakes.append(Problem(path, f"{name!r} in the environment is not UTF-8"))
        except ValueError as error:
            self.mistakes.append(Problem(path, str(error)))
        else:
            self.values.append(value)
            return value
        return ""


def _from_file(name: str) -> str:
    """
    :raises ValueError: it cannot be read; the text says why, and shows nothing of what is in it.
    """
    try:
        with Path(name).open("rb") as file:
            octets = file.read(MAX_OCTETS + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"cannot read {name!r}: {getattr(error, 'strerror', None) or error}") from None
    if len(octets) > MAX_OCTETS:
        raise ValueError(f"{name!r} is too long for a value: more than {MAX_OCTETS} octets")
    try:
        return octets.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"{name!r} is not UTF-8") from None


def hide(data: Any, references: dict[KeyPath, dict[str, str]], path: KeyPath = ()) -> Any:
    """The data without its secrets: references as they were written, and ``***`` for what goes by a secret's name, for
    texts in a table of a middleware's or a plugin's (users and their passwords), and before the @ of a URL."""
    if path in references:
        return references[path]
    if isinstance(data, dict):
        return {key: hide(value, references, (*path, key)) for key, value in data.items()}
    if isinstance(data, list):
        return [hide(value, references, (*path, number)) for number, value in enumerate(data)]
    if not isinstance(data, str):
        return HIDDEN if _named_secret(path) and not isinstance(data, bool | None) else data
    if _named_secret(path) or _in_a_table_of_options(path):
        return HIDDEN
    return _SECRET_PARAMETER.sub(rf"\g<1>{HIDDEN}", _USER_INFO.sub(f"{HIDDEN}@", data))


def _named_secret(path: KeyPath) -> bool:
    """It, or a table or array it is in, is called ``password`` or the like."""
    return any(isinstance(key, str) and _SECRET_KEY.fullmatch(key) is not None for key in path)


def _in_a_table_of_options(path: KeyPath) -> bool:
    keys = [key for key in path if isinstance(key, str)]
    start = next((number for number, key in enumerate(keys) if key in ("middleware", "plugins")), len(keys))
    return len(keys) - start > 2
