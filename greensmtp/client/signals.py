"""The client's signals. Those of this module are sent for every client in the process, ``mail.on(name)`` for one.

The sender is the ``SMTPClient``. ``greeting`` (the banner was read) and ``tls`` (the handshake is complete) have no
ack. With ``secure``, the TLS context has accepted the certificate, and the handler decides by an ack whether this is
the intended server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from blinker import Signal

from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import Ack

#: signal -> the keyword arguments of its handlers, besides the client, which is their first argument
FIELDS: Mapping[str, tuple[str, ...]] = {"greeting": ("reply",), "tls": (), "secure": ("ack",)}


class GreetingHandler(Protocol):
    """A handler of ``greeting``."""

    def __call__(self, client: Any, /, *, reply: Reply) -> object: ...


class TLSHandler(Protocol):
    """A handler of ``tls``."""

    def __call__(self, client: Any, /) -> object: ...


class SecureHandler(Protocol):
    """A handler of ``secure``."""

    def __call__(self, client: Any, /, *, ack: Ack) -> object: ...


class ClientSignals:
    """One blinker signal for each name in FIELDS."""

    def __init__(self) -> None:
        self.greeting = Signal("greeting")
        self.tls = Signal("tls")
        self.secure = Signal("secure")

    def named(self, name: str) -> Signal:
        """Return the signal of this name.

        :raises ValueError: there is none.
        """
        if name not in FIELDS:
            raise ValueError(f"expected a signal of the client, one of {', '.join(FIELDS)}; got {name!r}")
        signal: Signal = getattr(self, name)
        return signal


#: The process-wide signals.
shared: ClientSignals = ClientSignals()

greeting: Signal = shared.greeting
tls: Signal = shared.tls
secure: Signal = shared.secure
