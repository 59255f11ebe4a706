"""A plugin that accepts mail for some domains only. It is a module: importing it connects its handler."""

import os

from greensmtp import Ack, Address, Session, signals

DOMAINS = frozenset(os.environ.get("ALLOWED_DOMAINS", "").lower().split())

if not DOMAINS:
    # Fail at the start rather than refuse all mail.
    raise RuntimeError("set ALLOWED_DOMAINS to the domains to accept mail for, like 'example.com example.org'")


@signals.to.connect
def allow(session: Session, address: Address, ack: Ack) -> None:
    """Decide on each recipient."""
    if address.domain in DOMAINS:
        ack.accept()
    else:
        ack.reject(550, "5.7.1 mail for that domain is not accepted here")
