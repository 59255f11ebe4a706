"""Plugins: modules whose handlers connect when they are imported, and callables that are given the server."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gevent import Timeout

from greensmtp._callables import deferred_kind
from greensmtp._log import logger
from greensmtp._suggest import did_you_mean
from greensmtp.chain.chain import Middleware
from greensmtp.plugins.discovery import (
    EntryPoint,
    PluginError,
    describe_error,
    import_object,
    installed_middleware,
    installed_plugins,
)
from greensmtp.server.server import SMTPServer
from greensmtp.signals import FIELDS, Signals, shared

__all__ = [
    "ALL",
    "EntryPoint",
    "Plugin",
    "PluginError",
    "WrongOptions",
    "installed_middleware",
    "installed_plugins",
    "load_plugin",
    "middleware_factory",
    "plug_in",
    "read_option",
    "warn_of_shadowed",
]

Plugin = Callable[[SMTPServer], Any]

#: ``(callable, options) -> options``
CheckOptions = Callable[[Callable[..., Any], dict[str, Any]], dict[str, Any]]

#: Stands for every installed plugin, in the order of their names.
ALL = "all"

_OPTIONAL = ",optional"

#: What has been put into which server, so that ``ALL`` does not do it again.
_plugged: weakref.WeakKeyDictionary[SMTPServer, set[str]] = weakref.WeakKeyDictionary()


class WrongOptions(PluginError):
    """A plugin takes no such options. Being optional does not excuse that."""


def read_option(text: str) -> tuple[str, bool]:
    """A plugin as the command line writes it: its name, and whether it is optional (``vacation,optional``)."""
    name = text.strip()
    return (name.removesuffix(_OPTIONAL).rstrip(), True) if name.endswith(_OPTIONAL) else (name, False)


def plug_in(
    name: str,
    servers: Sequence[SMTPServer],
    *,
    optional: bool = False,
    options: Mapping[str, Any] | None = None,
    check: CheckOptions | None = None,
) -> None:
    """Load a plugin and put it into these servers, wholly or not at all: where it fails, the handlers that it has
    connected by then are disconnected again.

    :param name: as ``load_plugin`` takes it, or ``ALL``, for those that are installed and not in yet.
    :param optional: one that fails is skipped, with a warning in the log; but wrong options are an error all the same.
    :param options: what the plugin's callable is given besides the server: ``install(server, delay=3)``.
    :param check: reads the options before they are used, see ``load_plugin``.
    :raises PluginError: it cannot be loaded, or fails; or it is optional, but has stacked middleware before it failed,
        which stays.
    """
    if not isinstance(servers, Sequence):
        raise TypeError(f"plug_in takes a list of servers, like [server], not {servers!r}")
    if name == ALL and options:
        raise WrongOptions(f"{ALL!r} takes no options: name each plugin that has some")
    for each in installed_plugins() if name == ALL else (name,):
        undo = _Undo(servers)
        try:
            plugin = load_plugin(each, options, check)
            for server in servers:
                _plug(plugin, server)
        except PluginError as error:
            undo()
            if not optional or isinstance(error, WrongOptions):
                raise
            if undo.stacked:
                raise PluginError(f"{error} (it is optional, but has stacked middleware, which stays)") from error
            logger.warning("skipped an optional plugin: %s", error)


def load_plugin(name: str, options: Mapping[str, Any] | None = None, check: CheckOptions | None = None) -> Plugin:
    """Import an installed plugin by its name, or ``MODULE`` or ``MODULE:CALLABLE``; give what is to be called with
    each server.

    Modules in the current folder are found. A module alone has done its work when it is imported: its handlers are
    connected to ``greensmtp.signals``.

    :param options: what the callable is given besides the server.
    :param check: given the callable and the options, it returns them as the callable is to get them, or raises
        ``WrongOptions``.
    :raises PluginError: no such plugin, module or callable, or importing it failed; calling what is given raises it
        too.
    """
    module_name, colon, attribute = name.partition(":")
    if not module_name or (colon and not attribute):
        raise PluginError(
            f"{name!r}: write MODULE or MODULE:CALLABLE, like 'policy' or 'policy:install', "
            "or the name of an installed plugin"
        )
    found = None if colon else installed_plugins().get(name)
    if found is not None:
        _check_folder(found)
        return _make_plugin(found.load(), found.value, str(found), options, check)
    _look_here()
    try:
        target = import_object(name, repr(name))
    except PluginError as error:
        if _is_missing(error.__cause__, module_name):
            hint = did_you_mean(name, installed_plugins())
            raise PluginError(f"{error}; no plugin of that name is installed either{hint}") from error.__cause__
        raise
    return _make_plugin(target, name, repr(name), options, check)


def middleware_factory(name: str) -> Callable[..., Middleware]:
    """What makes the middleware of this name: one of the catalogue or of an installed package, or
    ``MODULE:ATTRIBUTE``. Modules in the current folder are found.

    :raises PluginError: there is none, and the text names the nearest; or it cannot be imported.
    """
    module_name, colon, attribute = name.partition(":")
    if colon:
        if not module_name or not attribute:
            raise PluginError(f"{name!r}: write NAME or MODULE:ATTRIBUTE, like 'RateLimit' or 'policy:Greylist'")
        _look_here()
        factory = import_object(name, f"middleware {name!r}")
    else:
        installed = installed_middleware()
        found = installed.get(name)
        if found is None:
            hint = did_you_mean(name, installed) or f" (there are: {', '.join(installed)})"
            raise PluginError(f"there is no middleware {name!r}{hint}")
        factory = found.load()
    if not callable(factory):
        raise PluginError(f"middleware {name!r}: {factory!r} makes none: it cannot be called")
    made: Callable[..., Middleware] = factory
    return made


def warn_of_shadowed(names: Iterable[str]) -> None:
    """Log where another package offers middleware by one of these names, which are the catalogue's."""
    installed = installed_middleware()
    for name in dict.fromkeys(names):
        for each in installed[name].shadowed if name in installed else ():
            logger.warning("%s is not used: that name is reserved for greensmtp's own; write %r", each, each.value)


