"""greensmtp with one receiver, of ``message``, which reads and discards the body."""

from __future__ import annotations

from benchmarks.servers import options
from greensmtp import SMTPServer
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    """Read and discard the body."""
    ack.accept()
    for _ in stream:
        pass


def main() -> None:
    """Serve, without the bounds that the workloads would reach."""
    given = options.parser(__doc__).parse_args()
    server = SMTPServer(
        ("127.0.0.1", given.port),
        hostname=options.HOSTNAME,
        ssl_context=options.tls_context(given),
        implicit_tls=given.tls == "implicit",
        max_connections=None,
        max_message_size=None,
    )
    server.on("message", take)
    server.serve_forever()


if __name__ == "__main__":
    main()
