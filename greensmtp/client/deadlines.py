"""Client timeouts, enforced by a single timer."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields
from math import inf
from time import monotonic
from typing import Any

from gevent import get_hub, getcurrent

from greensmtp.errors import Disconnected


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the peer may take, in seconds; the defaults are those of RFC 5321 section 4.5.3.2."""

    #: Name look-up and TCP handshake, for all of a host's addresses together, which are tried side by side. (Not in
    #: RFC 5321.)
    connect: float = 60.0
    #: The TLS handshake. (Not in RFC 5321.)
    tls: float = 60.0
    #: The banner, once connected.
    banner: float = 300.0
    #: The reply to a command, as a whole, and to a group of them each.
    command: float = 300.0
    #: The reply to DATA.
    data_start: float = 120.0
    #: Each piece of the body, of up to 256 KiB.
    data: float = 180.0
    #: The reply to the whole message.
    final: float = 600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
                raise ValueError(f"timeouts: {field.name} is seconds, more than 0, not {seconds!r}")

    @classmethod
    def of(cls, timeout: float | Timeouts | None) -> Timeouts:
        """A number is for every wait alike; None stands for the defaults.

        :raises ValueError: it is not more than 0.
        """
        if timeout is None:
            return cls()
        if isinstance(timeout, Timeouts):
            return timeout
        return cls(**{field.name: timeout for field in fields(cls)})


class Expired(BaseException):
    """Thrown, from the hub, into the greenlet that waits. Not an Exception: nothing on its way may swallow it."""


class Alarm:
    """One deadline for one connection. Starting it is two attribute assignments.

    Its one timer is not moved with the deadline: when it rings too early it is set again, and when nothing is
    waited for it stays silent. So a timer is started once in a time-out, not once in a wait.
    """

    __slots__ = ("_deadline", "_due", "_hub", "_timer", "greenlet")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._deadline = inf
        self._due = inf
        self._timer: Any = None
        #: The greenlet that waits.
        self.greenlet: Any = None

    def set(self, seconds: float) -> None:
        """The current greenlet is going to wait, for so long at most.

        :raises RuntimeError: another one is waiting, or this is another native thread.
        """
        if self.greenlet is not None or get_hub() is not self._hub:
            raise in_use(self._hub)
        self.greenlet = getcurrent()
        self._deadline = deadline = monotonic() + seconds
        if deadline < self._due:
            self._start(seconds)

    def extend(self, seconds: float) -> None:
        """Something came, or went; the next may take so long again."""
        self._deadline = deadline = monotonic() + seconds
        if deadline < self._due:
            self._start(seconds)

    def clear(self) -> None:
        """The wait is over."""
        self.greenlet = None

    def interrupt(self, greenlet: Any, error: BaseException | None = None) -> None:
        """End its wait, if it still waits. Only in the hub."""
        if self.greenlet is greenlet:
            greenlet.throw(error or Disconnected("shutdown"))

    def close(self) -> None:
        """It will not be needed any more."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _start(self, seconds: float) -> None:
        self.close()
        self._due = monotonic() + seconds
        # Without a reference: a connection that nobody waits for must not keep the loop alive.
        self._timer = self._hub.loop.timer(seconds, ref=False)
        # A loop's clock stands still while greenlets run.
        self._timer.start(self._ring, update=True)

    def _ring(self) -> None:
        self._due = inf
        greenlet = self.greenlet
        if greenlet is None:
            return
        left = self._deadline - monotonic()
        if left > 0:
            self._start(left)
        else:
            greenlet.throw(Expired())


def in_use(hub: Any) -> RuntimeError:
    """What to raise at a second greenlet, or in another native thread than the one whose hub the connection has."""
    if get_hub() is not hub:
        return RuntimeError(
            "this connection belongs to the native thread that made it: connect() in each thread, or use a Pool"
        )
    return RuntimeError("this connection is in use by another greenlet: use one for each, or a Pool")


def is_foreign(error: BaseException) -> bool:
    """This is not the socket's, but somebody's who limits how long a call of ours may take:
    ``gevent.Timeout(5, TimeoutError)`` throws an OSError that no operating system has raised."""
    return isinstance(error, OSError) and error.errno is None and not isinstance(error, ssl.SSLError)
