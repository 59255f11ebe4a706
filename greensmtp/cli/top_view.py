"""The picture of `greensmtp top`, drawn from an overview's report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greensmtp.protocol.log_text import printable

_BARS = "▁▂▃▄▅▆▇█"

#: Above these, a figure is yellow, and red: seconds of the hub's lag; seconds that handlers are at work.
_LAG = (0.05, 0.5)
_WORK = (2.0, 10.0)

#: What a connection does that is no verb.
_WAITING = {"idle": "idle", "waiting": "in a transaction", "reading": "sending", "busy": "begins or ends"}


def draw(
    report: Mapping[str, Any], history: Mapping[str, Iterable[float]], *, height: int = 40, keys: str = ""
) -> RenderableType:
    """Return the picture.

    :param height: lines of the terminal; the tables are as long as there is room.
    :param keys: a line that explains the keys.
    """
    total, processes = report["total"], report["processes"]
    # Head, a line for each process but a single one, titles, headers, blank lines.
    of_processes = min(len(processes), 8) + 3 if len(processes) > 1 else 0
    rows = max(3, (height - 7 - of_processes - 8) // 3)
    parts: list[RenderableType] = [_head(total, processes, history)]
    if of_processes:
        parts += [_processes(processes[:8], len(processes))]
    parts += [
        _rejections(total["rejections"][:rows]),
        _side_by_side(_senders(total["senders"][:rows]), _peers(total["peers"][:rows])),
        _sessions(total["sessions"], total["connections"], rows),
    ]
    if keys:
        parts.append(Text(keys, "dim"))
    return Group(*parts)


def _head(
    total: Mapping[str, Any], processes: Sequence[Mapping[str, Any]], history: Mapping[str, Iterable[float]]
) -> RenderableType:
    listeners = dict.fromkeys(each for process in processes for each in process["listeners"])
    where = ", ".join(map(printable, listeners)) or "no listener: the server drains"
    which = f"process {processes[0]['pid']}" if len(processes) == 1 else f"{len(processes)} processes"
    title = Text.assemble(("greensmtp", "bold green"), f"  {which}  on {where}", no_wrap=True, overflow="ellipsis")
    facts = Text.assemble(
        "connections ",
        (f"{total['connections']}", "bold"),
        f" ({total['tls']} TLS)   transactions ",
        (f"{total['transactions']}", "bold"),
        "   messages in flight ",
        (f"{total['messages_in_flight']}", "bold"),
        "   hub lag ",
        (f"{total['lag'] * 1000:.0f} ms", _grade(total["lag"], _LAG)),
        f"   CPU {total['cpu']:.0%}   memory {size(total['memory'])}",
    )
    rates, sums = total["rates"], total["totals"]
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column()
    for name, per_second, sum_ in (
        ("connections", f"{rates['connections']:.1f}/s", f"{sums.get('connections', 0):,}"),
        ("messages", f"{rates['messages']:.1f}/s", f"{sums.get('messages', 0):,}"),
        ("bytes", f"{size(rates['bytes'])}/s", size(sums.get("bytes", 0))),
        ("rejections", f"{rates['rejections']:.1f}/s", f"{sums.get('rejections', 0):,}"),
    ):
        style = "red" if name == "rejections" and rates[name] else "bold"
        since = f"{sum_} in {duration(total['seconds'])}"
        grid.add_row(name, Text(per_second, style, justify="right"), Text(curve(history.get(name, ())), "green"), since)
    return Group(title, facts, grid)


def _table(title: str, *columns: str, **options: Any) -> Table:
    """Return an empty table; a column that begins with ``>`` is aligned to the right, with ``*`` it takes the room."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, **options)
    for name in columns:
        kind, text = (name[0], name[1:]) if name[0] in ">*" else ("", name)
        table.add_column(
            text,
            justify="right" if kind == ">" else "left",
            header_style="dim",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if kind == "*" else None,
        )
    return table


