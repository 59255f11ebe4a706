"""slimta's edge, in front of a queue that discards everything."""

from __future__ import annotations

from typing import Any

from gevent import ssl as gevent_ssl
from slimta.edge.smtp import SmtpEdge  # type: ignore[import-not-found]  # only in its own environment

from benchmarks.servers import options


class Nowhere:
    """The part of a queue that an edge needs."""

    def enqueue(self, envelope: Any) -> list[tuple[Any, str]]:
        """Discard the envelope."""
        return [(envelope, "nowhere")]


def main() -> None:
    """Serve."""
    given = options.parser(__doc__).parse_args()
    context = None
    if given.tls is not None:
        context = gevent_ssl.SSLContext(gevent_ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.cert, given.key)
    edge = SmtpEdge(
        ("127.0.0.1", given.port),
        Nowhere(),
        max_size=2**31,
        context=context,
        tls_immediately=given.tls == "implicit",
        hostname=options.HOSTNAME,
    )
    edge.start()
    edge.get()


if __name__ == "__main__":
    main()
