"""The command line: ``greensmtp plugins``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import click

from greensmtp.installed import Found, PluginError, installed_middleware, installed_plugins
from greensmtp.plugins import load_plugin, middleware_factory

#: What --check says of one that can be loaded.
OK = "ok"

_TITLES = ("NAME", "KIND", "PACKAGE", "VERSION", "OBJECT", "STATUS")

_NONE = """\
No plugins are installed. A package offers one by an entry point in its pyproject.toml:

    [project.entry-points."greensmtp.plugins"]
    vacation = "my_package.vacation:install"

examples/plugin is a whole one. A module of your own needs no package: greensmtp serve --plugin policy"""


@click.command()
@click.option("--check", is_flag=True, help="Import each of them, and tell what comes of it.")
def plugins(check: bool) -> None:
    """List the plugins and the middleware that are installed.

    A line for each: its name, its kind, the package that it comes from, the version of that, the object; in columns on
    a terminal, else with a tab between two. The exit status is 1 when --check finds one that cannot be loaded, or when
    two packages claim one name.

    \b
    Use them:
      greensmtp serve --plugin NAME            by name; NAME,optional: skipped where it fails
      greensmtp serve --plugin all             all that are installed, in the order of their names
    """
    found = [*installed_plugins().values(), *installed_middleware().values()]
    rows = [
        (each.name, each.kind, each.distribution, each.version, each.value, _status(first, check=check))
        for first in found
        for each in (first, *first.rivals)
    ]
    for line in _lines(rows, columns=sys.stdout.isatty()):
        click.echo(line)
    if not any(each.kind == "plugin" for each in found):
        click.echo(_NONE, err=True)
    if any(status not in ("", OK) for *_, status in rows):
        sys.exit(1)


def _status(found: Found, *, check: bool) -> str:
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


def _lines(rows: Sequence[Sequence[str]], *, columns: bool) -> Iterable[str]:
    if not columns:
        return ("\t".join(row).rstrip("\t") for row in rows)
    rows = [_TITLES, *rows] if any(row[-1] for row in rows) else [_TITLES[:-1], *(row[:-1] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
