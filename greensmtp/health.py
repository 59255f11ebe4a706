"""Whether this process is fit to receive mail: named checks, and the stores whose space is watched.

``/readyz`` asks all of them. A program or a plugin may add its own: ``health.add("database", check)``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from gevent import Timeout, sleep

from greensmtp._log import logger
from greensmtp.thread_pool import BoundedPool

#: Returns None if all is well, or what is wrong in a few words. It runs in a greenlet, and must not block the hub.
Check = Callable[[], str | None]

#: Seconds that all checks may take together.
CHECK_SECONDS = 5.0

#: Seconds by which the hub may be late.
MAX_LAG = 1.0

_checks: dict[str, Check] = {}
_stores: dict[str, int] = {}


def add(name: str, check: Check) -> None:
    """Add a check, or replace the one of this name.

    :param check: returns None if all is well, or what is wrong; an exception is a failure, too.
    """
    if not callable(check):
        raise TypeError(f"a check is called without arguments and returns None or a str; got {check!r}")
    _checks[name] = check


def remove(name: str) -> None:
    """Remove a check; do nothing if there is none."""
    _checks.pop(name, None)


def add_store(folder: str | Path) -> None:
    """Watch a folder that mail is stored in: that it can be written, and its free space."""
    name = str(Path(folder).absolute())
    _stores[name] = _stores.get(name, 0) + 1


def remove_store(folder: str | Path) -> None:
    """Watch a folder no more, once as many have said so as have added it."""
    name = str(Path(folder).absolute())
    left = _stores.pop(name, 0) - 1
    if left > 0:
        _stores[name] = left


def stores() -> list[str]:
    """Return the folders that mail is stored in."""
    return list(_stores)


def failures() -> dict[str, str]:
    """Run all checks; return what is wrong, by the name of the check."""
    found: dict[str, str] = {}
    with Timeout(CHECK_SECONDS, False):  # type: ignore[arg-type]  # False: it ends the block without an exception
        for name, check in [("hub", _check_hub), ("store", _check_stores), *_checks.items()]:
            found[name] = "takes too long"  # unless it ends
            try:
                wrong = check()
            except Exception as error:
                logger.warning("the health check %r raised", name, exc_info=True)
                wrong = f"raised {type(error).__name__}"
            if wrong is None:
                del found[name]
            else:
                found[name] = wrong
    return found


#: One thread for all questions: on a disk that hangs, each would keep one of those that others need.
_store_pool = BoundedPool(1)


def _check_hub() -> str | None:
    began = monotonic()
    sleep(0)
    lag = monotonic() - began
    return None if lag < MAX_LAG else f"late by {lag:.1f} s"


def _check_stores() -> str | None:
    return _store_pool.call(_first_unwritable, stores()) if _stores else None


def _first_unwritable(folders: list[str]) -> str | None:
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK):  # False on a file system that is read-only, too
            return f"{folder} cannot be written"
    return None


def answer_alive(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/healthz``, a WSGI application: 200 as long as the hub runs."""
    return _answer(start_response, "200 OK", {"status": "ok"})


def answer_ready(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/readyz``, a WSGI application: 200 if all checks are well, else 503 with what is wrong."""
    found = failures()
    if found:
        return _answer(start_response, "503 Service Unavailable", {"status": "not ready", "failures": found})
    return _answer(start_response, "200 OK", {"status": "ready"})


def _answer(start_response: Callable[..., Any], status: str, content: Mapping[str, Any]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps(content).encode() + b"\n"]


#: The paths of an HTTP listener.
ROUTES: Mapping[str, Any] = {"/healthz": answer_alive, "/readyz": answer_ready}
