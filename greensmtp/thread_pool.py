"""Blocking work in gevent's thread pool, so that it does not block the hub.

File I/O, fsync, password hashing and blocking libraries go through here. gevent's own ``threadpool.apply`` prints the
traceback of an exception before it raises it in the caller; these functions only raise it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from gevent import get_hub
from gevent.lock import BoundedSemaphore

from greensmtp._callables import handler_name
from greensmtp._native import native

if TYPE_CHECKING:
    from gevent.event import AsyncResult

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: What an ``async def`` or a generator function returns: nothing of its body has run.
_NOT_RUN = (CoroutineType, AsyncGeneratorType, GeneratorType)


def in_thread_pool(
    function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call ``function`` in gevent's thread pool, and return its result; other greenlets run meanwhile.

    The function runs in a native thread: it must not use gevent, and must not touch a session or a stream.

    :raises TypeError: it is an ``async def`` or a generator function, whose body would not run in the pool.
    :raises BaseException: what the function raised, with its traceback; nothing is printed.
    """
    outcome: Any = get_hub().threadpool.apply(_outcome_of, (function, args, kwargs))
    return cast(Result, _result_of(*outcome))


class BoundedPool:
    """A share of gevent's thread pool: at most ``at_once`` calls run at the same time, and further calls wait.

    A call keeps its slot until its work is over, even if the waiting greenlet is killed or times out. So work that
    hangs, for example on an unresponsive file system, cannot occupy more than its share of the threads.
    """

    def __init__(self, at_once: int) -> None:
        self._free = BoundedSemaphore(at_once)

    def call(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Call ``function`` in the thread pool, as ``in_thread_pool`` does, once there is a free slot."""
        outcome: Any = self.start(_outcome_of, function, args, kwargs).get()
        return cast(Result, _result_of(*outcome))

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


class Steps:
    """Run blocking steps on one resource, usually a file, one after another in the thread pool.

    A greenlet that waits for a step can be killed, or its wait can time out, while the thread is still running. Nothing
    else may use the resource then. So the clean-up is given to ``end``, which runs it after that step.

    :param pool: the share of the thread pool to use; None for all of it.
    """

    #: Guards ``busy`` and ``_cleanup`` in the hub and in native threads, very briefly. One lock serves all instances. A
    #: lock of gevent's would not exclude another thread.
    _lock = native("_thread", "allocate_lock")()

    def __init__(self, pool: BoundedPool | None = None) -> None:
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
        return cast(Result, _result_of(*outcome))

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Start a step. The AsyncResult will be a pair: the function's result, and the exception that it raised."""
        with self._lock:
            if self.busy or self._cleanup is not None:
                raise RuntimeError("another step is running" if self.busy else "the steps have ended")
            self.busy = True
        try:
            start = get_hub().threadpool.spawn if self._pool is None else self._pool.start
            return start(self._step, function, args, kwargs)
        except BaseException:  # killed while waiting for a free slot
            cleanup = self._finish_step()
            if cleanup is not None:
                get_hub().threadpool.spawn(_outcome_of, cleanup, (), {})
            raise

    def _step(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, BaseException | None]:
        outcome: tuple[Any, BaseException | None] = None, RuntimeError("the steps have ended")
        if self._cleanup is None:
            outcome = _outcome_of(function, args, kwargs)
        cleanup = self._finish_step()
        if cleanup is not None:
            _outcome_of(cleanup, (), {})
        return outcome

    def _finish_step(self) -> Callable[[], object] | None:
        """Note that no step is running; return the clean-up that ``end`` has been given meanwhile."""
        with self._lock:
            self.busy = False
            return self._cleanup

    def end(self, cleanup: Callable[[], object]) -> AsyncResult[Any] | None:
        """Run ``cleanup`` in the thread pool as the last step, after the step that is running now.

        :return: an AsyncResult to wait for; None if a step is running, or if ``end`` was called before.
        """
        with self._lock:
            if self._cleanup is not None:
                return None
            self._cleanup = cleanup
            if self.busy:
                return None
        # Not in the pool's share: the clean-up must not wait behind calls that hang.
        return get_hub().threadpool.spawn(_outcome_of, cleanup, (), {})


def _outcome_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    """Call the function. Return its result and what it raised, since gevent would print the traceback."""
    try:
        result = function(*args, **kwargs)
        if isinstance(result, _NOT_RUN):
            if isinstance(result, CoroutineType):
                result.close()  # or Python would warn that it was never awaited
            raise TypeError(
                f"expected a plain function for the thread pool; got {handler_name(function)}, an async def or a "
                "generator function, whose body would not run there"
            )
        return result, None
    except BaseException as error:
        return None, error


def _result_of(result: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    return result
