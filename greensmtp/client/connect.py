"""``connect``: from whatever says where to, to a client that has read the banner."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from typing import Any

from greensmtp.client import dial
from greensmtp.client.client import SMTPClient, StartTLS
from greensmtp.client.deadlines import Timeouts


def connect(
    *where: Any,
    host: str | None = None,
    port: int | None = None,
    path: str | None = None,
    stream: Any = None,
    tls: bool | ssl.SSLContext | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    timeout: float | Timeouts | None = None,
    source_address: tuple[str, int] | None = None,
    local_hostname: str | None = None,
    on_secure: Callable[..., Any] | None = None,
    starttls: StartTLS | None = None,
    lmtp: bool | None = None,
    ignore: str | Iterable[str] | None = None,
) -> SMTPClient:
    """Connect, and read the banner: ``connect("localhost", 25)``.

    What is given without a name is told apart by its type, in any order: a host name, a port, a unix path (a str that
    begins with ``.`` or ``/``), ``(host, port)``, a connected socket, an SSLContext, Timeouts, a handler for
    ``secure``, a mapping of the options below.

    :param host: a name, an address, or either with its port: ``"mx.example.com:2525"``, ``"[::1]:2525"``;
        ``localhost`` by default.
    :param port: 25 when not given; 465 with ``tls``, 24 with ``lmtp``.
    :param stream: a connected gevent socket (a plain one of the standard library's is taken over).
    :param tls: TLS from the first octet (RFC 8314): True, or an SSLContext.
    :param ssl_context: for ``tls=True`` and STARTTLS; by default the peer must have a certificate for its name, from
        an authority that the system trusts.
    :param server_hostname: the name that the certificate must be for; the host by default.
    :param timeout: seconds for every wait, or Timeouts; RFC 5321 section 4.5.3.2 by default.
    :param source_address: ``(host, port)`` to connect from.
    :param local_hostname: what EHLO says; this machine's name where it has a domain, else its address.
    :param on_secure: called with the client and an ack when TLS is up: accept or reject the peer. (The context has
        verified it before, unless that context does not: pinning, for one, wants a context with CERT_NONE.)
    :param starttls: what ``send`` does before the first message, and ``login`` before it sends credentials:
        ``"require"`` TLS (the default of ``login``), take it where it is ``"offered"`` (the default of ``send``), or
        ``"never"``. ``"opportunistic"`` is for delivery to an MX (RFC 7435): the server is not verified, a failed
        handshake means that the client reconnects without TLS, and ``login`` is refused. The low-level calls never do
        anything by themselves.
    :param lmtp: this is LMTP (RFC 2033): ``send`` says LHLO and reads a reply for each recipient.
    :param ignore: extensions that the server offers but breaks at: ``("CHUNKING", "PIPELINING")``.
    :raises CannotConnect: no connection, no banner, or one that refuses service.
    :raises ValueError: no host can have that name, or an option is out of range.
    :raises TLSFailed: with ``tls``.
    :raises PeerProtocolError: that is no SMTP server.
    :raises TypeError: arguments that contradict each other.
    """
    said = dial.parse_arguments(
        where,
        {
            "host": host,
            "port": port,
            "path": path,
            "stream": stream,
            "tls": tls,
            "ssl_context": ssl_context,
            "server_hostname": server_hostname,
            "timeout": timeout,
            "source_address": source_address,
            "local_hostname": local_hostname,
            "on_secure": on_secure,
            "starttls": starttls,
            "lmtp": lmtp,
            "ignore": ignore,
        },
    )
    places = [name for name in ("host", "path", "stream") if name in said]
    if len(places) > 1:
        raise TypeError(f"connect takes a {' or a '.join(places)}, not several of them")
    return SMTPClient(**said)
