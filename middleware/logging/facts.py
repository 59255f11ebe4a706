"""The facts in Logging's lines, and how they are shown: what all kinds of lines share."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from greensmtp.protocol.log_text import shown
from greensmtp.session import Session

#: The attributes of a log record.
Facts = dict[str, Any]


def seconds_since(began: float) -> float:
    """Return the seconds since a time of ``perf_counter``, to the microsecond."""
    return to_microseconds(perf_counter() - began)


def to_microseconds(seconds: float) -> float:
    """Return seconds with six decimals."""
    # round(seconds, 6) gives the same by way of a decimal text, which takes twice as long.
    return round(seconds * 1e6) / 1e6


def peer_of(session: Session) -> str:
    """Return the client's address, or ``unix``."""
    return shown(session.peer_host or "unix")


def identity_of(session: Session) -> str | None:
    """Return the user's name. Nothing else of the identity is logged."""
    identity = session.identity
    return None if identity is None else shown(getattr(identity, "authcid", identity))


def tls_of(session: Session, noted: str | None) -> str | None:
    """Return the TLS version, which is unknown if no EHLO followed STARTTLS.

    :param noted: the version when the session was last looked at.
    """
    return noted or ("TLS" if session.tls else None)
