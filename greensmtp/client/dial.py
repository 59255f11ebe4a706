"""Open the socket: parse host and port, look up the host, try its addresses."""

from __future__ import annotations

import os
import socket as stdlib_socket
import ssl
from collections import deque
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gevent import Greenlet, Timeout, reinit, socket, spawn
from gevent import ssl as gevent_ssl
from gevent.queue import Empty, Queue

from greensmtp._hostport import is_port, join
from greensmtp._native import native
from greensmtp.client.deadlines import is_callers_timeout
from greensmtp.errors import CannotConnect, ProtocolError
from greensmtp.protocol import command_builder, hosts

#: Default ports: implicit TLS (RFC 8314), LMTP by custom, SMTP.
PORTS = {"smtps": 465, "lmtp": 24, "smtp": 25}

#: Seconds after which the next address is tried in parallel (RFC 8305 section 5).
STAGGER = 0.25
#: Maximum length in bytes of the path of a unix socket: ``sun_path`` has 108 on Linux, including the final NUL.
MAX_PATH = 107
#: Maximum number of addresses of one host that are tried.
MAX_ADDRESSES = 16

# The unpatched function: in a monkey-patched process, this name is gevent's.
_getaddrinfo = native("socket", "getaddrinfo")

_pid = os.getpid()

#: Family, protocol, address.
_Address = tuple[int, int, Any]

#: A gevent socket. (gevent's SSLSocket is one.)
Socket = socket.socket

if TYPE_CHECKING:
    _Attempt = Greenlet[..., Socket | Exception]


def read_place(host: str, port: int | None) -> tuple[str, int | None]:
    """Return the host in the form for ``dial``, and the port, which may be part of the host.

    :raises ValueError: the host name or the port is invalid.
    :raises TypeError: two ports are given.
    """
    name, own_port = hosts.read(host)
    if port is not None:
        hosts.check_port(port)
    if own_port is not None and port is not None and port != own_port:
        raise TypeError(f"expected one port; got {host!r} and {port!r}")
    return name, port if own_port is None else own_port


def check_path(path: str | Path) -> str:
    """Return the path of a unix socket.

    :raises ValueError: the kernel accepts no such path.
    """
    text = os.fspath(path)
    if not 0 < len(os.fsencode(text)) <= MAX_PATH or "\0" in text:
        raise ValueError(f"expected a path of 1 to {MAX_PATH} bytes without NUL; got {text!r}")
    return text


def check_source(address: Any) -> None:
    """Check a ``source_address``.

    :raises TypeError: it is not a host and a port.
    """
    if address is None or (isinstance(address, tuple) and len(address) >= 2 and is_port(address[1])):
        return
    raise TypeError(f"expected (host, port) as source_address, where port 0 is any; got {address!r}")


def dial(
    host: str | None, port: int | None, path: str | None, source_address: tuple[str, int] | None, seconds: float
) -> Socket:
    """Return a connected gevent socket.

    A host's addresses are tried as in RFC 8305 ("Happy Eyeballs"): the next attempt starts when one has failed or has
    taken ``STAGGER`` seconds, and the first that succeeds is used. So an unreachable address costs little time.

    :param host: the result of ``protocol.hosts.fit``.
    :param seconds: the total timeout, including the name lookup.
    :raises CannotConnect: no address accepts a connection in time.
    """
    _reinit_after_fork()
    name = path if path is not None else join(str(host), int(port or 0))
    timeout = Timeout(seconds)
    try:
        with timeout:
            if path is not None:
                return _connected(socket.AF_UNIX, 0, path, None)
            sock = _connect_to_any(_addresses(host, port), source_address)
            if sock is None:
                raise CannotConnect(f"cannot connect to {name}: it has no address")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    except Timeout as expired:
        if expired is not timeout:
            raise
        raise CannotConnect(f"cannot connect to {name}: no answer within {seconds:g} s") from None
    except (OSError, UnicodeError) as error:
        if isinstance(error, CannotConnect) or is_callers_timeout(error):
            raise
        raise CannotConnect(f"cannot connect to {name}: {getattr(error, 'strerror', None) or error}") from error


def _reinit_after_fork() -> None:
    """Call ``gevent.reinit``, which a plain ``os.fork`` does not: without it, name lookups in the child never end."""
    global _pid  # noqa: PLW0603 - the process is one
    if os.getpid() != _pid:
        _pid = os.getpid()
        reinit()


