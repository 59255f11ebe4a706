"""The command line: ``greensmtp plugins``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import click

from greensmtp.plugins import load_plugin, middleware_factory
from greensmtp.plugins.discovery import EntryPoint, PluginError, installed_middleware, installed_plugins

#: What --check says of one that can be loaded.
OK = "ok"

#: What is said of one whose name is the catalogue's.
RESERVED = "the name is reserved for greensmtp's own: write the object"

_TITLES = ("NAME", "KIND", "PACKAGE", "VERSION", "OBJECT", "STATUS", "OPTIONS")

_NONE = """\
No plugins are installed. A package offers one by an entry point in its pyproject.toml:

    [project.entry-points."greensmtp.plugins"]
    vacation = "my_package.vacation:install"

examples/plugin is a whole one. A module of your own needs no package: greensmtp serve --plugin policy"""


@click.command()
@click.option("--check", is_flag=True, help="Import each of them, and tell what comes of it.")
@click.option("--options", is_flag=True, help="Import each of them, and list the options that a file may give it.")
def plugins(check: bool, options: bool) -> None:
    """List the plugins and the middleware that are installed.

    A line for each: its name, its kind, the package that it comes from, the version of that, the object; in columns on
    a terminal, else with a tab between two. The exit status is 1 when --check finds one that cannot be loaded, or when
    two packages claim one name. (The names of greensmtp's own middleware are reserved: another package's is had by its
    object alone.)

    \b
    Use them:
      greensmtp serve --plugin NAME            by name; NAME,optional: skipped where it fails
      greensmtp serve --plugin all             all that are installed, in the order of their names
    """
    found = [*installed_plugins().values(), *installed_middleware().values()]
    rows = [
        (each.name, each.kind, each.distribution, each.version, each.value, status, _options(first) if options else "")
        for first in found
        for each, status in (
            *((each, _status(first, check=check)) for each in (first, *first.rivals)),
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
    if found.rivals:
        return "claimed by several packages"
    if not check:
        return ""
    load: Callable[[str], object] = load_plugin if found.kind == "plugin" else middleware_factory
    try:
        load(found.name)
    except PluginError as error:
        return " ".join(str(error).split())
    return OK


def _options(found: EntryPoint) -> str:
    """What a file may give it: ``text, delay=3``; nothing where it cannot be imported, which --check tells."""
    from greensmtp.config.options import describe_options

    try:
        target = found.load()
    except PluginError:
        return ""
    if not callable(target):
        return ""
    return describe_options(partial(target, None) if found.kind == "plugin" else target)


def _lines(rows: Sequence[Sequence[str]], *, columns: bool) -> Iterable[str]:
    if not columns:
        return ("\t".join(row).rstrip("\t") for row in rows)
    # Columns that are empty from top to bottom are left out.
    rows = [*zip(*(c for c in zip(_TITLES, *rows, strict=True) if any(c[1:])), strict=True)] if rows else [_TITLES]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
