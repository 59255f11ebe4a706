"""greensmtp that pipes every body to a file, for measurements of memory."""

from __future__ import annotations

import os
import tempfile

from benchmarks.servers import options
from greensmtp import SMTPServer
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    """Pipe to a temporary file, which is closed at the end of the transaction."""
    file = tempfile.TemporaryFile(buffering=0, dir=os.environ.get("BENCH_FOLDER"))  # noqa: SIM115 - at_end closes it
    stream.pipe(file)
    stream.at_end(file.close)
    ack.accept()


def main() -> None:
    """Serve."""
    given = options.parser(__doc__).parse_args()
    server = SMTPServer(("127.0.0.1", given.port), hostname=options.HOSTNAME, max_message_size=None)
    server.on("message", take)
    server.serve_forever()


if __name__ == "__main__":
    main()
