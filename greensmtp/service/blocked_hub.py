"""Detect code that blocks the hub, and log its stack.

All connections of a process share one hub. Code that computes for a second, or waits without gevent, stops all of them.
Only another native thread can detect that while it happens.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from gevent import get_hub

from greensmtp._log import logger
from greensmtp._native import native

#: Frames that a log line shows, innermost last.
_FRAMES = 8

#: Minimum number of seconds between two log lines.
_PAUSE = 60.0


@contextmanager
def blocking_reported(seconds: float | None) -> Iterator[None]:
    """Log code that blocks this thread's hub for longer than ``seconds``, until the ``with`` block ends.

    :param seconds: None: log nothing.
    """
    if seconds is None:
        yield
        return
    watch = _Watch(seconds)
    try:
        yield
    finally:
        watch.stop()


class _Watch:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread = native("_thread", "get_ident")()
        self._beats = 0
        self._timer = get_hub().loop.timer(seconds / 4, repeat=seconds / 4)
        self._timer.start(self._beat)
        #: Locked until the watching thread must end.
        self._end = native("_thread", "allocate_lock")()
        self._end.acquire()
        native("_thread", "start_new_thread")(self._run, ())

    def _beat(self) -> None:
        self._beats += 1

    def stop(self) -> None:
        self._timer.stop()
        self._timer.close()
        self._end.release()

    def _run(self) -> None:
        """Watch the hub. Runs in a native thread."""
        seen, since = -1, monotonic()
        reported: int | None = None
        last_line = -math.inf
        while not self._end.acquire(True, self._seconds / 2):
            now = monotonic()
            if self._beats != seen:
                if reported == seen and reported is not None:
                    logger.warning("the hub runs again; it was blocked for %.1f s", now - since)
                    reported = None
                seen, since = self._beats, now
            elif now - since >= self._seconds and reported != seen and now - last_line >= _PAUSE:
                reported, last_line = seen, now
                self._report(now - since)

    def _report(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._thread)
        if frame is None or _waits(frame):
            return  # suspended as a whole: a stopped process, a sleeping machine
        logger.warning(
            "the hub has been blocked for %.1f s: no connection is served. It is in:\n%s",
            seconds,
            "".join(traceback.format_list(traceback.extract_stack(frame)[-_FRAMES:])).rstrip(),
        )


def _waits(frame: FrameType) -> bool:
    """Return True if the hub waits for events, as it should."""
    return frame.f_code.co_filename.endswith("gevent/hub.py") and frame.f_code.co_name == "run"
