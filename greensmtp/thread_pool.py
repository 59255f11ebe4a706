"""Blocking work in gevent's thread pool, so that it does not block the hub.

File I/O, fsync, password hashing and blocking libraries go through here. gevent's own ``threadpool.apply`` prints the
traceback of an exception before it raises it in the caller; these functions only raise it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from gevent import get_hub
from gevent.lock import BoundedSemaphore

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_thread_pool(
    function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call ``function`` in gevent's thread pool, and return its result; other greenlets run meanwhile.

    The function runs in a native thread: it must not use gevent, and must not touch a session or a stream.

    :raises BaseException: what the function raised, with its traceback; nothing is printed.
    """
    outcome: Any = get_hub().threadpool.apply(_caught, (function, args, kwargs))
    return cast(Result, _given(*outcome))


class BoundedPool:
    """A share of gevent's thread pool: at most ``at_once`` calls run at the same time, and the others wait.

    A call keeps its place until its work is over, even when the waiting greenlet has been killed or timed out. So work
    that hangs (on a file system that does not answer, say) cannot take more than its share of the threads.

    :param at_once: how many calls may run at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._free = BoundedSemaphore(at_once)

    def call(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Call ``function`` in the thread pool, as ``in_thread_pool`` does, once there is a free place."""
        self._free.acquire()
        try:
            work = get_hub().threadpool.spawn(_caught, function, args, kwargs)
        except BaseException:
            self._free.release()
            raise
        work.rawlink(lambda _: self._free.release())
        outcome: Any = work.get()
        return cast(Result, _given(*outcome))


def _caught(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    try:
        return function(*args, **kwargs), None
    except BaseException as error:  # returned, since gevent would print what a thread raises
        return None, error


def _given(result: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    return result