def _make_plugin(
    target: Any, value: str, who: str, options: Mapping[str, Any] | None, check: CheckOptions | None
) -> _Plugin:
    given = dict(options or {})
    if not value.partition(":")[2]:
        if given:
            raise WrongOptions(f"{who} takes no options: it is a module; name a callable in it, MODULE:CALLABLE")
    elif check is not None and callable(target):
        given = check(target, given)
    return _Plugin(target, value, who, given)


class _Plugin:
    """What is to be called with each server."""

    def __init__(self, target: Any, value: str, who: str, options: dict[str, Any]) -> None:
        self.value = value
        self.options = options
        self._target = target
        self._who = who
        self._attribute = value.partition(":")[2]
        if self._attribute and not _takes(target, options):
            wrong = next((name for name in options if not _takes(target, {name: None}, partial=True)), None)
            if wrong is None:
                raise PluginError(f"{who}: {self._attribute} must be callable with one argument, the server")
            hint = did_you_mean(wrong, _option_names(target))
            raise WrongOptions(f"{who}: {self._attribute} takes no option {wrong!r}{hint}")
        if deferred_kind(target):
            raise PluginError(
                f"{who}: {self._attribute} must be a plain def: with async or yield, calling it runs nothing"
            )

    def __call__(self, server: SMTPServer) -> None:
        if not self._attribute:
            return
        try:
            self._target(server, **self.options)
        except (Exception, SystemExit, Timeout) as error:
            raise PluginError(f"{self._who}: {self._attribute} failed: {describe_error(error)}") from error

    def __str__(self) -> str:
        return self._who


def _plug(plugin: Plugin, server: SMTPServer) -> None:
    inside = _plugged.setdefault(server, set())
    value = getattr(plugin, "value", "")
    if value not in inside:
        plugin(server)
        inside.add(value)
    elif getattr(plugin, "options", None):
        raise WrongOptions(f"{plugin} is in this server already: name it once, with its options, and before {ALL!r}")


class _Undo:
    """Takes back what a plugin has connected since this was made."""

    def __init__(self, servers: Iterable[SMTPServer]) -> None:
        self._servers = {server: (server.stack, set(_plugged.get(server, ()))) for server in servers}
        self._before = [(signals, _connected(signals)) for signals in (shared, *(each.signals for each in servers))]

    def __call__(self) -> None:
        for signals, before in self._before:
            for key, held in _connected(signals).items():
                if key not in before:
                    receiver = held() if isinstance(held, weakref.ref) else held
                    if receiver is not None:
                        signals.named(key[0]).disconnect(receiver)
        for server, (_, plugged) in self._servers.items():
            _plugged[server] = plugged

    @property
    def stacked(self) -> bool:
        """It has stacked middleware, too, which nobody can take back."""
        return any(server.stack != stack for server, (stack, _) in self._servers.items())


def _connected(signals: Signals) -> dict[tuple[str, Any], Any]:
    """(signal, blinker's number) -> receiver, or a reference to it."""
    return {(name, key): it for name in FIELDS for key, it in signals.named(name).receivers.items()}


def _takes(target: Any, options: Mapping[str, Any], *, partial: bool = False) -> bool:
    """It can be called with a server and these options; with ``partial``, and perhaps more of them."""
    if not callable(target):
        return False
    try:
        signature = inspect.signature(target)
        (signature.bind_partial if partial else signature.bind)(None, **options)
    except TypeError:
        return False
    except ValueError:  # something built in: it tells nothing
        pass
    return True


def _option_names(target: Any) -> list[str]:
    """The names of what it takes besides the server."""
    return [*inspect.signature(target).parameters][1:]


def _look_here() -> None:
    """Find modules in the current folder."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _check_folder(found: EntryPoint) -> None:
    """A name that means two things may mean the wrong one: nobody's policy is to be replaced without a word."""
    if found.value.partition(":")[0].partition(".")[0] == found.name:
        return
    for path in (Path(f"{found.name}.py"), Path(found.name) / "__init__.py"):
        if path.is_file():
            raise PluginError(
                f"{found.name!r} is the {found}, and {str(path)!r} in the current folder, too: write {found.value!r} "
                "for the one, or rename the other"
            )


def _is_missing(error: BaseException | None, module_name: str) -> bool:
    """It is this very module that there is not, and not one that it imports."""
    return isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
