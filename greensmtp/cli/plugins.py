"""``greensmtp plugins``: list plugins, middleware and deliveries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import click

from greensmtp.plugins import delivery_factory, load_plugin, middleware_factory
from greensmtp.plugins.discovery import (
    EntryPoint,
    Kind,
    PluginError,
    installed_deliveries,
    installed_middleware,
    installed_plugins,
)
from greensmtp.protocol.log_text import printable

_INSTALLED = (installed_plugins, installed_middleware, installed_deliveries)

#: kind -> what imports one
_LOAD: dict[Kind, Callable[[str], object]] = {
    "plugin": load_plugin,
    "middleware": middleware_factory,
    "delivery": delivery_factory,
}

#: The status of a plugin that can be loaded.
OK = "ok"

#: The status of a middleware that has a name of the catalogue's.
RESERVED = "this name is reserved for greensmtp's own: use the object instead"

_TITLES = ("NAME", "KIND", "PACKAGE", "VERSION", "OBJECT", "STATUS", "OPTIONS")

_NONE = """\
No plugins are installed. A package provides one with an entry point in its pyproject.toml:

    [project.entry-points."greensmtp.plugins"]
    vacation = "my_package.vacation:install"

examples/plugin is a complete one. A module of your own needs no package: greensmtp serve --plugin policy"""


@click.command()
@click.option("--check", is_flag=True, help="Import each of them, and show the result.")
@click.option("--options", is_flag=True, help="Import each of them, and list its options.")
def plugins(check: bool, options: bool) -> None:
    """List the installed plugins, middleware and deliveries.

    A plugin connects handlers, which decide about senders, recipients and messages. A middleware sees every command and
    its reply: it logs, limits or refuses. A delivery takes accepted mail.

    Prints a line for each: name, kind, package, version of the package, object. The fields are aligned on a terminal,
    and separated by tabs elsewhere. The names of greensmtp's own middleware are reserved: use the object to name
    another package's middleware of such a name.

    \b
    Use them:
      greensmtp serve --plugin NAME            one plugin; NAME,optional: skipped if it fails
      greensmtp serve --plugin all             all installed plugins, in the order of their names
      use = "NAME"                             a middleware, under [[middleware]] in a configuration file; a delivery,
                                               under [[deliveries]]

    The exit status is 1 if --check finds one that cannot be loaded, or if two packages claim the same name.
    """
    found = [each for installed in _INSTALLED for each in installed().values()]
    rows = [
        (each.name, each.kind, each.distribution, each.version, each.value, status, _options(first) if options else "")
        for first in found
        for each, status in (
            *((each, _status(first, check=check)) for each in (first, *first.conflicts)),
            *((each, RESERVED) for each in first.shadowed),
        )
    ]
    for line in _lines(rows, columns=sys.stdout is not None and sys.stdout.isatty()):
        click.echo(line)
    if not any(each.kind == "plugin" for each in found):
        click.echo(_NONE, err=True)
    if any(status not in ("", OK, RESERVED) for *_, status, _ in rows):
        sys.exit(1)


def _status(found: EntryPoint, *, check: bool) -> str:
    if found.conflicts:
        return "claimed by several packages"
    if not check:
        return ""
    try:
        _LOAD[found.kind](found.name)
    except PluginError as error:
        return " ".join(str(error).split())
    return OK


def _options(found: EntryPoint) -> str:
    """Describe its options: ``text, delay=3``; return nothing if it cannot be imported, which --check reports."""
    from greensmtp.config.options import describe_options

    try:
        target = found.load()
    except PluginError:
        return ""
    if not callable(target):
        return ""
    return describe_options(partial(target, None) if found.kind == "plugin" else target)


def _lines(rows: Sequence[Sequence[str]], *, columns: bool) -> Iterable[str]:
    # A package's metadata may contain tabs, and control sequences of the terminal.
    rows = [[*map(printable, row)] for row in rows]
    if not columns:
        return ("\t".join(row).rstrip("\t") for row in rows)
    # Leave out empty columns.
    rows = [*zip(*(c for c in zip(_TITLES, *rows, strict=True) if any(c[1:])), strict=True)] if rows else [_TITLES]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
