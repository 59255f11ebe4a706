"""aiosmtpd with a handler that accepts everything; ``--uvloop`` runs it on uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

from aiosmtpd.smtp import SMTP

from benchmarks.servers import options


class Nowhere:
    """Accept everything. (aiosmtpd has the whole body in memory by then.)"""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Accept."""
        return "250 2.0.0 Ok"


async def serve(given: Any) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    context = options.tls_context(given)
    starttls = context if given.tls == "starttls" else None

    def make() -> SMTP:
        return SMTP(
            Nowhere(), hostname=options.HOSTNAME, tls_context=starttls, data_size_limit=2**31, enable_SMTPUTF8=True
        )

    at_once = context if given.tls == "implicit" else None
    server = await loop.create_server(make, "127.0.0.1", given.port, ssl=at_once, backlog=options.BACKLOG)
    await server.serve_forever()


def main() -> None:
    """Serve."""
    parser = options.parser(__doc__)
    parser.add_argument("--uvloop", action="store_true")
    given = parser.parse_args()
    if given.uvloop:
        import uvloop  # type: ignore[import-not-found]  # only in its own environment

        uvloop.install()
    asyncio.run(serve(given))


if __name__ == "__main__":
    main()