def _addresses(host: str | None, port: int | None) -> list[_Address]:
    """Look up the host. Address families alternate (RFC 8305 section 4), so that a broken one costs little time."""
    families: dict[int, list[_Address]] = {}
    for family, _, protocol, _, address in _look_up(host, port):
        families.setdefault(family, []).append((family, protocol, address))
    rounds = zip_longest(*families.values())
    return [address for each in rounds for address in each if address is not None][:MAX_ADDRESSES]


def _look_up(host: str | None, port: int | None) -> list[Any]:
    try:
        # An address needs no lookup, and so no native thread.
        return list(_getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST))
    except stdlib_socket.gaierror:
        pass
    try:
        return list(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
    except socket.gaierror:
        # A final dot keeps DNS from trying search domains, but names in /etc/hosts have none.
        if host is None or not host.endswith("."):
            raise
        return list(socket.getaddrinfo(host[:-1], port, 0, socket.SOCK_STREAM))


def _connect_to_any(addresses: list[_Address], source_address: tuple[str, int] | None) -> Socket | None:
    """Return the first connected socket; None if there is no address."""
    if len(addresses) < 2:
        return _connected(*addresses[0], source_address) if addresses else None
    waiting = deque(addresses)
    outcomes: Queue[_Attempt] = Queue()
    attempts: list[_Attempt] = []
    winner: _Attempt | None = None
    over = 0
    try:
        while True:
            if waiting:
                attempts.append(spawn(_attempt, *waiting.popleft(), source_address))
                attempts[-1].rawlink(outcomes.put)
            try:
                done = outcomes.get(timeout=STAGGER if waiting else None)
            except Empty:
                continue
            over += 1
            if not isinstance(done.value, Exception):
                winner = done
                return done.value
            if over == len(attempts) and not waiting:
                raise done.value
    finally:
        for attempt in attempts:
            if attempt is not winner:
                attempt.kill(block=False)
                attempt.rawlink(_discard)  # it may have connected in the meantime


def _attempt(family: int, protocol: int, address: Any, source_address: tuple[str, int] | None) -> Socket | Exception:
    """Return a socket or the error, since gevent would print an exception of a greenlet."""
    try:
        return _connected(family, protocol, address, source_address)
    except Exception as error:
        return error


def _discard(attempt: _Attempt) -> None:
    if isinstance(attempt.value, socket.socket):
        attempt.value.close()


def _connected(family: int, protocol: int, address: Any, source_address: tuple[str, int] | None) -> Socket:
    """Connect to one address. (``create_connection`` leaves the socket open if its greenlet is killed.)"""
    source: Any = None
    if source_address is not None:
        # Look the name up here, since bind() would block the hub while it does so.
        host, port = source_address[:2]
        source = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0][4]
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.settimeout(None)
        if source is not None:
            sock.bind(source)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def adopt(stream: object) -> Socket:
    """Return the caller's connected socket as a gevent socket; one of the standard library's is taken over.

    :raises TypeError: it is not a socket, or is the standard library's SSLSocket.
    """
    if isinstance(stream, (socket.socket, gevent_ssl.SSLSocket)):
        return stream
    if isinstance(stream, ssl.SSLSocket):
        raise TypeError("expected gevent's SSLSocket as stream; got the standard library's, which would block the hub")
    if isinstance(stream, stdlib_socket.socket):
        family, kind, number = stream.family, stream.type, stream.proto
        return socket.socket(family, kind, number, fileno=stream.detach())
    raise TypeError(f"expected a connected socket as stream; got {stream!r}")


def own_name(sock: Socket) -> str:
    """Return this machine's name if it has a domain, else an address literal (RFC 5321 section 4.1.4).

    Nothing is looked up, since that could take long.
    """
    name = socket.gethostname()
    if "." in name and name.isascii() and name.isprintable() and " " not in name:
        return str(name)
    address = sock.getsockname()
    if isinstance(address, tuple) and address:
        host = address[0].partition("%")[0]
        return f"[IPv6:{host}]" if ":" in host else f"[{host}]"
    return "localhost"


def hello_name(name: str, what: str) -> str:
    """Return a name in the form for EHLO: in ASCII, with A-labels (RFC 5890) for other characters.

    :raises ProtocolError: it is empty, contains a space or a control character, or has no A-label form.
    """
    try:
        ascii_name = name if command_builder.check(name, what).isascii() else hosts.fit(name)
    except ValueError:
        ascii_name = ""
    if not ascii_name or " " in ascii_name:
        raise ProtocolError(f"expected a host name or an address literal as {what}; got {name!r}")
    return ascii_name
