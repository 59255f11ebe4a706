"""``greensmtp serve`` with its default stack: ``serving relay|1|2 PORT``, where a number is that of workers.

It runs in a new folder in $BENCH_FOLDER, ``serving-NAME-PORT``, and logs to a file there. A relay forwards in lock-step
to the port in $BENCH_NEXT_HOP on 127.0.0.1; workers discard.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks import machine

#: Defaults, but for limits that are above the load.
_COMMON = """
[[listeners]]
url = "127.0.0.1:{port}"
[logging]
target = "{folder}/mail.log"
[[middleware]]
use = "Logging"
[[middleware]]
use = "ConnectionLimit"
per_address = 500
per_network = false
[[middleware]]
use = "RateLimit"
limit = "100000/minute"
"""

_RELAY = """
[[deliveries]]
use = "Forward"
to = "smtp://127.0.0.1:{hop}"
mode = "lock-step"
starttls = "never"
"""

_DISCARD = """
[[plugins]]
name = "benchmarks.servers.discard:attach"
"""


def main() -> None:
    """Serve until killed."""
    name, port = sys.argv[1:]
    folder = Path(os.environ["BENCH_FOLDER"]) / f"serving-{name}-{port}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rest = _RELAY.format(hop=os.environ["BENCH_NEXT_HOP"]) if name == "relay" else _DISCARD
    (folder / "greensmtp.toml").write_text(_COMMON.format(port=port, folder=folder) + rest)
    os.chdir(folder)
    workers = [] if name in ("relay", "1") else ["--workers", name]
    command = [sys.executable, "-m", "greensmtp", "serve", "--config", "greensmtp.toml", *workers]
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": str(machine.ROOT)})


if __name__ == "__main__":
    main()
