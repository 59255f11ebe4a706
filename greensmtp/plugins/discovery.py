"""What is installed: plugins and middleware that packages offer by entry points, and the catalogue's middleware."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from gevent import Timeout

from greensmtp._log import logger
from greensmtp._suggest import did_you_mean
from greensmtp.errors import GreenSMTPError

Kind = Literal["plugin", "middleware"]

#: The entry point groups, by what they offer.
GROUPS: dict[Kind, str] = {"plugin": "greensmtp.plugins", "middleware": "greensmtp.middleware"}

#: Whose the catalogue is.
OURS = "greensmtp"


class PluginError(GreenSMTPError):
    """A plugin or a middleware cannot be loaded, or not be put into a server; the text says which and why."""


@dataclass(frozen=True)
class EntryPoint:
    """One thing that is installed.

    ``value`` is the object, as ``MODULE`` or ``MODULE:ATTRIBUTE``; ``rivals`` are those of other packages that claim
    the same name, so that none of them can be had by it. ``shadowed`` are those that claim a name of the catalogue:
    the catalogue's wins.
    """

    kind: Kind
    name: str
    value: str
    distribution: str
    version: str
    rivals: tuple[EntryPoint, ...] = ()
    shadowed: tuple[EntryPoint, ...] = ()

    def load(self) -> Any:
        """Import it; give the module, or the object in it.

        :raises PluginError: it cannot be imported, or several packages claim its name.
        """
        self.check_rivals()
        return import_object(self.value, str(self))

    def check_rivals(self) -> None:
        """
        :raises PluginError: several packages claim its name; the text names them.
        """
        if self.rivals:
            owners = " and ".join(f"{each.origin} ({each.value})" for each in (self, *self.rivals))
            raise PluginError(
                f"{self.kind} {self.name!r} is claimed by several packages, {owners}: uninstall all but one, "
                "or write the one you mean as it stands in parentheses"
            )

    @property
    def origin(self) -> str:
        """The package that it comes from, and its version."""
        return f"{self.distribution} {self.version}".rstrip()

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.origin}"


def installed_plugins() -> dict[str, EntryPoint]:
    """The plugins that are installed, by name, in the order of their names."""
    return _by_name(_entry_points("plugin"))


def installed_middleware() -> dict[str, EntryPoint]:
    """The middleware that is installed, the catalogue's among it, by name, in the order of their names.

    The catalogue's names are reserved: another package's middleware of such a name is ``shadowed``.
    """
    ours = {each.name: each for each in _catalogue()}
    others = _by_name(_entry_points("middleware"))
    for name in ours.keys() & others.keys():
        first = others.pop(name)
        ours[name] = replace(ours[name], shadowed=(replace(first, rivals=()), *first.rivals))
    return dict(sorted((ours | others).items()))


def _entry_points(kind: Kind) -> Iterator[EntryPoint]:
    """What the distributions offer. (``metadata.entry_points`` raises when one of them, whichever, is broken.)"""
    seen = set()
    for distribution in metadata.distributions():
        try:
            key = getattr(distribution, "_normalized_name", None) or distribution.name
            if key in seen:  # hidden by one that comes earlier on sys.path
                continue
            seen.add(key)
            if GROUPS[kind] not in (distribution.read_text("entry_points.txt") or ""):
                continue  # as most of them; reading is cheaper than parsing
            points = [
                (point.name, "".join(point.value.partition("[")[0].split()))  # without extras: nothing installs them
                for point in distribution.entry_points.select(group=GROUPS[kind])
            ]
        except Exception as error:
            # At DEBUG: there are many packages, and most of them have nothing for us.
            logger.debug("skipped a package whose metadata cannot be read: %r", error)
            continue
        for name, value in points:
            yield EntryPoint(kind, name, value, *_origin(distribution, str(key or "?")))


def _origin(distribution: metadata.Distribution, folder: str) -> tuple[str, str]:
    """Name and version; the name of its folder where its metadata cannot be read."""
    try:
        return distribution.name or folder, distribution.version or ""
    except Exception:
        return folder, ""


def _catalogue() -> Iterator[EntryPoint]:
    catalogue = importlib.import_module("greensmtp.middleware")
    try:
        version = metadata.version(OURS)
    except metadata.PackageNotFoundError:  # run from its sources
        version = ""
    for name in catalogue.__all__:
        if is_middleware_class(getattr(catalogue, name)):
            yield EntryPoint("middleware", name, f"greensmtp.middleware:{name}", OURS, version)


def is_middleware_class(given: Any) -> bool:
    """A class whose instances are called with three arguments. (What else a catalogue exports is for these.)"""
    if not inspect.isclass(given) or "__call__" not in dir(given):
        return False
    try:
        inspect.signature(vars(given).get("__call__", given.__call__)).bind(None, None, None, None)
    except (TypeError, ValueError):
        return False
    return True


def _by_name(found: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    """Each name once; whoever comes later with the same one is a rival."""
    names: dict[str, EntryPoint] = {}
    for each in sorted(found, key=lambda each: (each.name, each.distribution.lower())):
        first = names.get(each.name)
        names[each.name] = each if first is None else replace(first, rivals=(*first.rivals, each))
    return names


def import_object(value: str, who: str) -> Any:
    """Import ``MODULE``, or ``MODULE:ATTRIBUTE``.

    :param who: what the error begins with.
    :raises PluginError: no such module or attribute, or importing it failed; the text says where.
    """
    module_name, _, attribute = value.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit, Timeout) as error:
        raise PluginError(f"{who}: cannot import {module_name}: {describe_error(error)}") from error
    for part in attribute.split(".") if attribute else ():
        if not hasattr(target, part):
            hint = did_you_mean(part, (name for name in dir(target) if not name.startswith("_")))
            raise PluginError(f"{who}: {module_name} has no {attribute!r}{hint}")
        target = getattr(target, part)
    return target


def describe_error(error: BaseException) -> str:
    """What was raised, and where: the plugin's author has nothing but this line."""
    ours = (str(Path(__file__).parents[1]), str(Path(importlib.__file__).parent), "<frozen ")
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{place}"
