"""Primitives of native threads, also where gevent has patched the standard library."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def native(module: str, name: str) -> Any:
    """Return the unpatched ``module.name``.

    ``gevent.monkey`` is used only if it has been imported, since nothing is patched otherwise.
    """
    monkey = sys.modules.get("gevent.monkey")
    return getattr(import_module(module), name) if monkey is None else monkey.get_original(module, name)
