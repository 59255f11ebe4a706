"""Secrets: resolve values from the environment and from files, and hide them when a configuration is printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from greensmtp.config.locations import KeyPath
from greensmtp.config.problems import Problem

#: Maximum size of a file that contains a value, in bytes.
MAX_BYTES = 64 * 1024

#: How deep tables and arrays may be nested. Dotted keys can nest deeper than Python can recurse.
MAX_DEPTH = 32

HIDDEN = "***"

_SECRET_KEY = re.compile(r"(?i)(?:.*_)?(?:pass(?:word|wd|phrase)?|pw|secret|token|credential|api_?key|private_?key)s?")
_USER_INFO = re.compile(r"(?<=://)\S*@")
_SECRET_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:pass(?:word|wd|phrase)?|secret|token|key)=)[^&\s]*")


class References:
    """Replaces ``{ env = "NAME" }`` and ``{ file = "path" }`` by the values that they refer to.

    A table is a reference if it has one key, ``env`` or ``file``, with a string. Relative paths start from the
    configuration's folder. One newline at the end of a file is not part of the value.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: The references by the path of the value; files with absolute paths.
        self.found: dict[KeyPath, dict[str, str]] = {}
        self.values: list[str] = []
        self.problems: list[Problem] = []

    def resolve(self, data: Any, path: KeyPath = ()) -> Any:
        """Return the data with all references replaced; ``problems`` has those that cannot be resolved."""
        if len(path) > MAX_DEPTH and isinstance(data, list | dict):
            self.problems.append(
                Problem(path[:1], f"expected at most {MAX_DEPTH} levels of tables and arrays; got more")
            )
            return ""
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
            self.problems.append(Problem(path, f"the environment has no variable {name!r}"))
        except UnicodeEncodeError:  # its text would show the value
            self.problems.append(Problem(path, f"{name!r} in the environment is not UTF-8"))
        except ValueError as error:
            self.problems.append(Problem(path, str(error)))
        else:
            self.values.append(value)
            return value
        return ""


def _from_file(name: str) -> str:
    """Return the content of a file.

    :raises ValueError: it cannot be read; the text says why, and shows nothing of its content.
    """
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"cannot read {name!r}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name!r} is too large for a value: more than {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"{name!r} is not UTF-8") from None


def hide(data: Any, references: dict[KeyPath, dict[str, str]], path: KeyPath = ()) -> Any:
    """Return the data without its secrets.

    References are shown as they were written. ``***`` replaces the values of keys such as ``password``, strings in a
    table of a middleware, delivery or plugin (users and their passwords), and what stands before the @ of a URL.
    """
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
    """True if the key, or a table or array around it, is called ``password`` or the like."""
    return any(isinstance(key, str) and _SECRET_KEY.fullmatch(key) is not None for key in path)


def _in_a_table_of_options(path: KeyPath) -> bool:
    keys = [key for key in path if isinstance(key, str)]
    start = next(
        (number for number, key in enumerate(keys) if key in ("middleware", "deliveries", "plugins")), len(keys)
    )
    return len(keys) - start > 2
