"""greensmtp as in production: Logging, RateLimit in memory, Auth (not required), receivers on five signals.

Without options logging is not configured, so the logger's level is WARNING. With ``--log`` a line for each session and
message goes to a file, as ``greensmtp serve`` writes it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from benchmarks.servers import options
from benchmarks.servers.plain import take
from greensmtp import SMTPServer
from greensmtp.log_writer import LogHandler
from greensmtp.middleware import Auth, Logging, RateLimit


def main() -> None:
    """Serve."""
    parser = options.parser(__doc__)
    parser.add_argument("--log", action="store_true", help="write a line for each message to a file")
    given = parser.parse_args()
    if given.log:
        folder = Path(os.environ["BENCH_FOLDER"])
        logging.basicConfig(level=logging.INFO, handlers=[LogHandler("text", str(folder / f"full-{given.port}.log"))])
    server = SMTPServer(
        ("127.0.0.1", given.port),
        hostname=options.HOSTNAME,
        # Defaults, but for limits that no workload reaches.
        middleware=[Logging(), RateLimit("100000/minute"), Auth({"beep": "boop"})],
        ssl_context=options.tls_context(given),
        implicit_tls=given.tls == "implicit",
        max_connections=20_000,
        max_message_size=200_000_000,
    )
    server.on("greeting", lambda session, greeting, ack: ack.accept())
    server.on("from", lambda session, address, ack: ack.accept())
    server.on("to", lambda session, address, ack: ack.accept())
    server.on("message", take)
    server.on("received", lambda session, ack: ack.accept())
    server.serve_forever()


if __name__ == "__main__":
    main()
