"""Plugins: modules whose handlers connect when they are imported, and callables that are given the server."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greensmtp.errors import GreenSMTPError
from greensmtp.server import SMTPServer

Plugin = Callable[[SMTPServer], Any]


class PluginError(GreenSMTPError):
    """A plugin cannot be loaded; the text says which and why."""


def load_plugin(name: str) -> Plugin:
    """Import ``MODULE`` or ``MODULE:CALLABLE``; give what is to be called with each server.

    Modules in the current folder are found. A module alone has done its work when it is imported: its handlers are
    connected to ``greensmtp.signals``.

    :raises PluginError: no such module or callable, or importing it failed.
    """
    module_name, colon, attribute = name.partition(":")
    if not module_name or (colon and not attribute):
        raise PluginError(f"plugin {name!r}: write MODULE or MODULE:CALLABLE, like 'policy' or 'policy:install'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise PluginError(f"plugin {name!r}: cannot import {module_name}: {type(error).__name__}: {error}") from error
    if not colon:
        return lambda server: None
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise PluginError(f"plugin {name!r}: {module_name} has no {attribute!r}")
        target = getattr(target, part)
    try:
        inspect.signature(target).bind(None)
    except (TypeError, ValueError):
        raise PluginError(f"plugin {name!r}: {attribute} must be callable with one argument, the server") from None
    plugin: Plugin = target
    return plugin
