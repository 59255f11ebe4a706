"""The client's signals: those of this module hear every client in the process, ``mail.on(name)`` hears one.

The sender is the ``SMTPClient``. ``greeting`` and ``tls`` tell; ``secure`` asks, and has an ack: is this peer, whose
certificate the TLS context has found good, the one that is meant?
"""

from __future__ import annotations

from collections.abc import Mapping

from blinker import Signal

#: signal -> what receivers are given by name, besides the client, their first argument
FIELDS: Mapping[str, tuple[str, ...]] = {"greeting": ("reply",), "tls": (), "secure": ("ack",)}


class ClientSignals:
    """One blinker signal for each name in FIELDS."""

    __slots__ = ("greeting", "secure", "tls")

    greeting: Signal
    tls: Signal
    secure: Signal

    def __init__(self) -> None:
        for name in FIELDS:
            setattr(self, name, Signal(name))

    def named(self, name: str) -> Signal:
        """The signal of this name.

        :raises ValueError: there is none.
        """
        if name not in FIELDS:
            raise ValueError(f"a client has no signal {name!r} (there are: {', '.join(FIELDS)})")
        signal: Signal = getattr(self, name)
        return signal


#: The process-wide signals.
shared = ClientSignals()

greeting = shared.greeting
tls = shared.tls
secure = shared.secure
