"""The command line: ``greensmtp check``."""

from __future__ import annotations

from typing import Any

import click

from greensmtp.cli.options import load_given, refuse, serve_options


@click.command()
@serve_options
@click.pass_context
def check(context: click.Context, /, **options: Any) -> None:
    """Check a configuration, and print all of it.

    Makes everything that "serve" with these options would make (certificates, middleware, plugins), but listens
    nowhere and writes nothing to the disk. What is printed is the effective configuration, as TOML: with the defaults,
    with what options override, without secrets. Exit status 0: it is right; 2: it is not, and each mistake is on
    standard error.

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
