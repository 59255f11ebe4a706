"""Checks of middleware and predicates when they are given, with errors that show the right form."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

from greensmtp._callables import body_of, deferred_kind, handler_name
from greensmtp.session.signals import FIELDS


def check_callable(given: Any, what: str, parameters: tuple[str, ...], result: str) -> None:
    """Raise TypeError unless an object can be called with these arguments and returns its result at once.

    :param what: what the object is meant to be, for the error: ``"a middleware"``.
    :param parameters: the names of the arguments, in order.
    :param result: the type of the result, for the error.
    """
    shape = f"({', '.join(parameters)}) -> {result}"
    if inspect.isclass(given):
        raise TypeError(f"{what} is an instance: write {given.__name__}(...), not {given.__name__}")
    if not callable(given):
        raise TypeError(f"{what} is called as {shape}; {given!r} cannot be called")
    wrong = deferred_kind(given)
    if wrong == "async def":
        raise TypeError(
            f"{what} is called as {shape}, in the connection's greenlet; {handler_name(given)} is an async def, which "
            "is never awaited: write def, and wait with gevent"
        )
    if wrong == "generator":
        raise TypeError(
            f"{what} is called as {shape}; {handler_name(given)} has a yield in it, so that calling it runs nothing: "
            f"return {result} instead"
        )
    try:
        signature = inspect.signature(given)
    except ValueError:  # built in, without a signature
        return
    names = tuple(signature.parameters)
    if "ack" in names and signature.parameters["ack"].default is inspect.Parameter.empty:
        name = given.__name__ if body_of(given) is given else "..."
        raise TypeError(
            f"{what} is called as {shape}; {handler_name(given)} takes {signature}, as a handler of "
            f'{_signals(names)} does: connect it with server.on("...", {name})'
        )
    try:
        signature.bind(*parameters)
    except TypeError:
        raise TypeError(f"{what} is called as {shape}; {handler_name(given)} takes {signature}") from None


def check_words(given: Any, owner: Any, attribute: str) -> None:
    """Raise TypeError unless an attribute is an iterable of str that can be iterated more than once.

    An iterator is refused: it would be empty the second time.
    """
    if isinstance(given, str):
        raise TypeError(f"{attribute} of {handler_name(owner)} must be an iterable of {attribute}, not one str")
    if not isinstance(given, Iterable) or iter(given) is given or not all(isinstance(word, str) for word in given):
        raise TypeError(f"{attribute} of {handler_name(owner)} must be a tuple of str or the like, not {given!r}")


def _signals(names: tuple[str, ...]) -> str:
    """Return the signals whose handlers have these parameters, as text."""
    found = [repr(name) for name, fields in FIELDS.items() if fields == names[1:]]
    return f"the signal {' or '.join(found)}" if found else "a signal"


def describe(given: Any) -> str:
    """Return a readable name of a callable: the repr of its class, or its qualified name."""
    kind: Any = type(given)
    if kind.__repr__ is object.__repr__ or isinstance(given, functools.partial) or hasattr(given, "__get__"):
        return handler_name(given)
    return " ".join(repr(given).split())
