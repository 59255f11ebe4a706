"""What kind of function a callable runs.

Calling an ``async def`` or a generator function only makes an object. This library would never run that object, so such
functions are refused where handlers and middleware are given.
"""

from __future__ import annotations

import functools
import inspect
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