def _processes(processes: Sequence[Mapping[str, Any]], count: int) -> Table:
    more = f" (the first {len(processes)} of {count})" if count > len(processes) else ""
    table = _table(f"\nProcesses{more}", ">PID", ">CONNS", ">CONN/S", ">MSG/S", ">REJ/S", ">LAG", ">CPU", ">MEMORY")
    for each in processes:
        rates = each["rates"]
        table.add_row(
            str(each["pid"]),
            str(each["connections"]),
            *(f"{rates[name]:.1f}" for name in ("connections", "messages", "rejections")),
            Text(f"{each['lag'] * 1000:.0f} ms", _grade(each["lag"], _LAG)),
            f"{each['cpu']:.0%}",
            size(each["memory"]),
        )
    return table


def _rejections(rows: Iterable[Sequence[Any]]) -> RenderableType:
    table = _table("\nRejections by reason", ">COUNT", "AT", "CODE", "*REASON", expand=True)
    for verb, code, text, count in rows:
        enhanced, reason = _take_enhanced(printable(text))
        style = "red" if code >= 500 else "yellow"
        table.add_row(f"{count:,}", printable(verb), Text(f"{code} {enhanced}".rstrip(), style), Text(reason))
    return table if table.rows else _with_nothing(table, "none since this began")


def _senders(rows: Iterable[Sequence[Any]]) -> RenderableType:
    table = _table("\nSenders", ">MSGS", ">REJ", ">BYTES", "*SENDER", expand=True)
    for sender, messages, refused, octets in rows:
        table.add_row(f"{messages:,}", _count(refused), size(octets), Text(printable(sender)))
    return table if table.rows else _with_nothing(table, "none since this began")


def _peers(rows: Iterable[Sequence[Any]]) -> RenderableType:
    table = _table("\nClients", ">CONNS", ">MSGS", ">REJ", "*ADDRESS", expand=True)
    for peer, connections, messages, refused in rows:
        table.add_row(f"{connections:,}", f"{messages:,}", _count(refused), Text(printable(peer)))
    return table if table.rows else _with_nothing(table, "none since this began")


def _sessions(sessions: Iterable[Mapping[str, Any]], count: int, rows: int) -> RenderableType:
    # Slow handlers first, then transactions, then the rest.
    order = sorted(sessions, key=lambda each: (each["doing"] in _WAITING, each["sender"] is None, -each["seconds"]))
    shown = order[:rows]
    more = f" ({len(shown)} of {count})" if count > len(shown) else ""
    table = _table(
        f"\nConnections{more}", "SESSION", "ADDRESS", "STATE", ">SECONDS", ">MSGS", ">ERR", "*FROM", expand=True
    )
    for each in shown:
        doing = each["doing"]
        if doing in _WAITING:
            state = Text(_WAITING[doing] + (f" {size(each['size'])}" if each["size"] else ""))
        else:
            state = Text(f"handles {printable(doing)}", _grade(each["seconds"], _WORK))
        sender = "" if each["sender"] is None else printable(each["sender"]) + f" to {each['recipients']}"
        table.add_row(
            printable(each["id"]),
            printable(each["peer"]),
            state,
            f"{each['seconds']:.0f}",
            str(each["messages"]),
            _count(each["errors"]),
            Text(sender or printable(each["identity"] or each["hello"] or "")),
        )
    return table if shown else _with_nothing(table, "none")


def _with_nothing(table: Table, text: str) -> RenderableType:
    return Group(Text(str(table.title), "bold"), Text(text, "dim"))


def _side_by_side(left: RenderableType, right: RenderableType) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(left, right)
    return grid


def _count(number: int) -> Text:
    return Text(f"{number:,}", "red" if number else "dim")


def _grade(value: float, limits: tuple[float, float]) -> str:
    return "bold red" if value >= limits[1] else "yellow" if value >= limits[0] else "bold"


def _take_enhanced(text: str) -> tuple[str, str]:
    first, _, rest = text.partition(" ")
    return (first, rest) if first.replace(".", "").isdigit() and first.count(".") == 2 else ("", text)


def curve(values: Iterable[float]) -> str:
    """Return a curve of block characters, as high as its highest value."""
    values = [*values]
    highest = max(values, default=0.0)
    if highest <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, int(value / highest * 7.999))] for value in values)


def size(octets: float) -> str:
    """Return a number of bytes as text: ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if unit == "B" or octets >= 100 else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time as text: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
