"""Checks of arguments that several middlewares share: numbers, choices, and the reply of a refusal."""

from __future__ import annotations

from collections.abc import Iterable

from greensmtp.errors import ArgumentError
from greensmtp.protocol.enhanced_status import LEADING
from greensmtp.protocol.reply import Reply


def check_number(name: str, value: float, *, least: float = 0.0, most: float | None = None) -> float:
    """Return a number: of seconds, a factor, a probability.

    :raises ValueError: it is not a number, or out of range.
    """
    # NaN fails: no comparison with it is true.
    if _is_number(value, (int, float)) and value >= least and (most is None or value <= most) and value < float("inf"):
        return value
    upto = "" if most is None else f" and at most {most:g}"
    raise ArgumentError(name, f"takes a number of at least {least:g}{upto}, not {value!r}")


def check_count(name: str, value: int, *, least: int = 1, most: int | None = None) -> int:
    """Return a whole number.

    :raises ValueError: it is not a whole number, or out of range.
    """
    if _is_number(value, (int,)) and value >= least and (most is None or value <= most):
        return value
    upto = "" if most is None else f" and at most {most}"
    raise ArgumentError(name, f"takes a whole number of at least {least}{upto}, not {value!r}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return one of several words.

    :raises ValueError: it is another one.
    """
    choices = tuple(choices)
    if value in choices:
        return value
    raise ArgumentError(name, f"takes {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}")


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
