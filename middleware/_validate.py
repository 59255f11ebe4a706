"""Checks of arguments that several middlewares share: numbers, flags, choices, paths, and the reply of a refusal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from greensmtp.errors import ArgumentError
from greensmtp.protocol.enhanced_status import LEADING
from greensmtp.protocol.reply import Reply


def check_number(name: str, value: float, *, least: float = 0.0, most: float | None = None) -> float:
    """Return a number, of seconds for example; raise ArgumentError if it is none, or out of range."""
    # NaN fails: no comparison with it is true.
    if _is_number(value, (int, float)) and value >= least and (most is None or value <= most) and value < float("inf"):
        return value
    upto = "" if most is None else f" and at most {most:g}"
    raise ArgumentError(name, f"takes a number of at least {least:g}{upto}, not {value!r}")


def check_count(name: str, value: int, *, least: int = 1, most: int | None = None) -> int:
    """Return a whole number; raise ArgumentError if it is none, or out of range."""
    if _is_number(value, (int,)) and value >= least and (most is None or value <= most):
        return value
    upto = "" if most is None else f" and at most {most}"
    raise ArgumentError(name, f"takes a whole number of at least {least}{upto}, not {value!r}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return one of several words; raise ArgumentError if it is another one."""
    choices = tuple(choices)
    if value in choices:
        return value
    raise ArgumentError(name, f"takes {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}")


def check_seconds(name: str, value: Any) -> float:
    """Return a timeout in seconds; raise ArgumentError if it is not a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ArgumentError(name, f"takes a number of seconds above 0, not {value!r}")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """Return a flag; raise TypeError if it is not a bool, since a str like "no" would be true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} takes True or False, not {value!r}")
    return value


def check_path(name: str, value: Any) -> str:
    """Return the path of a file or a socket; raise TypeError if it is none, without showing what was given."""
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError(f"{name} takes a path, a str or a Path, not a {type(value).__name__}")
    return str(value)


def make_refusal(code: int | None, message: str | None, usual: Reply) -> Reply:
    """Return the reply of a refusal: the usual one, with the user's code and text where given.

    A text without an enhanced status code gets the usual one, in the class of the code.

    :raises ValueError: the code is not 4xx or 5xx.
    :raises ProtocolError: the text has an enhanced status code of another class.
    """
    if code is None and message is None:
        return usual
    number = check_count("code", usual.code if code is None else code, least=400, most=599)
    text = usual.text if message is None else message
    reply = Reply(number, text)
    brings_its_own = message is not None and LEADING.match(message)
    if not brings_its_own and usual.enhanced is not None:
        reply = Reply(number, text, enhanced=str(number)[0] + usual.enhanced[1:])
    return reply


def _is_number(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
