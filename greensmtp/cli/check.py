"""``greensmtp check``: check a configuration."""

from __future__ import annotations

from typing import Any

import click

from greensmtp.cli.options import load_given, refuse, serve_options


@click.command()
@serve_options
@click.pass_context
def check(context: click.Context, /, **options: Any) -> None:
    """Check a configuration, and print the effective one.

    Builds everything that "serve" with these options would build (certificates, middleware, plugins), but does not
    listen and writes nothing to the disk. Prints the effective configuration as TOML: with defaults, with the options
    applied, without secrets.

    Exit status 0: the configuration is valid. Exit status 2: it is not; standard error lists the problems.

    \b
    Try it:
      greensmtp check > greensmtp.toml
      greensmtp check --config greensmtp.toml
    """
    from greensmtp.config.build import assemble
    from greensmtp.config.dump import write
    from greensmtp.config.problems import ConfigError

    try:
        loaded = load_given(context)
        assemble(loaded, dry=True)
    except ConfigError as error:
        refuse(error)
    click.echo(write(loaded), nl=False)
