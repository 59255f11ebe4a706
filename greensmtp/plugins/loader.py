"""Load plugins: modules that connect handlers when imported, and callables that get the server."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from greensmtp._callables import deferred_kind
from greensmtp._log import logger
from greensmtp._suggest import did_you_mean
from greensmtp.chain.chain import Middleware
from greensmtp.delivery.contract import Delivery
from greensmtp.plugins.discovery import (
    FAILURES,
    EntryPoint,
    Kind,
    PluginError,
    describe_error,
    import_object,
    installed_deliveries,
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
    "delivery_factory",
    "installed_deliveries",
    "installed_middleware",
    "installed_plugins",
    "load_plugin",
    "middleware_factory",
    "plug_in",
    "read_option",
    "recipient_predicate",
    "warn_of_shadowed",
]

Plugin = Callable[[SMTPServer], Any]

#: ``(callable, options) -> options``
CheckOptions = Callable[[Callable[..., Any], dict[str, Any]], dict[str, Any]]

#: Stands for every installed plugin, sorted by name.
ALL = "all"

_OPTIONAL = ",optional"

#: Server -> the plugins that it has, so that ``ALL`` does not add one twice.
_loaded: weakref.WeakKeyDictionary[SMTPServer, set[str]] = weakref.WeakKeyDictionary()


class WrongOptions(PluginError):
    """A plugin does not accept these options. This is an error for an optional plugin too."""


def read_option(text: str) -> tuple[str, bool]:
    """Return the name of a plugin and whether it is optional, from the command line's ``NAME[,optional]``."""
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
    """Load a plugin and add it to these servers.

    If it fails, the handlers that it has connected are disconnected again.

    :param name: a name for ``load_plugin``; or ``ALL`` for all installed plugins that the servers do not have yet.
    :param optional: skip a plugin that fails, with a warning in the log. Wrong options are still an error.
    :param options: arguments for the plugin's callable besides the server: ``install(server, delay=3)``.
    :param check: validates the options before they are used, see ``load_plugin``.
    :raises PluginError: it cannot be loaded, or it fails. For an optional plugin: it fails after it has added
        middleware, which cannot be undone.
    """
    if not isinstance(servers, Sequence):
        raise TypeError(f"servers: expected a list, like [server]; got {servers!r}")
    if name == ALL and options:
        raise WrongOptions(f"{ALL!r} takes no options: name the plugin that they are for")
    for each in installed_plugins() if name == ALL else (name,):
        before = _Snapshot(servers)
        try:
            plugin = load_plugin(each, options, check)
            for server in servers:
                _add(plugin, server)
        except PluginError as error:
            before.restore()
            if not optional or isinstance(error, WrongOptions):
                raise
            if before.stack_changed:
                raise PluginError(f"{error}; it has added middleware, which cannot be undone") from error
            logger.warning("skipped an optional plugin: %s", error)


def load_plugin(name: str, options: Mapping[str, Any] | None = None, check: CheckOptions | None = None) -> Plugin:
    """Import a plugin, and return a callable to call with each server; that may raise PluginError too.

    The current folder is searched for modules as well. A plugin that is only a module connects its handlers to
    ``greensmtp.signals`` when it is imported; then the returned callable does nothing.

    :param name: an installed plugin, ``MODULE`` or ``MODULE:CALLABLE``.
    :param options: arguments for the plugin's callable besides the server.
    :param check: called with the plugin's callable and the options; returns the validated options, or raises
        ``WrongOptions``.
    :raises PluginError: there is no such plugin, module or callable, or importing it failed.
    """
    module_name, colon, attribute = name.partition(":")
    if not module_name or (colon and not attribute):
        raise PluginError(
            f"{name!r}: write MODULE or MODULE:CALLABLE, like 'policy' or 'policy:install', "
            "or the name of an installed plugin"
        )
    found = None if colon else installed_plugins().get(name)
    if found is not None:
        _check_ambiguous(found)
        return _Plugin(found.load(), found.value, str(found), options, check)
    _search_current_folder()
    try:
        target = import_object(name, repr(name))
    except PluginError as error:
        if _is_missing(error.__cause__, module_name):
            hint = did_you_mean(name, installed_plugins())
            raise PluginError(f"{error}; and no installed plugin has that name{hint}") from error.__cause__
        raise
    return _Plugin(target, name, repr(name), options, check)


def middleware_factory(name: str) -> Callable[..., Middleware]:
    """Return the class or factory of a middleware.

    :param name: a middleware of the catalogue or of an installed package, or ``MODULE:ATTRIBUTE``; the current folder
        is searched for modules as well.
    :raises PluginError: there is none, and the text names the nearest; or it cannot be imported.
    """
    return _factory("middleware", name, installed_middleware, "'RateLimit' or 'policy:Greylist'")


def delivery_factory(name: str) -> Callable[..., Delivery]:
    """Return the class or factory of a delivery, as ``middleware_factory`` does."""
    return _factory("delivery", name, installed_deliveries, "'Maildir' or 'archive:Archive'")


def recipient_predicate(name: str) -> Callable[..., object]:
    """Return the predicate of recipients that ``MODULE:FUNCTION`` names.

    :raises PluginError: it cannot be imported, or called.
    """
    _search_current_folder()
    found = import_object(name, f"predicate {name!r}")
    if not callable(found):
        raise PluginError(f"predicate {name!r}: expected a function of (session, address); got {found!r}")
    return cast(Callable[..., object], found)


