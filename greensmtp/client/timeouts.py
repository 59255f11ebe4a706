"""Client timeouts, in seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The timeouts of the client, in seconds. The defaults are those of RFC 5321 section 4.5.3.2."""

    #: Name lookup and TCP handshake, for all addresses of a host together. (Not in RFC 5321.)
    connect: float = 60.0
    #: The TLS handshake. (Not in RFC 5321.)
    tls: float = 60.0
    #: The banner, once connected.
    banner: float = 300.0
    #: The whole reply to a command; each reply to a group of pipelined commands.
    command: float = 300.0
    #: The reply to DATA.
    data_start: float = 120.0
    #: Sending each piece of the body, of up to 256 KiB.
    data: float = 180.0
    #: The reply to the whole message.
    final: float = 600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
                raise ValueError(f"expected a number of seconds above 0 as timeout ({field.name}); got {seconds!r}")

    @classmethod
    def of(cls, timeout: float | Timeouts | None) -> Timeouts:
        """Return the Timeouts for the argument ``timeout=``.

        :param timeout: one number for every wait, or Timeouts; None for the defaults.
        :raises ValueError: the number is not above 0.
        """
        if timeout is None:
            return cls()
        if isinstance(timeout, Timeouts):
            return timeout
        return cls(**{field.name: timeout for field in fields(cls)})
