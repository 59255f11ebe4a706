"""SMTPServer's arguments: checks, and errors that say what each takes."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from greensmtp._suggest import did_you_mean
from greensmtp.errors import ArgumentError, ProtocolError
from greensmtp.protocol.mailbox import check_domain
from greensmtp.server.certificates import Certificate, Certificates
from greensmtp.server.limits import Limits


def check_limits(given: dict[str, Any], others: Iterable[str] = (), limits: Limits | None = None) -> Limits:
    """Return the limits: those given as ``limits=``, or made of the remaining keywords.

    :param given: the keywords that are no other argument.
    :param others: the names of the other arguments, for the suggestion in the error.
    """
    if limits is not None:
        if not isinstance(limits, Limits):
            raise TypeError(f"limits must be a greensmtp.Limits, like Limits(max_recipients=10), not {limits!r}")
        if given:
            raise TypeError(f"give limits=Limits(...) or its keywords ({', '.join(given)}), not both")
        return limits
    try:
        return Limits(**given)
    except TypeError:
        known = [field.name for field in fields(Limits)]
        wrong = next(name for name in given if name not in known)
        raise TypeError(f"SMTPServer takes no argument {wrong!r}{did_you_mean(wrong, [*known, *others])}") from None


def check_backlog(value: Any) -> int | None:
    """Return how many connections the kernel keeps until they are accepted; None for the default."""
    if value is not None and (not isinstance(value, int) or value < 0):
        raise ArgumentError("backlog", f"takes a whole number, or None for the default, not {value!r}")
    return value


def check_hostname(name: str | None) -> str:
    """Return the server's name, a domain or an address literal in ASCII; for None the machine's, if that is one."""
    if name is None:
        name = socket.gethostname()
        try:
            check_domain(name)
        except ProtocolError:
            name = "localhost"
        return name
    if not isinstance(name, str):
        raise TypeError(f"hostname takes a str, not {name!r}")
    try:
        check_domain(name)
    except ProtocolError as error:
        raise ArgumentError(
            "hostname", f"takes a domain name or an address literal, like 'mx.example.com': {error}"
        ) from None
    if not name.isascii():
        raise ArgumentError("hostname", f"takes ASCII; write {name!r} in its xn-- form")
    return name


def check_proxy_tls(value: bool, proxies: object) -> bool:
    """Return whether TLS that a proxy has ended counts."""
    if not isinstance(value, bool):
        raise TypeError(f"proxy_tls takes True or False, not {value!r}")
    if value and proxies is None:
        raise ArgumentError("proxy_tls", "needs proxy_from: the proxies whose TLS counts")
    return value


def check_tls(
    certfile: str | Path | None,
    keyfile: str | Path | None,
    context: ssl.SSLContext | None,
    tls: Certificates | None,
    *,
    implicit: bool,
) -> ssl.SSLContext | Certificates | None:
    """Return what STARTTLS or implicit TLS uses; None without a certificate."""
    if sum(each is not None for each in (certfile, context, tls)) > 1 or (certfile is None and keyfile and tls):
        raise ValueError("give ssl_context, tls, or certfile and keyfile, not several of them")
    if context is not None and keyfile is not None:
        raise ValueError("give ssl_context, or certfile and keyfile, not both")
    if context is not None:
        if not isinstance(context, ssl.SSLContext):
            raise TypeError(f"ssl_context takes an ssl.SSLContext, not {context!r}")
        return context
    if tls is not None:
        if not isinstance(tls, Certificates):
            raise TypeError(f"tls takes a Certificates, not {tls!r}")
        return tls
    if certfile is not None:
        return Certificates(Certificate(certfile, keyfile))
    if keyfile is not None:
        raise ArgumentError("keyfile", "needs a certfile with it")
    if implicit:
        raise ArgumentError("implicit_tls", "needs a certificate: give certfile and keyfile, tls, or ssl_context")
    return None
