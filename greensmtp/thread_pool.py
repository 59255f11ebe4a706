"""Blocking work in gevent's thread pool, so that it does not block the hub.

File I/O, fsync, password hashing and blocking libraries go through here. gevent's own ``threadpool.apply`` prints the
traceback of an exception before it raises it in the caller; these functions only raise it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from gevent import get_hub
from gevent.lock import BoundedSemaphore

from greensmtp._native import native

if TYPE_CHECKING:
    from gevent.event import AsyncResult

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: Held very briefly, in the hub and in native threads. One of gevent's locks would not exclude another thread.
_lock = native("_thread", "allocate_lock")()


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
    """A share of gevent's thread pool: at most ``at_once`` calls run at the same time, and further calls wait.

    A call keeps its slot until its work is over, even if the waiting greenlet is killed or times out. So work that
    hangs, for example on an unresponsive file system, cannot occupy more than its share of the threads.

    :param at_once: maximum number of calls that run at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._free = BoundedSemaphore(at_once)

    def call(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Call ``function`` in the thread pool, as ``in_thread_pool`` does, once there is a free slot."""
        outcome: Any = self.start(_caught, function, args, kwargs).get()
        return cast(Result, _given(*outcome))

    def start(self, function: Callable[..., Any], *args: Any) -> AsyncResult[Any]:
        """Start a call once there is a free slot, and return an AsyncResult for it.

        :param function: must not raise, since gevent would print the traceback.
        """
        self._free.acquire()
        try:
            work = get_hub().threadpool.spawn(function, *args)
        except BaseException:
            self._free.release()
            raise
        work.rawlink(lambda _: self._free.release())
        return work


class FirstOutcome:
    """An outcome that only the first of several threads and greenlets can settle."""

    _settled: object = None

    def claim(self, outcome: object) -> bool:
        """Settle the outcome; return False if a different outcome was settled before."""
        with _lock:
            if self._settled is None:
                self._settled = outcome
            return self._settled == outcome


class Steps:
    """Run blocking steps on one resource, usually a file, one after another in the thread pool.

    A greenlet that waits for a step can be killed, or its wait can time out, while the thread is still running. Nothing
    else may use the resource then. So the clean-up is given to ``end``, which runs it after that step.
    """

    def __init__(self, pool: BoundedPool | None = None) -> None:
        """
        :param pool: the share of the thread pool to use; None for all of it.
        """
        self._pool = pool
        #: True while a step is running; then a thread may be using the resource.
        self.busy = False
        self._cleanup: Callable[[], object] | None = None

    def run(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Call ``function`` in the thread pool, and return its result.

        :raises RuntimeError: ``end`` has been called, or another step is running.
        :raises BaseException: what the function raised.
        """
        outcome: Any = self.start(function, *args, **kwargs).get()
        return cast(Result, _given(*outcome))

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Start a step. The AsyncResult will be a pair: the function's result, and the exception that it raised."""
        with _lock:
            if self.busy or self._cleanup is not None:
                raise RuntimeError("another step is running" if self.busy else "the steps have ended")
            self.busy = True
        try:
            start = get_hub().threadpool.spawn if self._pool is None else self._pool.start
            return start(self._step, function, args, kwargs)
        except BaseException:
            self.busy = False
            raise

    def _step(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, BaseException | None]:
        outcome: tuple[Any, BaseException | None] = None, RuntimeError("the steps have ended")
        if self._cleanup is None:
            outcome = _caught(function, args, kwargs)
        with _lock:
            self.busy = False
            cleanup = self._cleanup
        if cleanup is not None:
            _caught(cleanup, (), {})
        return outcome

    def end(self, cleanup: Callable[[], object]) -> AsyncResult[Any] | None:
        """Run ``cleanup`` in the thread pool as the last step, after the step that is running now.

        :return: an AsyncResult to wait for; None if a step is running, or if ``end`` was called before.
        """
        with _lock:
            if self._cleanup is not None:
                return None
            self._cleanup = cleanup
            if self.busy:
                return None
        # Not in the pool's share: the clean-up must not wait behind calls that hang.
        return get_hub().threadpool.spawn(_caught, cleanup, (), {})


def _caught(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    try:
        return function(*args, **kwargs), None
    except BaseException as error:  # returned, since gevent would print the traceback
        return None, error


def _given(result: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    return result
