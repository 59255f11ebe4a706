"""Calls in the thread pool: what is refused, and what is cleaned up."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greensmtp.thread_pool import BoundedPool, Steps, in_thread_pool


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [coroutine, generator, async_generator])
@pytest.mark.parametrize("call", [in_thread_pool, BoundedPool(1).call, Steps().run])
def test_a_function_whose_body_would_not_run_is_a_type_error(
    call: Callable[..., Any], function: Callable[[], object]
) -> None:
    with pytest.raises(TypeError, match=f"^expected a plain function .*; got .*{function.__name__}, an async def"):
        call(function)


def test_the_clean_up_runs_when_the_step_was_killed_before_a_slot_was_free() -> None:
    pool, go_on, cleaned = BoundedPool(1), threading.Event(), Event()
    busy = pool.start(go_on.wait)
    steps, loop = Steps(pool), gevent.get_hub().loop
    waiting = gevent.spawn(steps.run, int)
    gevent.idle()
    assert steps.end(lambda: loop.run_callback_threadsafe(cleaned.set)) is None  # after the step
    waiting.kill()
    assert cleaned.wait(10)
    assert not steps.busy
    go_on.set()
    busy.get()