def _factory(
    kind: Kind, name: str, installed: Callable[[], Mapping[str, EntryPoint]], examples: str
) -> Callable[..., Any]:
    module_name, colon, attribute = name.partition(":")
    if colon:
        if not module_name or not attribute:
            raise PluginError(f"{name!r}: write NAME or MODULE:ATTRIBUTE, like {examples}")
        _search_current_folder()
        factory = import_object(name, f"{kind} {name!r}")
    else:
        known = installed()
        found = known.get(name)
        if found is None:
            hint = did_you_mean(name, known) or f" (there are: {', '.join(known)})"
            raise PluginError(f"there is no {kind} {name!r}{hint}")
        factory = found.load()
    if not callable(factory):
        raise PluginError(f"{kind} {name!r}: expected a class or another callable; got {factory!r}")
    return cast(Callable[..., Any], factory)


def warn_of_shadowed(names: Iterable[str]) -> None:
    """Log a warning for each package whose middleware has one of these names, if it is the catalogue's."""
    installed = installed_middleware()
    for name in dict.fromkeys(names):
        for each in installed[name].shadowed if name in installed else ():
            logger.warning("%s is not used: that name is reserved for greensmtp's own; write %r", each, each.value)


class _Plugin:
    """A loaded plugin; it is called with each server."""

    def __init__(
        self,
        target: Any,
        value: str,
        label: str,
        options: Mapping[str, Any] | None,
        check: CheckOptions | None,
    ) -> None:
        self.value = value
        self.options = dict(options or {})
        self._target = target
        self._label = label
        self._attribute = value.partition(":")[2]
        if not self._attribute:
            if self.options:
                raise WrongOptions(f"{label} takes no options: it is a module; name a callable in it, MODULE:CALLABLE")
            return
        if check is not None and callable(target):
            self.options = check(target, self.options)
        if not _takes(target, self.options):
            wrong = next((name for name in self.options if not _takes(target, {name: None}, partial=True)), None)
            if wrong is None:
                raise PluginError(f"{label}: expected {self._attribute} to be callable with one argument, the server")
            hint = did_you_mean(wrong, [*inspect.signature(target).parameters][1:])
            raise WrongOptions(f"{label}: {self._attribute} takes no option {wrong!r}{hint}")
        if deferred_kind(target):
            raise PluginError(
                f"{label}: expected {self._attribute} to be a plain function; got an async def or a generator"
            )

    def __call__(self, server: SMTPServer) -> None:
        if not self._attribute:
            return
        try:
            self._target(server, **self.options)
        except FAILURES as error:
            raise PluginError(f"{self._label}: {self._attribute} failed: {describe_error(error)}") from error

    def __str__(self) -> str:
        return self._label


def _add(plugin: Plugin, server: SMTPServer) -> None:
    names = _loaded.setdefault(server, set())
    value = getattr(plugin, "value", "")
    if value not in names:
        plugin(server)
        names.add(value)
    elif getattr(plugin, "options", None):
        raise WrongOptions(f"{plugin} is already in this server: name it once, with its options, before {ALL!r}")


class _Snapshot:
    """The handlers and middleware of servers before a plugin is added to them."""

    def __init__(self, servers: Iterable[SMTPServer]) -> None:
        self._servers = {server: (server.stack, set(_loaded.get(server, ()))) for server in servers}
        self._before = [(signals, _connected(signals)) for signals in (shared, *(each.signals for each in servers))]

    def restore(self) -> None:
        """Disconnect the handlers that have been connected since."""
        for signals, before in self._before:
            for key, held in _connected(signals).items():
                if key not in before:
                    receiver = held() if isinstance(held, weakref.ref) else held
                    if receiver is not None:
                        signals.named(key[0]).disconnect(receiver)
        for server, (_, plugged) in self._servers.items():
            _loaded[server] = plugged

    @property
    def stack_changed(self) -> bool:
        """True if middleware has been added since, which cannot be undone."""
        return any(server.stack != stack for server, (stack, _) in self._servers.items())


def _connected(signals: Signals) -> dict[tuple[str, Any], Any]:
    """Return (signal, blinker's key) -> receiver, or a weak reference to it."""
    return {(name, key): it for name in FIELDS for key, it in signals.named(name).receivers.items()}


def _takes(target: Any, options: Mapping[str, Any], *, partial: bool = False) -> bool:
    """True if it can be called with a server and these options.

    :param partial: further arguments may be missing.
    """
    if not callable(target):
        return False
    try:
        signature = inspect.signature(target)
        (signature.bind_partial if partial else signature.bind)(None, **options)
    except TypeError:
        return False
    except ValueError:  # a built-in without a signature
        pass
    return True


def _search_current_folder() -> None:
    """Let modules in the current folder be imported."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _check_ambiguous(found: EntryPoint) -> None:
    """Raise PluginError if the name also means a module in the current folder.

    Choosing one of them silently could replace a policy.
    """
    if found.value.partition(":")[0].partition(".")[0] == found.name:
        return
    for path in (Path(f"{found.name}.py"), Path(found.name) / "__init__.py"):
        if path.is_file():
            raise PluginError(
                f"{found.name!r} is both the {found} and {str(path)!r} in the current folder: write {found.value!r} "
                "for the first, or rename the second"
            )


def _is_missing(error: BaseException | None, module_name: str) -> bool:
    """True if the module itself was not found, rather than one that it imports."""
    return isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
