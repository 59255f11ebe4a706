"""greensmtp as it is deployed: Logging, RateLimit in memory, Auth (not required), receivers on five signals.

Logging writes its records at its default level, one line for each session and message, to /dev/null: formatting them
is part of the price, the disk is not.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import greensmtp.middleware as catalogue
from benchmarks.servers import options
from benchmarks.servers.plain import take
from greensmtp import SMTPServer
from greensmtp.chain import Middleware

#: Class -> how it is made. The limit is one that no workload reaches.
STACK: dict[str, Any] = {
    "Logging": lambda made: made(),
    "RateLimit": lambda made: made("1000000/minute", strategy="fixed-window"),
    "Auth": lambda made: made({"beep": "boop"}),
}


def stack() -> list[Middleware]:
    """The stack, outermost first."""
    missing = [name for name in STACK if not hasattr(catalogue, name)]
    if missing:
        print(f"full: without {', '.join(missing)}: not in the catalogue yet", file=sys.stderr)
    return [make(getattr(catalogue, name)) for name, make in STACK.items() if name not in missing]


def main() -> None:
    """Serve."""
    given = options.parser(__doc__).parse_args()
    logging.basicConfig(filename="/dev/null", level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    server = SMTPServer(
        ("127.0.0.1", given.port),
        hostname=options.HOSTNAME,
        middleware=stack(),
        ssl_context=options.tls_context(given),
        implicit_tls=given.tls == "implicit",
        max_connections=None,
        max_message_size=None,
    )
    server.on("greeting", lambda session, greeting, ack: ack.accept())
    server.on("from", lambda session, address, ack: ack.accept())
    server.on("to", lambda session, address, ack: ack.accept())
    server.on("message", take)
    server.on("received", lambda session, ack: ack.accept())
    server.serve_forever()


if __name__ == "__main__":
    main()
