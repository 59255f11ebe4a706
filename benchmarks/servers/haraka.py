"""Haraka, which discards everything, or relays it to the port in $BENCH_NEXT_HOP: becomes node."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks import machine
from benchmarks.servers import options

#: It decides at RCPT and at the end of a message, as a site's own plugin does.
_PLUGIN = """
exports.hook_rcpt = (next) => next(OK);
"""
_DISCARD = "exports.hook_queue = (next) => next(OK);\n"


def main() -> None:
    """Serve."""
    given = options.parser(__doc__).parse_args()
    folder = Path(os.environ["BENCH_FOLDER"]) / f"haraka-{given.port}"
    shutil.rmtree(folder, ignore_errors=True)
    hop = os.environ.get("BENCH_NEXT_HOP")
    files = {
        "config/smtp.ini": f"listen=127.0.0.1:{given.port}\nnodes=0\n",
        "config/me": f"{options.HOSTNAME}\n",
        "config/plugins": "accept\nqueue/smtp_forward\n" if hop else "accept\n",
        "config/smtp_forward.ini": f"host=127.0.0.1\nport={hop}\nenable_outbound=false\n",
        "config/log.ini": "[main]\nlevel=warn\n",
        "plugins/accept.js": _PLUGIN if hop else _PLUGIN + _DISCARD,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    package = Path(os.environ["NODE_PATH"]) / "Haraka"
    shutil.copy(package / "config" / "connection.ini", folder / "config")  # it has no defaults of its own
    program = package / "bin" / "haraka"
    sys.stdout.flush()
    node = machine.find("node")
    os.execv(node, [node, str(program), "-c", str(folder)])


if __name__ == "__main__":
    main()
