"""The real things behind gevent's monkey patching: what belongs to native threads must not be a greenlet's."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def native(module: str, name: str) -> Any:
    """``module.name`` as Python has it, in a patched process too.

    (As ``gevent.monkey.get_original`` does it, which need not be imported where nothing is patched.)
    """
    monkey = sys.modules.get("gevent.monkey")
    return getattr(import_module(module), name) if monkey is None else monkey.get_original(module, name)
