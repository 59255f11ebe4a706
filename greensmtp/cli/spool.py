"""``greensmtp spool``: show and change the messages that wait in a spool."""

from __future__ import annotations

import json
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from greensmtp.cli.options import FileType
from greensmtp.protocol.log_text import printable

#: The width of a column for addresses; and of the table where there is no terminal.
_ADDRESS, _WIDTH = 40, 240

#: Columns of numbers.
_RIGHT = frozenset({"AGE", "SIZE", "TRIES"})


@click.group()
@click.option("-c", "--config", type=FileType(), metavar="FILE", help="The configuration, which names the spool.")
@click.option("--path", type=click.Path(file_okay=False, exists=True, path_type=Path), help="The spool's folder.")
@click.pass_context
def spool(context: click.Context, config: Path | None, path: Path | None) -> None:
    """Show and change the messages that wait in a spool.

    The folder is --path, or that of the first Spool under [[deliveries]] in --config or ./greensmtp.toml. These two
    options come before the command: greensmtp spool --path /var/spool/mail list. The server may be running. A
    message that it is sending at that moment is left unchanged, and its ID is printed.

    \b
    What waits, and why:
      greensmtp spool list
      greensmtp spool show 6447ef957f640-5c1f0a-1f
    Send now, all of it or some:
      greensmtp spool retry
      greensmtp spool retry 6447ef957f640-5c1f0a-1f
    Keep a message from being sent, send it after all, or delete it:
      greensmtp spool hold 6447ef957f640-5c1f0a-1f
      greensmtp spool release 6447ef957f640-5c1f0a-1f
      greensmtp spool drop 6447ef957f640-5c1f0a-1f
    List dead letters, for which no report was sent:
      greensmtp spool list --dead
    Send a dead letter again, to the recipients that were given up:
      greensmtp spool retry --dead 6447ef957f640-5c1f0a-1f

    \b
    Exit status:
      0   done
      1   a message is missing, damaged or being sent, or the folder cannot be read
      2   an option or argument is wrong, or no spool is named
    """
    from greensmtp.delivery.spool_folder import Folder

    context.obj = Folder(path or _configured(config))


def _configured(config: Path | None) -> Path:
    file = config or Path("greensmtp.toml")
    try:
        read = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise click.UsageError("there is no greensmtp.toml here; name the spool by --config or --path") from None
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise click.ClickException(f"{file}: {error}") from error
    for table in (read, *_tables(read.get("listeners"))):
        for each in _tables(table.get("deliveries")):
            if each.get("use") == "Spool" and isinstance(each.get("path"), str):
                return Path(file.absolute().parent, str(each["path"]))
    raise click.UsageError(f'{file} has no [[deliveries]] with use = "Spool"; name the spool by --path')


