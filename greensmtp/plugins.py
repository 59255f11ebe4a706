"""Plugins: modules whose handlers connect when they are imported, and callables that are given the server."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greensmtp.errors import GreenSMTPError
from greensmtp.server import SMTPServer

Plugin = Callable[[SMTPServer], Any]


class PluginError(GreenSMTPError):
    """A plugin cannot be loaded, or not be put into a server; the text says which and why."""


def load_plugin(name: str) -> Plugin:
    """Import ``MODULE`` or ``MODULE:CALLABLE``; give what is to be called with each server.

    Modules in the current folder are found. A module alone has done its work when it is imported: its handlers are
    connected to ``greensmtp.signals``.

    :raises PluginError: no such module or callable, or importing it failed; calling what is given raises it too.
    """
    module_name, colon, attribute = name.partition(":")
    if not module_name or (colon and not attribute):
        raise PluginError(f"{name!r}: write MODULE or MODULE:CALLABLE, like 'policy' or 'policy:install'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{name!r}: cannot import {module_name}: {_describe(error)}") from error
    if not colon:
        return lambda server: None
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise PluginError(f"{name!r}: {module_name} has no {attribute!r}")
        target = getattr(target, part)
    if not _takes_one(target):
        raise PluginError(f"{name!r}: {attribute} must be callable with one argument, the server")

    def plug_in(server: SMTPServer) -> None:
        try:
            target(server)
        except Exception as error:
            raise PluginError(f"{name!r}: {attribute} failed: {_describe(error)}") from error

    return plug_in


def _takes_one(target: Any) -> bool:
    if not callable(target):
        return False
    try:
        inspect.signature(target).bind(None)
    except TypeError:
        return False
    except ValueError:  # something built in: it tells nothing
        pass
    return True


def _describe(error: BaseException) -> str:
    """What was raised, and where: the plugin's author has nothing but this line."""
    ours = (str(Path(__file__).parent), str(Path(importlib.__file__).parent), "<frozen ")
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{place}"
