"""Does calling it run anything? An ``async def`` and a generator only make an object, which here nobody would run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal


def require_plain_function(given: Any) -> Literal["async def", "generator"] | None:
    """Why calling this runs nothing; None: it does run.

    What is behind methods, ``functools.partial`` and instances with a ``__call__`` is looked at.
    """
    body = body_of(given)
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        return "async def"
    return "generator" if inspect.isgeneratorfunction(body) else None


def body_of(given: Any) -> Any:
    """The function that runs when this is called."""
    while isinstance(given, functools.partial):
        given = given.func
    if inspect.isfunction(given) or inspect.ismethod(given):
        return given
    return getattr(type(given), "__call__", given)  # noqa: B004 - the function, not whether there is one


def handler_name(handler: Callable[..., Any]) -> str:
    """``module.qualified.name``, for logs; of a method that stands for a caller's function, that function's name."""
    function = getattr(handler, "func", None) or getattr(getattr(handler, "__self__", None), "__wrapped__", handler)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or '?'}.{name}"
