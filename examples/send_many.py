"""Sending a thousand messages from a hundred greenlets, over ten connections.

    python examples/send_many.py [port [count]]

Start ``greensmtp serve`` first, or any server at port 1025.
"""

import sys
import time
from email.message import EmailMessage

from gevent.pool import Pool as Greenlets

from greensmtp import ClientError, Pool


def make_message(number: int) -> EmailMessage:
    """Return one message. ``send`` adds Date and Message-ID."""
    message = EmailMessage()
    message["From"] = "Newsletter <news@example.com>"
    message["To"] = f"reader{number}@localhost"
    message["Subject"] = f"Number {number}"
    message.set_content("Dear reader,\n\nthis is all.\n")
    return message


def main(port: int = 1025, count: int = 1000) -> int:
    """Send all messages; return how many were accepted."""
    began = time.perf_counter()
    accepted = 0
    with Pool("127.0.0.1", port, size=10) as pool:

        def send(number: int) -> bool:
            try:
                pool.send(make_message(number))
            except ClientError as error:
                print(f"{number}: {error}{' (try later)' if error.transient else ''}", file=sys.stderr)
                return False
            return True

        accepted = sum(Greenlets(100).imap_unordered(send, range(count)))
    print(f"{accepted} of {count} sent in {time.perf_counter() - began:.1f} s")
    return accepted


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