def _tables(value: object) -> list[dict[str, Any]]:
    """Return the tables of an array, and leave out anything else: the file is not checked here."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


@spool.command("list")
@click.option("--dead", is_flag=True, help="The dead letters instead.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each message.")
@click.pass_obj
def list_messages(folder: Any, dead: bool, as_json: bool) -> None:
    """List the messages, the oldest first."""
    rows = list(_rows(folder, "dead" if dead else "new"))
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    if not rows:
        click.echo("nothing waits" if not dead else "there are no dead letters")
        return
    # Not rich: its tables cost half a millisecond for each row, and a spool may have tens of thousands.
    table = [
        ("ID", "AGE", "SIZE", "TRIES", "NEXT", "FROM", "FOR", "LAST REPLY"),
        *(_columns(row, dead) for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
    for each in table:
        cells = (
            text.rjust(size) if title in _RIGHT else text.ljust(size)
            for title, text, size in zip(table[0], each, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip()[:width])


def _columns(row: dict[str, Any], dead: bool) -> tuple[str, ...]:
    waiting = row["lost"] if dead else row["waiting"]
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    first = str(waiting[0]) if waiting else "-"
    return (
        row["id"],
        _duration(time.time() - row["time"]),
        _size(row["size"]),
        str(row["attempts"]),
        "held" if row["held"] else "-" if dead else _due(row["due"]),
        printable(f"<{row['from']}>")[:_ADDRESS],
        printable(first)[:_ADDRESS] + more,
        printable(str(row["replies"].get(first, "")))[:80],
    )


@spool.command()
@click.argument("name", metavar="ID")
@click.option("--message", is_flag=True, help="Print the message alone.")
@click.pass_obj
def show(folder: Any, name: str, message: bool) -> None:
    """Show the envelope and last replies of a message.

    Each recipient waits, was sent to, has failed for good, or is lost: given up, and its sender was not told.
    """
    from greensmtp.delivery.spool_folder import read_message

    for within in ("new", "dead"):
        try:
            row, begin, path = read_message(folder, within, name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise click.ClickException(f"{printable(name)}: {error.strerror}") from error
        except ValueError as error:
            raise click.ClickException(f"{printable(name)}: {error}") from error
        if message:
            with path.open("rb") as file:
                file.seek(begin)
                shutil.copyfileobj(file, sys.stdout.buffer)
            return
        click.echo(f"id      {row['id']}{'  (dead letter)' if within == 'dead' else ''}")
        click.echo(f"came    {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row['time']))}, {_size(row['size'])}")
        click.echo(f"from    {printable('<' + row['from'] + '>')}")
        click.echo(f"tries   {row['attempts']}, next {'never: it is held' if row['held'] else _due(row['due'])}")
        for recipient in row["to"]:
            reply = row["replies"].get(recipient, "")
            if recipient in row["waiting"]:
                what = "waits"
            elif recipient in row["lost"]:
                what = "lost"
            else:
                what = "failed" if reply.startswith(("4", "5")) else "sent"
            click.echo(f"{what:7} {printable(recipient)}  {printable(reply)}")
        return
    raise click.ClickException(
        f"expected the ID of a message in the spool; got {printable(name)}. 'greensmtp spool list' shows the IDs"
    )


@spool.command()
@click.argument("names", metavar="[ID]...", nargs=-1)
@click.option("--dead", is_flag=True, help="Send dead letters again, to the recipients that were given up.")
@click.pass_obj
def retry(folder: Any, names: Sequence[str], dead: bool) -> None:
    """Send messages now: these, or all. A held message stays held."""

    def now(entry: Any) -> str:
        if dead:
            entry.revive()
        elif entry.state.due:
            entry.state.due = 0.0
            entry.save()
        return "stays held; release sends it" if entry.state.held else "due now"

    _change(folder, names or _names(folder, "dead" if dead else "new"), now, within="dead" if dead else "new")


@spool.command()
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def hold(folder: Any, names: Sequence[str]) -> None:
    """Keep messages from being sent until they are released."""
    _change(folder, names, lambda entry: _set_held(entry, held=True))


@spool.command()
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def release(folder: Any, names: Sequence[str]) -> None:
    """Send messages that were held."""
    _change(folder, names, lambda entry: _set_held(entry, held=False))


@spool.command()
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dead", is_flag=True, help="Dead letters instead.")
@click.pass_obj
def drop(folder: Any, names: Sequence[str], yes: bool, dead: bool) -> None:
    """Delete messages, without a report to their senders."""
    if not yes:
        count = f"{len(names)} message{'s' * (len(names) > 1)}"
        click.confirm(f"Delete {count}? No report is sent", abort=True)

    def delete(entry: Any) -> str:
        entry.remove()
        return "deleted"

    _change(folder, names, delete, within="dead" if dead else "new")


def _set_held(entry: Any, *, held: bool) -> str:
    entry.state.held = held
    entry.state.due = 0.0
    entry.save()
    return "held" if held else "released"


def _names(folder: Any, within: str) -> list[str]:
    try:
        names: list[str] = folder.names(within)
    except FileNotFoundError:
        raise click.ClickException(
            f"expected the folder of a spool; {folder.path} has no folder {within!r}. The server creates it"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{folder.path}: {error.strerror}") from error
    return names


def _change(folder: Any, names: Sequence[str], change: Callable[[Any], str], within: str = "new") -> None:
    from greensmtp.delivery.spool_folder import Busy, Gone

    failed = False
    for name in names:
        try:
            with folder.open(name, within) as entry:
                done = change(entry)
        except Busy:
            click.echo(f"{printable(name)}: it is being sent just now", err=True)
        except Gone:
            click.echo(
                f"{printable(name)}: no such {'message' if within == 'new' else 'dead letter'} in the spool", err=True
            )
        except ValueError:
            click.echo(f"{printable(name)}: the file is damaged, and is left unchanged", err=True)
        except OSError as error:
            click.echo(f"{printable(name)}: {error.strerror}", err=True)
        else:
            click.echo(f"{name} {done}")
            continue
        failed = True
    try:
        folder.wake()
    except OSError as error:
        raise click.ClickException(f"{folder.path}/wake: {error.strerror}; the server was not notified") from error
    if failed:
        raise click.exceptions.Exit(1)


def _rows(folder: Any, within: str) -> Iterator[dict[str, Any]]:
    from greensmtp.delivery.spool_folder import read_message

    for name in _names(folder, within):
        try:
            yield read_message(folder, within, name)[0]
        except FileNotFoundError:
            continue  # it was sent
        except OSError as error:
            click.echo(f"{name}: {error.strerror}", err=True)
        except ValueError as error:
            click.echo(f"{name}: {error}", err=True)


def _due(due: float) -> str:
    left = due - time.time()
    return "now" if left <= 0 else f"in {_duration(left)}"


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
