"""``greensmtp top``: what a running server does."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from greensmtp.cli.control_options import ask, control_options

if TYPE_CHECKING:
    from greensmtp.service.control_client import ControlClient
    from greensmtp.service.overview import Overview


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds from one picture to the next.",
)
@click.option("--once", is_flag=True, help="Watch for one interval, print one picture, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object in one line instead of each picture.")
@control_options
def top(interval: float, once: bool, as_json: bool, control: Path | None, config: Path | None) -> None:
    """Show what a running server does.

    You see connections, rates, senders, and why mail is rejected. All worker processes of the server are added up.
    Counting begins when you start this command, and ends with it: otherwise a server counts nothing. q or Ctrl-C ends
    it. Where standard output is no terminal, it prints one picture, as with --once.

    \b
    connections  open now; in the line below, those that came in a second
    hub lag      how late the event loop was, at worst, in the last seconds; all
                 connections wait for it. From 50 ms on, a handler blocks it, or
                 the CPU is busy
    AT           the command that was rejected; "message" is the reply to the
                 whole message
    STATE        "handles RCPT": handlers and middleware are at work, for so
                 many SECONDS; else the server waits for the client: "sending"
                 its message, "in a transaction", "idle"

    \b
    Try it:
      greensmtp top
      greensmtp top --once --interval 10
      greensmtp top --once --json | jq .total.rejections
    Then follow one of its clients:
      greensmtp trace --peer 192.0.2.1

    Only root and the user of the server can look. Exit status 1: there is no running server, or it is another user's.
    """
    from greensmtp.service.overview import Overview

    client = ask(control, config, {"do": "stats", "interval": interval})
    overview = Overview()
    try:
        if as_json or once or not sys.stdout.isatty():
            _print(client, overview, interval, as_json=as_json, once=once or not as_json)
        else:
            _watch(client, overview, interval)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `top --json | head`
    finally:
        client.close()


def _take(client: ControlClient, overview: Overview, seconds: float, keyboard: int | None = None) -> None:
    """Take all snapshots that come in some seconds, or until a key is pressed.

    :raises click.ClickException: the server has refused, or has ended.
    """
    for pid, line in client.lines(seconds, keyboard):
        if "error" in line:
            raise click.ClickException(f"process {pid} says: {line['error']}")
        if "totals" in line:
            overview.add(pid, line)
    overview.keep(client.pids)
    if not client.pids:
        raise click.ClickException("the server has ended")
    client.find_more()


def _print(client: ControlClient, overview: Overview, interval: float, *, as_json: bool, once: bool) -> None:
    from rich.console import Console

    from greensmtp.cli.top_view import draw

    while True:
        _take(client, overview, interval + (0.3 if once else 0.0))
        overview.mark()
        if as_json:
            click.echo(json.dumps(overview.report()))
        else:
            console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
            console.print(draw(overview.report(), {}))
        if once:
            return


def _watch(client: ControlClient, overview: Overview, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from greensmtp.cli.top_view import draw

    console = Console(highlight=False, markup=False)
    keys = "q ends it.  `greensmtp trace --peer ADDRESS` or `--session ID` shows what one of them says."
    _take(client, overview, 0.2)
    with _keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            overview.mark()
            live.update(draw(overview.report(), overview.history, height=console.height, keys=keys), refresh=True)
            deadline = monotonic() + interval
            while (left := deadline - monotonic()) > 0:
                _take(client, overview, left, keyboard)
                if keyboard is not None and select.select([keyboard], [], [], 0)[0]:
                    pressed = os.read(keyboard, 100)
                    if not pressed or b"q" in pressed or b"\x03" in pressed:
                        return


@contextmanager
def _keyboard() -> Iterator[int | None]:
    """Read single keys while the block runs: yield the descriptor, or None if there is no keyboard."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
