"""greensmtp with one receiver, that of ``message``, which reads the body and throws it away."""

from __future__ import annotations

from benchmarks.servers import options
from greensmtp import SMTPServer
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    """Stream to nowhere."""
    ack.accept()
    for _ in stream:
        pass


def main() -> None:
    """Serve. The bounds that the workloads run into are lifted; the checks stay."""
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
