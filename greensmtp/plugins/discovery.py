"""Find installed plugins, middleware and deliveries: entry points of packages, and the catalogues of our own."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from gevent import GreenletExit, Timeout

from greensmtp._log import logger
from greensmtp._suggest import did_you_mean
from greensmtp.delivery.contract import Delivery
from greensmtp.errors import GreenSMTPError

Kind = Literal["plugin", "middleware", "delivery"]

#: Kind -> entry point group.
GROUPS: dict[Kind, str] = {
    "plugin": "greensmtp.plugins",
    "middleware": "greensmtp.middleware",
    "delivery": "greensmtp.delivery",
}

#: What the code of plugins and middleware may raise: everything but KeyboardInterrupt. ``except`` these around a call.
FAILURES = (Exception, SystemExit, Timeout, GreenletExit)


class PluginError(GreenSMTPError):
    """A plugin, middleware or delivery cannot be loaded or added to a server; the text says which one and why."""


@dataclass(frozen=True)
class EntryPoint:
    """An installed plugin, middleware or delivery.

    ``value`` is the object, as ``MODULE`` or ``MODULE:ATTRIBUTE``. ``conflicts`` are the entry points of other packages
    with the same name; then none of them can be loaded by that name. ``shadowed`` are the entry points of other
    packages with a name of the catalogue's, which wins.
    """

    kind: Kind
    name: str
    value: str
    distribution: str
    version: str
    conflicts: tuple[EntryPoint, ...] = ()
    shadowed: tuple[EntryPoint, ...] = ()

    def load(self) -> Any:
        """Import it, and return the module or the object in it.

        :raises PluginError: it cannot be imported, or several packages claim its name; the text names them.
        """
        if self.conflicts:
            owners = " and ".join(f"{each.origin} ({each.value})" for each in (self, *self.conflicts))
            raise PluginError(
                f"{self.kind} {self.name!r} is claimed by several packages, {owners}: uninstall all but one, "
                "or name the object in parentheses instead"
            )
        return import_object(self.value, str(self))

    @property
    def origin(self) -> str:
        """The package that provides it, with its version."""
        return f"{self.distribution} {self.version}".rstrip()

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.origin}"


def installed_plugins() -> dict[str, EntryPoint]:
    """Return the installed plugins by name, sorted by name."""
    return _by_name(_entry_points("plugin"))


def installed_middleware() -> dict[str, EntryPoint]:
    """Return the installed middleware by name, sorted by name; it includes the catalogue's.

    The catalogue's names are reserved: another package's middleware with such a name is in ``shadowed``.
    """
    return _installed("middleware", is_middleware_class)


def installed_deliveries() -> dict[str, EntryPoint]:
    """Return the installed deliveries by name, as ``installed_middleware`` does."""
    return _installed("delivery", is_delivery_class)


def _installed(kind: Kind, is_ours: Callable[[Any], bool]) -> dict[str, EntryPoint]:
    ours = {each.name: each for each in _catalogue(kind, is_ours)}
    others = _by_name(_entry_points(kind))
    for name in ours.keys() & others.keys():
        first = others.pop(name)
        ours[name] = replace(ours[name], shadowed=(replace(first, conflicts=()), *first.conflicts))
    return dict(sorted((ours | others).items()))


def _entry_points(kind: Kind) -> Iterator[EntryPoint]:
    """Yield the entry points of all distributions.

    ``metadata.entry_points`` is not used because it raises if any distribution is broken.
    """
    seen = set()
    for distribution in metadata.distributions():
        try:
            key = getattr(distribution, "_normalized_name", None) or distribution.name
            if key in seen:  # hidden by one that comes earlier on sys.path
                continue
            seen.add(key)
            if GROUPS[kind] not in (distribution.read_text("entry_points.txt") or ""):
                continue  # most distributions; reading is cheaper than parsing
            points = [
                (point.name, "".join(point.value.partition("[")[0].split()))
                for point in distribution.entry_points.select(group=GROUPS[kind])
            ]
        except Exception as error:
            # At DEBUG, since most packages have no plugins.
            logger.debug("cannot read the metadata of a package: %r; skipping it", error)
            continue
        for name, value in points:
            yield EntryPoint(kind, name, value, *_origin(distribution, str(key or "?")))


def _origin(distribution: metadata.Distribution, folder: str) -> tuple[str, str]:
    """Return name and version; if the metadata cannot be read, the name of its folder."""
    try:
        return distribution.name or folder, distribution.version or ""
    except Exception:
        return folder, ""


def _catalogue(kind: Kind, is_ours: Callable[[Any], bool]) -> Iterator[EntryPoint]:
    catalogue = importlib.import_module(GROUPS[kind])
    try:
        version = metadata.version("greensmtp")
    except metadata.PackageNotFoundError:  # run from its sources
        version = ""
    for name in catalogue.__all__:
        if is_ours(getattr(catalogue, name)):
            yield EntryPoint(kind, name, f"{GROUPS[kind]}:{name}", "greensmtp", version)


def is_middleware_class(given: Any) -> bool:
    """True if it is a class whose instances can be called with three arguments; the catalogue also exports others."""
    if not inspect.isclass(given) or "__call__" not in dir(given):
        return False
    try:
        inspect.signature(vars(given).get("__call__", given.__call__)).bind(None, None, None, None)
    except (TypeError, ValueError):
        return False
    return True


def is_delivery_class(given: Any) -> bool:
    """True if it is a subclass of Delivery; the catalogue also exports others."""
    return inspect.isclass(given) and issubclass(given, Delivery) and given is not Delivery


def _by_name(found: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    """Return each name once; further entry points with the same name become its conflicts."""
    names: dict[str, EntryPoint] = {}
    for each in sorted(found, key=lambda each: (each.name, each.distribution.lower())):
        first = names.get(each.name)
        names[each.name] = each if first is None else replace(first, conflicts=(*first.conflicts, each))
    return names


def import_object(value: str, label: str) -> Any:
    """Import ``MODULE``, or ``MODULE:ATTRIBUTE``.

    :param label: the beginning of error messages.
    :raises PluginError: there is no such module or attribute, or importing it failed; the text says where.
    """
    module_name, _, attribute = value.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except FAILURES as error:
        raise PluginError(f"{label}: cannot import {module_name}: {describe_error(error)}") from error
    for part in attribute.split(".") if attribute else ():
        try:
            target = getattr(target, part)
        except AttributeError:
            hint = did_you_mean(part, (name for name in dir(target) if not name.startswith("_")))
            raise PluginError(f"{label}: {module_name} has no {attribute!r}{hint}") from None
        except FAILURES as error:  # from the module's own __getattr__
            raise PluginError(f"{label}: cannot read {attribute!r}: {describe_error(error)}") from error
    return target


def describe_error(error: BaseException) -> str:
    """Return what was raised and where, in one line for the author of the plugin."""
    # (Frames of compiled modules have a relative name.)
    ours = (str(Path(__file__).parents[1]), "greensmtp/", str(Path(importlib.__file__).parent), "<frozen ")
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its text cannot be made)"
    return f"{type(error).__name__}{text and f': {text}'}{place}"
