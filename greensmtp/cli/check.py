"""``greensmtp check``: check a configuration."""

from __future__ import annotations

from typing import Any

import click

from greensmtp.cli.options import load_given, refuse, serve_options


@click.command()
@serve_options
@click.option("-q", "--quiet", is_flag=True, help="Print nothing if the configuration is valid.")
@click.pass_context
def check(context: click.Context, /, *, quiet: bool, **options: Any) -> None:
    """Check a configuration, and print the effective one.

    Loads everything that "serve" with these options would use (certificates, middleware, plugins), but does not listen
    and writes nothing to the disk. Prints the effective configuration as TOML: with defaults, with the options applied,
    without secrets.

    \b
    Try it:
      greensmtp check > greensmtp.toml             write the default configuration
      greensmtp check --config greensmtp.toml      check it after a change
      greensmtp serve --config greensmtp.toml      use it

    \b
    Exit status:
      0   the configuration is valid
      2   it is not: standard error lists all problems, with file, line and key
    """
    from greensmtp.config.build import assemble
    from greensmtp.config.dump import write
    from greensmtp.config.problems import ConfigError, Problem
    from greensmtp.service.privileges import look_up

    try:
        loaded = load_given(context)
        service = loaded.config.service
        try:
            look_up(service.user, service.group)
        except ValueError as error:
            raise loaded.source.error([Problem(("service", "user"), str(error))]) from error
        assemble(loaded, dry=True)
    except ConfigError as error:
        refuse(error)
    if not quiet:
        click.echo(write(loaded), nl=False)
