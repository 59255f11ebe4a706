"""Mail for some domains alone. A plugin that is a module: importing it connects its handler, for every server."""

import os

from greensmtp import Ack, Address, Session, signals

DOMAINS = frozenset(os.environ.get("ALLOWED_DOMAINS", "").lower().split())

if not DOMAINS:
    # Whoever has forgotten to name them is to know before the first mail comes, not when it is gone.
    raise RuntimeError("set ALLOWED_DOMAINS to the domains that mail is taken for, like 'example.com example.org'")


@signals.to.connect
def allow(session: Session, address: Address, ack: Ack) -> None:
    """Decide about every recipient."""
    if address.domain in DOMAINS:
        ack.accept()
    else:
        ack.reject(550, "5.7.1 we take no mail for that domain")
