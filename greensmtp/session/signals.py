"""Signals: blinker's, with a check of what is connected, and one set of them for each server and for the process.

``Signal`` refuses what could never run (an ``async def``, a generator), warns of receivers that would be collected at
once, and counts its changes, so that an emitter can keep its list of receivers. ``Signals`` is the set, one for each
name in FIELDS. The public module is ``greensmtp.signals``.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, TypeVar

import blinker
from blinker import ANY

from greensmtp._callables import deferred_kind, handler_name
from greensmtp._suggest import did_you_mean
from greensmtp.session.handlers import ConnectsHandlers

Receiver = TypeVar("Receiver", bound=Callable[..., Any])

#: signal -> the keywords that its receivers are called with, after the session
FIELDS: Mapping[str, tuple[str, ...]] = {
    "connect": ("ack",),
    "command": ("command", "ack"),
    "greeting": ("greeting", "ack"),
    "auth": ("identity", "ack"),
    "from": ("address", "ack"),
    "to": ("address", "ack"),
    "message": ("stream", "ack"),
    "received": ("ack",),
    "vrfy": ("command", "ack"),
    "expn": ("command", "ack"),
    "etrn": ("command", "ack"),
    "reset": (),
    "quit": (),
    "tls": (),
    "disconnect": ("reason",),
}

#: The same for ``received`` of an LMTP server, which is emitted for each recipient.
LMTP_RECEIVED = ("recipient", "ack")


class Signal(blinker.Signal):
    """A blinker signal that counts its changes, so that an emitter can keep its list of receivers."""

    def __init__(self, name: str, doc: str | None = None) -> None:
        super().__init__(doc)
        self.name = name
        self.changes: int = 0

    def connect(self, receiver: Receiver, sender: Any = ANY, weak: bool = True) -> Receiver:
        """Connect a receiver as blinker does, but refuse one that would never run.

        A receiver that is connected weakly while nothing else refers to it, such as a lambda or a nested function,
        causes a RuntimeWarning: it would be collected at once.

        :raises TypeError: it is an ``async def`` or a generator.
        """
        wrong = deferred_kind(receiver)
        if wrong is not None:
            why = {
                "async def": "is an async def, which is never awaited: write def, and wait with gevent",
                "generator": "has a yield in it, so that calling it runs nothing: decide with the ack, and return",
            }[wrong]
            raise TypeError(
                f"a handler is a plain function, called in the connection's greenlet; {handler_name(receiver)} {why}"
            )
        is_temporary = sys.getrefcount(receiver) <= 2  # this function's argument, and getrefcount's
        if weak and _vanishes(receiver, is_temporary):
            by_blinker = sys._getframe(1).f_globals.get("__name__", "").startswith("blinker.")
            warnings.warn(
                f"{handler_name(receiver)} is connected weakly: it is collected as soon as nothing else refers to it, "
                f"and never called; connect it with on({self.name!r}, ...), or with connect(..., weak=False)",
                RuntimeWarning,
                stacklevel=3 if by_blinker else 2,
            )
        connected = super().connect(receiver, sender, weak)
        self.changes += 1
        return connected

    def disconnect(self, receiver: Callable[..., Any], sender: Any = ANY) -> None:
        """Disconnect a receiver as blinker does."""
        super().disconnect(receiver, sender)
        self.changes += 1


class Signals(ConnectsHandlers):
    """One signal for each name in FIELDS. ``from``, a keyword of Python, is the attribute ``from_``."""

    __slots__ = (
        "_lmtp",
        "auth",
        "command",
        "connect",
        "disconnect",
        "etrn",
        "expn",
        "from_",
        "greeting",
        "message",
        "quit",
        "received",
        "reset",
        "tls",
        "to",
        "vrfy",
    )

    connect: Signal
    command: Signal
    greeting: Signal
    auth: Signal
    from_: Signal
    to: Signal
    message: Signal
    received: Signal
    vrfy: Signal
    expn: Signal
    etrn: Signal
    reset: Signal
    quit: Signal
    tls: Signal
    disconnect: Signal

    def __init__(self, *, lmtp: bool | None = None) -> None:
        """
        :param lmtp: ``received`` comes from an LMTP server (True), an SMTP server (False), or either (None).
        """
        self._lmtp = lmtp
        for name in FIELDS:
            setattr(self, _attribute(name), Signal(name))

    def named(self, name: str) -> Signal:
        """Return the signal of this name.

        :raises ValueError: there is none; the error names the nearest.
        """
        wanted = name.rstrip("_")
        if wanted not in FIELDS:
            hint = did_you_mean(wanted, FIELDS)
            raise ValueError(f"there is no signal {name!r}{hint} (there are: {', '.join(FIELDS)})")
        signal: Signal = getattr(self, _attribute(wanted))
        return signal

    def _check_signal(self, name: str) -> None:
        self.named(name)

    def _connect_handler(self, name: str, handler: Any) -> Any:
        signal = self.named(name)
        self.check(name, handler)
        return signal.connect(handler, weak=False)

    def check(self, name: str, handler: Callable[..., Any]) -> None:
        """Raise TypeError unless the handler can be called with the session and this signal's fields."""
        if not callable(handler):
            raise TypeError(f"a handler must be callable, not {handler!r}")
        try:
            signature = inspect.signature(handler)
        except ValueError:  # built in, without a signature
            return
        name = name.rstrip("_")
        for fields in self._calls(name):
            try:
                signature.bind(None, **dict.fromkeys(fields))
                return
            except TypeError:
                continue
        takes = ", ".join(("session", *self._calls(name)[0]))
        raise TypeError(f"a handler of {name!r} is called as {handler_name(handler)}({takes}), but takes {signature}")

    def _calls(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return the keywords that handlers of this signal may be called with."""
        if name != "received" or self._lmtp is False:
            return (FIELDS[name],)
        return (LMTP_RECEIVED,) if self._lmtp else (FIELDS[name], LMTP_RECEIVED)


def _vanishes(receiver: Callable[..., Any], is_temporary: bool) -> bool:
    """Return whether a receiver is likely to be collected as soon as its caller returns.

    :param is_temporary: only the call itself refers to it.
    """
    if isinstance(receiver, MethodType):  # two references to its object: the method's, and an argument
        return sys.getrefcount(receiver.__self__) <= 2
    if isinstance(receiver, FunctionType):
        return receiver.__name__ == "<lambda>" or "<locals>" in receiver.__qualname__
    return is_temporary


def _attribute(name: str) -> str:
    return "from_" if name == "from" else name


#: The process-wide signals.
shared: Signals = Signals()
