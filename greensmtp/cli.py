"""The command line: ``greensmtp serve``."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click
from gevent import joinall, signal_handler, spawn
from gevent.event import Event

from greensmtp.config_cli import check
from greensmtp.log_writer import LineWriter
from greensmtp.output import set_up_logging
from greensmtp.plugins_cli import plugins
from greensmtp.send_cli import send
from greensmtp.serve_options import load_given, refuse, serve_options

if TYPE_CHECKING:
    from greensmtp.assembly import Serving
    from greensmtp.config.loading import Loaded
    from greensmtp.config.mistakes import Source

#: Seconds that transactions in progress get when the server is told to stop.
DRAIN_SECONDS = 30.0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="greensmtp")
def cli() -> None:
    """A gevent SMTP and LMTP server framework, run as a server."""


cli.add_command(send)
cli.add_command(check)
cli.add_command(plugins)


@cli.command()
@serve_options
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Take mail in, and store it in a Maildir.

    A line on standard output for each listener when it is ready, and for each message that was accepted; the log is
    on standard error. SIGTERM or Ctrl-C lets transactions in progress finish, up to 30 seconds; a second one ends at
    once.

    \b
    Try it:
      greensmtp serve --listen 127.0.0.1:1025 --maildir ./maildir
      swaks --server 127.0.0.1:1025 --to you@example.com
      ls maildir/new
    """
    from greensmtp.announce import Announce
    from greensmtp.assembly import assemble
    from greensmtp.config.mistakes import ConfigError

    try:
        loaded = load_given(context)
        _start_logging(loaded)
        stdout = LineWriter(sys.stdout)
        serving = assemble(loaded, Announce(stdout))
    except ConfigError as error:
        refuse(error)
    _run(serving, loaded.source, stdout)


def _start_logging(loaded: Loaded) -> None:
    from greensmtp.config.mistakes import Mistake

    log = loaded.config.logging
    try:
        set_up_logging(log.format, log.level, log.target)
    except OSError as error:
        mistake = Mistake(("logging", "target"), f"cannot write to {log.target!r}: {error.strerror}")
        raise loaded.source.error([mistake]) from error


def _run(serving: list[Serving], source: Source, stdout: LineWriter) -> None:
    stopping = Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(1)
        stopping.set()

    # Before the first listener is announced: whoever waits for that line may send a signal next.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal_handler(number, stop)
    try:
        for each in serving:
            try:
                each.server.start()
            except OSError as error:
                # (Without the address, which is behind a colon: it is in the URL.)
                reason = (error.strerror or str(error)).partition(":")[0]
                place = source.place(each.path)
                raise click.ClickException(f"{place}: cannot listen on {each.listen.url()}: {reason}") from error
            stdout.say(f"listening {each.listen.url(each.server.address)}")
        stopping.wait()
    finally:
        joinall([spawn(each.server.stop, DRAIN_SECONDS) for each in serving])
        stdout.finish()
