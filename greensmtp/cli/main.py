"""The ``greensmtp`` command, and ``greensmtp serve``."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import click
from gevent import Timeout

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
from greensmtp.plugins.discovery import describe_error
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
    """Run an SMTP or LMTP server, send mail, and test servers."""


cli.add_command(send)
cli.add_command(check)
cli.add_command(plugins)
cli.add_command(replay)


@cli.command()
@serve_options
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Receive mail, and store it in a Maildir.

    Prints a line on standard output for each listener that is ready, and for each accepted message. The log goes to
    standard error. SIGTERM or Ctrl-C lets transactions in progress finish, for up to 30 seconds; a second one ends
    the server at once. SIGHUP is ignored: restart to apply a changed configuration.

    \b
    Try it:
      greensmtp serve --listen 127.0.0.1:1025 --maildir ./maildir
      swaks --server 127.0.0.1:1025 --to you@example.com
      ls maildir/new
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
    _run(serving, loaded.source, stdout)


def _start_logging(loaded: Loaded) -> None:
    from greensmtp.config.problems import Problem

    log = loaded.config.logging
    try:
        probe_special_log(log.target)
        set_up_logging(log.format, log.level, log.target)
    except OSError as error:
        problem = Problem(("logging", "target"), f"cannot write to {log.target!r}: {error.strerror}")
        raise loaded.source.error([problem]) from error
    except ValueError as error:
        raise loaded.source.error([Problem(("logging", "target"), str(error))]) from error


def _run(serving: list[ConfiguredServer], source: Source, stdout: LineWriter) -> None:
    waiting = {each.server: each for each in serving}

    def announce(server: SMTPServer) -> None:
        listen = waiting.pop(server).listen
        stdout.say(f"listening {listen.url(server.address)}")

    try:
        run(*waiting, started=announce)
    except (Exception, SystemExit, Timeout) as error:
        if not waiting:
            raise
        # Servers are started in this order, and none after the one that fails.
        failed = next(iter(waiting.values()))
        logger.debug("cannot start", exc_info=error)
        raise click.ClickException(_explain(error, failed, source)) from error
    finally:
        stdout.finish()


def _explain(error: BaseException, failed: ConfiguredServer, source: Source) -> str:
    """Return in one line why a server did not start: because of its address, or of one of its middleware."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is start_each.__code__:
            middleware = frame.f_locals["each"]
            places = (f"{source.place(path)}: {use}" for path, use, made in failed.stack if made is middleware)
            place = next(places, f"middleware {handler_name(middleware)}")  # one that a plugin has added
            return f"{place}: cannot start: {' '.join(describe_error(error).split())}"
    place = source.place(failed.path)
    if not isinstance(error, OSError):
        return f"{place}: cannot start: {' '.join(describe_error(error).split())}"
    # Without what follows the colon, the address: the URL has it already.
    reason = (error.strerror or str(error)).partition(":")[0]
    return f"{place}: cannot listen on {failed.listen.url()}: {reason}"
