"""``/metrics`` over HTTP: what an HTTP listener answers with."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

from gevent import sleep

from greensmtp._hostport import address
from greensmtp.errors import ArgumentError
from greensmtp.http_listener import App
from greensmtp.thread_pool import in_thread_pool

logger = logging.getLogger("greensmtp")

#: With several processes, prometheus-client keeps every value in files of the folder that this variable names.
SEVERAL_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"

#: How often to try to read them, and the seconds between two tries.
_TRIES, _PAUSE = 4, 0.05


def parse_address(listen: object) -> tuple[str, int]:
    """``"127.0.0.1:9100"``, ``"[::1]:9100"`` or ``("127.0.0.1", 9100)``.

    :raises ValueError: it is something else; the text says what it takes.
    """
    found = address(listen)
    if found is None:
        raise ArgumentError("listen", f'takes "host:port" or (host, port), like "127.0.0.1:9100", not {listen!r}')
    return found


@lru_cache(16)
def metrics_app(registry: Any) -> App:
    """Return the application that writes a registry; the same one each time."""
    from prometheus_client import CollectorRegistry, make_wsgi_app, multiprocess

    several = SEVERAL_PROCESSES in os.environ
    if several:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    metrics = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        started: list[Any] = []
        try:
            if several:
                body = _read_files(partial(metrics, environ, lambda *answer: started.append(answer)))
            else:
                body = metrics(environ, lambda *answer: started.append(answer))
        except Exception:
            logger.exception("the metrics cannot be collected; replying 500")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"See the log for the cause\n"]
        start_response(*started[0])
        return body  # type: ignore[no-any-return]

    return app


def _read_files(collect: Callable[[], Any]) -> Any:
    """Collect the numbers of all processes. While a process creates its files, they cannot be read."""
    for _ in range(_TRIES - 1):
        try:
            return in_thread_pool(collect)
        except Exception:
            sleep(_PAUSE)
    return in_thread_pool(collect)
