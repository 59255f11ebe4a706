"""``connect``: open a connection, and return a client that has read the banner."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from socket import socket as StandardSocket
from typing import Any

from greensmtp._hostport import is_unix_path
from greensmtp.client import dial
from greensmtp.client.client import SMTPClient
from greensmtp.client.options import StartTLS
from greensmtp.client.signals import SecureHandler
from greensmtp.client.timeouts import Timeouts
from greensmtp.protocol.proxy_header import ProxyHeader

#: A connected socket.
Stream = StandardSocket | dial.Socket

#: The types of positional arguments of ``connect``.
Where = str | Path | int | tuple[str, int] | Stream | ssl.SSLContext | Timeouts | SecureHandler | Mapping[str, Any]


def connect(
    *where: Where,
    host: str | None = None,
    port: int | None = None,
    path: str | Path | None = None,
    stream: Stream | None = None,
    tls: bool | ssl.SSLContext | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    timeout: float | Timeouts | None = None,
    source_address: tuple[str, int] | None = None,
    local_hostname: str | None = None,
    on_secure: SecureHandler | None = None,
    starttls: StartTLS | None = None,
    lmtp: bool | None = None,
    ignore: str | Iterable[str] | None = None,
    proxy: ProxyHeader | None = None,
) -> SMTPClient:
    """Connect, and read the banner: ``connect("localhost", 25)``.

    Positional arguments may be in any order, and are distinguished by their type: a host name, a port, a unix path
    (a str that begins with ``.`` or ``/``), ``(host, port)``, a connected socket, an SSLContext, Timeouts, a handler
    for ``secure``, or a mapping of the options below.

    :param host: a name or an address, perhaps with its port: ``"mx.example.com:2525"``, ``"[::1]:2525"``;
        ``localhost`` by default.
    :param port: 25 by default; 465 with ``tls``, 24 with ``lmtp``.
    :param path: the path of a unix socket.
    :param stream: a connected gevent socket; or one of the standard library's, which the client takes over.
    :param tls: TLS from the first byte (RFC 8314): True, or an SSLContext.
    :param ssl_context: for ``tls=True`` and STARTTLS. By default the server must have a certificate for its name, from
        an authority that the system trusts.
    :param server_hostname: the name that the certificate must be for; the host by default.
    :param timeout: seconds for every wait, or Timeouts; the defaults are those of RFC 5321 section 4.5.3.2.
    :param source_address: ``(host, port)`` to connect from.
    :param local_hostname: the argument of EHLO; by default this machine's name if it has a domain, else its address.
    :param on_secure: called with the client and an ack after the handshake, to accept or reject the peer. The context
        has already verified the certificate; to pin a self-signed one, pass a context with CERT_NONE.
    :param starttls: when ``send``, before the first message, and ``login``, before it sends credentials, use STARTTLS:
        ``"require"`` TLS (the default of ``login``), use it if it is ``"offered"`` (the default of ``send``), or
        ``"never"``. ``"encrypt"`` requires TLS, but verifies no server. ``"opportunistic"`` is for delivery to an MX
        (RFC 7435): it verifies no server either, and reconnects without TLS if the handshake fails. With these two
        ``login`` is refused. The methods for single commands never send STARTTLS themselves.
    :param lmtp: use LMTP (RFC 2033): ``send`` sends LHLO and reads a reply for each recipient.
    :param ignore: extensions that the server offers but handles wrongly: ``("CHUNKING", "PIPELINING")``.
    :param proxy: a PROXY protocol header, which is sent before TLS and the banner; for a server that expects one from
        this host: ``ProxyHeader(2, "TCP4", ("192.0.2.1", 40000), ("198.51.100.2", 25))``.
    :raises CannotConnect: there is no connection or no banner, or the banner refuses service.
    :raises ValueError: the host name is invalid, or an option is out of range.
    :raises TLSFailed: with ``tls``.
    :raises PeerProtocolError: the server does not speak SMTP.
    :raises TypeError: arguments contradict each other.
    """
    options = dict(locals())
    del options["where"]
    given = _parse_arguments(where, options)
    places = [name for name in ("host", "path", "stream") if name in given]
    if len(places) > 1:
        raise TypeError(f"expected one of host, path and stream; got {' and '.join(places)}")
    return SMTPClient(**given)


def _parse_arguments(where: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Distinguish the positional arguments of ``connect`` by their type; return them with the keyword arguments.

    :raises TypeError: an argument has an unknown type, or sets the same option as another one.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for argument in where:
        for name, value in _named(argument).items():
            if name in given:
                raise TypeError(f"expected one value for {name}; got {given[name]!r} and {value!r}")
            if name not in options:
                raise TypeError(f"expected an option of connect ({', '.join(options)}); got {name!r}")
            given[name] = value
    return given


def _named(argument: Any) -> Mapping[str, Any]:
    if is_unix_path(argument):
        return {"path": argument}
    if isinstance(argument, str):
        if argument.isdecimal():
            raise TypeError(f"expected a port as an int; got {argument!r}")
        return {"host": argument}
    if isinstance(argument, int) and not isinstance(argument, bool):
        return {"port": argument}
    if isinstance(argument, tuple) and len(argument) >= 2:
        return {"host": argument[0], "port": argument[1]}
    if isinstance(argument, ssl.SSLContext):
        return {"ssl_context": argument}
    if isinstance(argument, Timeouts):
        return {"timeout": argument}
    if isinstance(argument, Mapping):
        return argument
    if hasattr(argument, "recv") and hasattr(argument, "send"):
        return {"stream": argument}
    if callable(argument):
        return {"on_secure": argument}
    raise TypeError(
        "expected a host name, a port, a unix path (which begins with . or /), a connected socket, an SSLContext, "
        f"Timeouts, a handler for secure, or a mapping of options; got {argument!r}"
    )
