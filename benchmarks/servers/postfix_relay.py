"""Postfix, which relays everything from its queue to the port in $BENCH_NEXT_HOP: ``postfix_relay PORT``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks.servers.postfix import become_postfix

_SETTINGS = """
mydestination =
relayhost = [127.0.0.1]:{hop}
smtp_tls_security_level = none
"""

_SERVICES = """
scache unix - - n - 1 scache
smtp unix - - n - - smtp
"""


def main() -> None:
    """Serve until killed."""
    port = int(sys.argv[1])
    folder = Path(os.environ["BENCH_FOLDER"]) / f"postfix-relay-{port}"
    shutil.rmtree(folder, ignore_errors=True)
    become_postfix(folder, port, _SETTINGS.format(hop=os.environ["BENCH_NEXT_HOP"]), _SERVICES)


if __name__ == "__main__":
    main()
