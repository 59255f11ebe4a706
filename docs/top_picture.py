"""Draw the picture of `greensmtp top` in docs/howto: python docs/top_picture.py. A test compares it.

The figures are made up; what draws them is what draws them on a terminal.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from greensmtp.cli.top_view import draw
from greensmtp.service.overview import HISTORY, Overview

PICTURE = Path(__file__).resolve().parent / "howto" / "top.svg"

WIDTH = 112

#: Without the fonts that rich's picture would load from a server.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code", "DejaVu Sans Mono, Menlo"
)


def _snapshot(pid: int, second: int) -> dict[str, Any]:
    """Return what a worker says."""
    grown = second * 40 + 130 * math.sin(second / 4)
    return {
        "pid": pid,
        "time": float(second),
        "seconds": float(second + 600),
        "listeners": ["192.0.2.25:25", "192.0.2.25:465"],
        "memory": 61_300_000 + (pid % 7) * 900_000,
        "cpu": second * (0.31 if pid % 2 else 0.27),
        "connections": 148 if pid % 2 else 139,
        "tls": 121 if pid % 2 else 117,
        "transactions": 23 if pid % 2 else 19,
        "messages_in_flight": 9 if pid % 2 else 7,
        "lag": 0.004 if pid % 2 else 0.062,
        "totals": {
            "connections": int(18_200 + 1.1 * grown),
            "commands": int(110_000 + 6 * grown),
            "messages": int(12_400 + grown),
            "recipients": int(13_000 + grown),
            "bytes": int(910_000_000 + 52_000 * grown),
            "rejections": int(4_100 + 0.4 * grown),
        },
        "senders": [
            ["newsletter@shop.example", 2140, 3, 154_000_000],
            ["<>", 611, 0, 2_450_000],
            ["alerts@monitor.example", 402, 0, 1_310_000],
            ["win@prize.invalid", 0, 371, 0],
        ],
        "peers": [
            ["192.0.2.81", 940, 2140, 3],
            ["2001:db8::25", 515, 498, 0],
            ["198.51.100.7", 388, 0, 776],
            ["203.0.113.19", 97, 402, 0],
        ],
        "rejections": [
            ["RCPT", 550, "5.1.1 <...>: no such user", 1460],
            ["MAIL", 450, "4.7.1 slow down", 377],
            ["AUTH", 535, "5.7.8 Authentication credentials invalid", 204],
            ["message", 552, "5.3.4 Message is too large", 12],
        ],
        "sessions": [
            _session(
                f"5c1f0{pid % 2}-1a{pid % 9}", "192.0.2.81", "RCPT", 3.4, "newsletter@shop.example", 40, 0, 118, 0
            ),
            _session(
                f"5c1f0{pid % 2}-1b{pid % 9}", "203.0.113.19", "reading", 1.0, "alerts@monitor.example", 1, 48_300, 6, 0
            ),
            _session(f"5c1f0{pid % 2}-1c{pid % 9}", "198.51.100.7", "idle", 12.0, None, 0, 0, 0, 2),
        ],
    }


def _session(*values: object) -> dict[str, Any]:
    names = ("id", "peer", "doing", "seconds", "sender", "recipients", "size", "messages", "errors")
    return {**dict(zip(names, values, strict=True)), "identity": None, "hello": "mail.example"}


def picture() -> str:
    """Return the picture as SVG."""
    overview = Overview()
    for second in range(HISTORY + 2):
        for pid in (2071, 2072):
            overview.add(pid, _snapshot(pid, second))
        if second:
            overview.mark()
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        highlight=False,
        markup=False,
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(draw(overview.report(), overview.history, height=38, keys="q ends it."))
    return console.export_svg(title="greensmtp top", code_format=FORMAT, unique_id="top")


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
