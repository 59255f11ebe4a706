"""``greensmtp trace``: the dialogue of some clients with a running server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import click

from greensmtp.cli.control_options import ask, control_options
from greensmtp.networks import read_network
from greensmtp.protocol.log_text import printable

#: event -> its sign and its colour
_SIGNS = {
    "begin": ("*", "blue"),
    "note": ("*", "blue"),
    "client": ("C:", None),
    "server": ("S:", "green"),
    "end": ("* ended:", "blue"),
}

#: Seconds between two searches for new processes, which replace workers.
_SEARCH_SECONDS = 2.0


def _check_peer(context: click.Context, parameter: click.Parameter, peer: str | None) -> str | None:
    if peer not in (None, "unix"):
        try:
            read_network(peer)
        except ValueError as error:
            raise click.BadParameter(f"expected an address, a network or `unix`; {error}") from error
    return peer


@click.command()
@click.option(
    "--peer",
    metavar="ADDRESS|NETWORK",
    callback=_check_peer,
    help="Follow clients at this address or in this network; `unix`: those on unix sockets.",
)
@click.option(
    "--from",
    "sender",
    metavar="SENDER",
    help="Follow clients from their MAIL with this sender on; @example.com: all senders of a domain.",
)
@click.option("--session", metavar="ID", help="Follow one session, by the ID in the log or in `greensmtp top`.")
@click.option("--limit", type=click.IntRange(1), metavar="LINES", help="End after so many lines.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@control_options
def trace(
    *,
    peer: str | None,
    sender: str | None,
    session: str | None,
    limit: int | None,
    as_json: bool,
    control: Path | None,
    config: Path | None,
) -> None:
    """Show the dialogue of clients with a running server.

    Name the clients by at least one of --peer, --from and --session; of several, all must match. Connections that are
    open already are followed too, TLS ones included. The server is not restarted, and clients notice nothing. Ctrl-C
    ends it.

    Passwords and messages are never shown: "AUTH ***", "(1234 bytes of a message)". Control characters are escaped, so
    no client can play with your terminal.

    \b
    Each line: time, session, client, and
      C:  what the client says, once the server handles it
      S:  what the server says
      *   what happens: it connected, TLS is up, it ended and why
    \b
    Try it:
      greensmtp trace --peer 192.0.2.1
      greensmtp trace --peer 2001:db8::/32 --from @example.com
      greensmtp trace --session 5c1f0a-1f --json

    If you read too slowly, lines are left out and their number is shown: the server does not wait. Exit status 1: there
    is no running server, or it is another user's.
    """
    if peer is None and sender is None and session is None:
        raise click.UsageError(
            "name the clients: --peer ADDRESS, --from SENDER or --session ID; --peer 0.0.0.0/0 is all"
        )
    request = {"do": "trace", "peer": peer, "from": sender, "session": session}
    client = ask(control, config, request)
    if not as_json:
        processes = ", ".join(map(str, client.pids))
        click.echo(f"following clients of process {processes}; Ctrl-C ends it", err=True)
    printed = 0
    looked = monotonic()
    try:
        while client.pids:
            for pid, line in client.lines(_SEARCH_SECONDS):
                if "error" in line:
                    raise click.ClickException(f"process {pid} says: {line['error']}")
                if "tracing" in line:
                    continue
                _show({"pid": pid, **line}, as_json=as_json)
                printed += 1
                if printed == limit:
                    return
                if monotonic() - looked > _SEARCH_SECONDS:
                    break
            looked = monotonic()
            client.find_more()
        raise click.ClickException("the server has ended")
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `trace | head`
    finally:
        client.close()


def _show(line: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(line))
    elif "lost" in line:
        click.secho(f"* {line['lost']} lines were left out: they came faster than they were read", fg="yellow")
    else:
        sign, colour = _SIGNS.get(line["event"], ("?", None))
        at = datetime.fromtimestamp(line["time"]).strftime("%H:%M:%S.%f")[:-3]
        text = f"{sign} {line['text']}"
        if line["event"] == "server" and line["text"][:1] in "45":
            colour = "red"
        # (The server has escaped it. This is for a socket that is no server's.)
        click.secho(printable(f"{at} {line['session']} {line['peer']} {text}"), fg=colour)
    sys.stdout.flush()
