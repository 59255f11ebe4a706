"""Host names as callers write them: parsed, with a port or without, and made fit for the resolver and for TLS."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address

import idna

from greensmtp._hostport import split
from greensmtp.protocol import command_builder

#: RFC 1123 section 2.1, and the underscore, which real host names have.
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
MAX_LENGTH = 253


def read(place: str) -> tuple[str, int | None]:
    """Parse ``host``, ``host:port``, ``[::1]``, ``[::1]:port`` or ``::1``; return the host (see ``fit``) and the port.

    Brackets may stand around a name too, as in Postfix's ``relayhost``.

    :raises ValueError: the text is none of these.
    :raises ProtocolError: it has a control character.
    """
    _check_text(place)
    try:
        host, port = split(place)
    except ValueError:
        raise _not_a_host(place) from None
    return fit(host), None if port is None else check_port(port)


def fit(host: str) -> str:
    """Return a host name or address as the resolver takes it: in ASCII, an IPv6 address without brackets.

    A name beyond ASCII becomes A-labels (RFC 5891). An IPv6 address may have a zone: ``fe80::1%eth0``.

    :raises ValueError: the text is not a host name or an address.
    """
    _check_text(host)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        try:
            IPv6Address(bare)
        except AddressValueError:
            raise _not_a_host(host) from None
        if not (bare.isascii() and bare.isprintable()):  # ipaddress does not check the zone
            raise _not_a_host(host)
        return bare
    if not bare.isascii():
        try:
            bare = idna.encode(bare, uts46=True).decode("ascii")
        except UnicodeError as error:  # idna's errors are UnicodeErrors
            raise _not_a_host(host, str(error)) from None
    name = bare.removesuffix(".")
    if len(name) > MAX_LENGTH or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise _not_a_host(host)
    return bare


def fit_for_tls(host: str) -> str:
    """Return a host as SNI and certificates have it: as ``fit`` does, without a final dot and an IPv6 zone.

    :raises ValueError: the text is not a host name or an address.
    """
    return fit(host).partition("%")[0].removesuffix(".")


def check_port(port: object) -> int:
    """Return the port.

    :raises ValueError: it is not an int from 1 to 65535.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"port must be 1 to 65535, not {port!r}")
    return int(port)


def _check_text(host: object) -> None:
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {host!r}")
    if not host:
        raise ValueError("host must not be empty")
    command_builder.check(host, "a host")


def _not_a_host(host: str, why: str = "") -> ValueError:
    reason = f" ({why[:80]})" if why else ""
    return ValueError(f"host must be a name or an address, like 'mx.example.com' or '::1', not {host[:80]!r}{reason}")
