"""The ``greensmtp`` command."""

from __future__ import annotations

import click

from greensmtp._compiled import is_compiled
from greensmtp.cli.check import check
from greensmtp.cli.plugins import plugins
from greensmtp.cli.ready import ready
from greensmtp.cli.replay import replay
from greensmtp.cli.send import send
from greensmtp.cli.serve import serve
from greensmtp.cli.spool import spool
from greensmtp.cli.top import top
from greensmtp.cli.trace import trace

BUILD = "compiled" if is_compiled() else "pure Python"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="greensmtp", message=f"%(prog)s, version %(version)s ({BUILD})")
def cli() -> None:
    """Run an SMTP or LMTP server, send mail, and test servers.

    \b
    A server on 127.0.0.1:1025 that stores all mail in ./maildir:
      greensmtp serve
    Send it a message, from another terminal:
      greensmtp send message.eml
    Write the default configuration to a file, change it, check it, and use it:
      greensmtp check > greensmtp.toml
      greensmtp check --config greensmtp.toml
      greensmtp serve --config greensmtp.toml
    See what a running server does, and what a client says to it:
      greensmtp top
      greensmtp trace --peer 192.0.2.1
    See what waits in a spool, and why:
      greensmtp spool list
    Run SMTP dialogues, in plain text files, against a server:
      greensmtp replay tests/corpus/*.smtp --server smtp://127.0.0.1:1025

    "greensmtp COMMAND --help" explains a command.
    """


cli.add_command(serve)
cli.add_command(top)
cli.add_command(trace)
cli.add_command(send)
cli.add_command(check)
cli.add_command(plugins)
cli.add_command(replay)
cli.add_command(ready)
cli.add_command(spool)
