"""The ``greensmtp`` command, and ``greensmtp serve``."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greensmtp._log import logger
from greensmtp.chain.chain import start_each
from greensmtp.cli.check import check
from greensmtp.cli.options import load_given, refuse, serve_options
from greensmtp.cli.output import set_up_logging
from greensmtp.cli.plugins import plugins
from greensmtp.cli.replay import replay
from greensmtp.cli.send import send
from greensmtp.config.probe import probe_special_log
from greensmtp.log_writer import LineWriter
from greensmtp.plugins.discovery import FAILURES, describe_error
from greensmtp.protocol.log_text import printable
from greensmtp.server.run import run
from greensmtp.signals import handler_name

if TYPE_CHECKING:
    from greensmtp.config.build import ConfiguredServer
    from greensmtp.config.load import Loaded
    from greensmtp.config.problems import Source
    from greensmtp.server.server import SMTPServer


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="greensmtp")
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
    Run SMTP dialogues, in plain text files, against a server:
      greensmtp replay tests/corpus/*.smtp --server smtp://127.0.0.1:1025

    "greensmtp COMMAND --help" explains a command.
    """


cli.add_command(send)
cli.add_command(check)
cli.add_command(plugins)
cli.add_command(replay)


@cli.command()
@serve_options
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Receive mail, and store it in a Maildir.

    Without options it accepts all mail on 127.0.0.1:1025, and stores each message as a file in ./maildir/new. The name
    of the file contains the ID of the reply "queued as ID". A configuration file can add listeners, TLS, authentication
    and limits, and plugins decide what is accepted. "greensmtp check" prints the default configuration to start from.

    \b
    Try it:
      greensmtp serve
    and in another terminal:
      printf 'From: me@example.com\\nTo: you@example.com\\nSubject: hi\\n\\nhello\\n' | greensmtp send -
      cat maildir/new/*

    Standard output has a line for the Maildir, for each listener that is ready, and for each accepted message. The log
    goes to standard error. SIGTERM or Ctrl-C lets transactions in progress finish, for up to 30 seconds; a second one
    ends the server at once. SIGHUP is ignored: restart to apply a changed configuration.

    \b
    Exit status:
      0   it was stopped
      1   it could not start: the address is in use, for example
      2   the configuration or the command line is wrong
    """
    from greensmtp.cli.announce import Announce
    from greensmtp.config.build import assemble
    from greensmtp.config.problems import ConfigError

    try:
        loaded = load_given(context)
        _start_logging(loaded)
        stdout = LineWriter(sys.stdout)
        serving = assemble(loaded, Announce(stdout))
    except ConfigError as error:
        refuse(error)
    _run(serving, loaded, stdout)


def _start_logging(loaded: Loaded) -> None:
    from greensmtp.config.problems import Problem

    log = loaded.config.logging
    try:
        probe_special_log(log.target)
        set_up_logging(log.format, log.level, log.target)
    except (OSError, ValueError) as error:
        text = f"cannot write to {log.target!r}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise loaded.source.error([Problem(("logging", "target"), text)]) from error


def _run(serving: list[ConfiguredServer], loaded: Loaded, stdout: LineWriter) -> None:
    waiting = {each.server: each for each in serving}
    maildir = loaded.config.delivery.maildir

    def announce(server: SMTPServer) -> None:
        if maildir is not None and len(waiting) == len(serving):
            stdout.say(f"storing mail in {printable(str(Path(maildir).absolute()))}/new, one file per message")
        listen = waiting.pop(server).listen
        stdout.say(f"listening {listen.url(server.address)}")

    try:
        run(*waiting, started=announce)
    except FAILURES as error:
        if not waiting:
            raise
        # Servers are started in this order, and none after the one that fails.
        failed = next(iter(waiting.values()))
        logger.debug("cannot start", exc_info=error)
        raise click.ClickException(_explain(error, failed, loaded.source)) from error
    finally:
        stdout.finish()


def _explain(error: BaseException, failed: ConfiguredServer, source: Source) -> str:
    """Return in one line why a server did not start: because of its address, or of one of its middleware."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is start_each.__code__:
            middleware = frame.f_locals["each"]
            places = (f"{source.place(path)}: {use}" for path, use, made in failed.stack if made is middleware)
            place = next(places, f"middleware {handler_name(middleware)}")  # one that a plugin has added
            return f"{place}: cannot start: {describe_error(error)}"
    place = source.place(failed.path)
    if not isinstance(error, OSError):
        return f"{place}: cannot start: {describe_error(error)}"
    # Without what follows the colon, the address: the URL has it already.
    reason = (error.strerror or str(error)).partition(":")[0]
    return f"{place}: cannot listen on {failed.listen.url()}: {reason}"
