"""greensmtp whose receiver of ``to`` takes a second for one recipient, to measure the others' latency."""

from __future__ import annotations

import gevent

from benchmarks.servers import options
from benchmarks.servers.plain import take
from greensmtp import SMTPServer
from greensmtp.protocol.address import Address
from greensmtp.session import Session
from greensmtp.session.ack import Ack

#: The local part whose RCPT is slow.
SLOW = "slow"
SECONDS = 1.0


def to(session: Session, address: Address, ack: Ack) -> None:
    """Wait, as for a remote look-up."""
    if address.local_part == SLOW:
        gevent.sleep(SECONDS)
    ack.accept()


def main() -> None:
    """Serve."""
    given = options.parser(__doc__).parse_args()
    server = SMTPServer(("127.0.0.1", given.port), hostname=options.HOSTNAME)
    server.on("to", to)
    server.on("message", take)
    server.serve_forever()


if __name__ == "__main__":
    main()
