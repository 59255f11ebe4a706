"""What kind of function a callable runs.

Calling an ``async def`` or a generator function only makes an object. This library would never run that object, so such
functions are refused where handlers and middleware are given.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal


def deferred_kind(given: Any) -> Literal["async def", "generator"] | None:
    """Return the kind of function whose body does not run when it is called; None for a plain function.

    Methods, ``functools.partial`` and instances with a ``__call__`` are looked through.
    """
    body = body_of(given)
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        return "async def"
    return "generator" if inspect.isgeneratorfunction(body) else None


def body_of(given: Any) -> Any:
    """Return the function that runs when this object is called."""
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
