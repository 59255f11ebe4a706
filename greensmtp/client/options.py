"""The options of ``connect`` and ``Pool``, and the checks of their values."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from greensmtp.client import dial
from greensmtp.client.signals import SecureHandler
from greensmtp.client.timeouts import Timeouts
from greensmtp.errors import PoolClosed
from greensmtp.protocol import esmtp, hosts
from greensmtp.protocol.proxy_header import ProxyHeader

#: The policies for STARTTLS before the first message; see ``connect``.
StartTLS = Literal["require", "encrypt", "offered", "opportunistic", "never"]

#: The policies that verify no server, so that no credentials are sent to one.
UNVERIFIED = frozenset({"encrypt", "opportunistic"})

CLOSED = "this pool has been closed"


class ConnectOptions(TypedDict, total=False):
    """How to connect; see ``connect`` for each of them. None stands for the default."""

    tls: bool | ssl.SSLContext | None
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    timeout: float | Timeouts | None
    source_address: tuple[str, int] | None
    local_hostname: str | None
    on_secure: SecureHandler | None
    starttls: StartTLS | None
    lmtp: bool | None
    ignore: str | Iterable[str] | None
    proxy: ProxyHeader | None


@dataclass(slots=True)
class PoolSettings:
    """The settings of a ``Pool``, and whether it is closed; shared by all native threads. Times are in seconds."""

    size: int
    max_age: float
    max_messages: int
    max_idle: float
    acquire_timeout: float | None
    #: Messages per second; None for no limit.
    rate: float | None
    #: Number of retries, and seconds before the first retry.
    retries: int
    retry_delay: float
    closed: bool = False

    def __post_init__(self) -> None:
        retries: Any = self.retries
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"expected a whole number of at least 0 as retries; got {retries!r}")
        for name in ("size", "max_age", "max_messages", "max_idle", "acquire_timeout", "rate", "retry_delay"):
            value = getattr(self, name)
            if value is None and name in ("acquire_timeout", "rate"):
                continue
            if not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"expected a number above 0 as {name}; got {value!r}")

    def check_open(self) -> None:
        """Raise PoolClosed if the pool was closed."""
        if self.closed:
            raise PoolClosed(CLOSED)


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of a pool as ``connect`` will check them later.

    :raises TypeError: the option is unknown, or cannot be used for several connections.
    :raises ValueError: a value is out of range, or contradicts another one.
    """
    for name in options:
        if name not in ConnectOptions.__annotations__:
            known = ", ".join(ConnectOptions.__annotations__)
            raise TypeError(f"expected an option of Pool or of connect ({known}); got {name!r}")
    Timeouts.of(options.get("timeout"))
    check_starttls(options.get("starttls"), tls=bool(options.get("tls")), ssl_context=options.get("ssl_context"))
    esmtp.check_ignored(options.get("ignore") or ())
    dial.check_source(options.get("source_address"))
    format_proxy(options.get("proxy"))
    if options.get("server_hostname"):
        hosts.fit_for_tls(options["server_hostname"])
    if options.get("local_hostname") is not None:
        dial.hello_name(options["local_hostname"], "local_hostname")


def format_proxy(header: ProxyHeader | None) -> bytes:
    """Return the option ``proxy`` as bytes; empty for None.

    :raises TypeError: it is not a ProxyHeader.
    :raises ValueError: its parts are inconsistent.
    """
    if header is None:
        return b""
    if not isinstance(header, ProxyHeader):
        raise TypeError(f"expected a ProxyHeader as proxy; got {header!r}")
    return header.format()


def check_starttls(starttls: str | None, *, tls: bool, ssl_context: ssl.SSLContext | None) -> None:
    """Check the option ``starttls``.

    :raises ValueError: it is not a known policy, or contradicts the other options.
    """
    if starttls is not None and starttls not in get_args(StartTLS):
        known = ", ".join(f'"{policy}"' for policy in get_args(StartTLS))
        raise ValueError(f"expected as starttls one of {known}; got {starttls!r}")
    if starttls in UNVERIFIED:
        if tls:
            raise ValueError(
                f'starttls="{starttls}" is for STARTTLS, tls=True is for TLS from the start: pass one of them'
            )
        if ssl_context is not None and ssl_context.verify_mode != ssl.CERT_NONE:
            raise ValueError(
                f'starttls="{starttls}" accepts any certificate, this ssl_context does not: pass one of them'
            )
