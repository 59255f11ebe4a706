"""DNS for deliveries: dnspython over gevent's sockets, so that nothing blocks the hub, patched or not.

dnspython's asynchronous resolver uses a backend for its input and output. This backend waits in gevent, so coroutines
never suspend, and ``_finish`` runs them to their end at once.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from gevent import Timeout, sleep, socket

#: Seconds for a query, including all retries.
LIFETIME = 10.0

#: Maximum number of cached answers.
CACHED = 10_000


class NoSuchDomain(Exception):
    """The name does not exist (NXDOMAIN)."""


class LookupFailed(Exception):
    """The lookup failed temporarily: a timeout, or SERVFAIL."""


class MailExchanger(NamedTuple):
    """An MX record."""

    preference: int
    #: The host, without the final dot; ``""`` in a null MX.
    host: str


class Resolver(Protocol):
    """The lookups of deliveries. Each raises ``NoSuchDomain`` or ``LookupFailed``.

    If the name exists without such records, the result is an empty list.
    """

    def mx(self, domain: str) -> Sequence[MailExchanger]:
        """Return the MX records of a domain, with A-labels."""

    def has_address(self, host: str) -> bool:
        """Return True if a host has an A or AAAA record."""

    def txt(self, name: str) -> Sequence[str]:
        """Return the TXT records of a name, each in one piece."""


class DNSResolver:
    """Query the system's name servers, or others. It needs ``greensmtp[dns]``.

    :param nameservers: addresses, ``"192.0.2.53"`` or ``"192.0.2.53:5353"``; None: those of ``/etc/resolv.conf``.
    :param lifetime: seconds for a query, including all retries.
    :raises ModuleNotFoundError: dnspython is not installed.
    :raises ValueError: an address is malformed.
    """

    def __init__(self, nameservers: Sequence[str] | None = None, *, lifetime: float = LIFETIME) -> None:
        try:
            import dns.asyncresolver
            import dns.nameserver
            import dns.resolver
        except ModuleNotFoundError:
            raise ModuleNotFoundError("looking up MX needs dnspython: pip install 'greensmtp[dns]'") from None
        self._resolver: Any = dns.asyncresolver.Resolver(configure=nameservers is None)
        if nameservers is not None:
            self._resolver.nameservers = [_nameserver(each) for each in nameservers]
        self._resolver.cache = dns.resolver.LRUCache(CACHED)
        self._lifetime = lifetime
        self._backend = _make_backend()

    def mx(self, domain: str) -> list[MailExchanger]:
        """Return the MX records of a domain."""
        found = self._ask(domain, "MX")
        return [MailExchanger(each.preference, each.exchange.to_text().rstrip(".").lower()) for each in found]

    def has_address(self, host: str) -> bool:
        """Return True if a host has an A or AAAA record."""
        return bool(self._ask(host, "A") or self._ask(host, "AAAA"))

    def txt(self, name: str) -> list[str]:
        """Return the TXT records of a name."""
        return [b"".join(each.strings).decode("ascii", "replace") for each in self._ask(name, "TXT")]

    def _ask(self, name: str, kind: str) -> list[Any]:
        import dns.exception
        import dns.name
        import dns.resolver

        try:
            wanted = dns.name.from_text(name.rstrip(".") + ".")
        except dns.exception.DNSException as error:  # an empty or too long label, for example; retrying cannot help
            raise NoSuchDomain(f"{name}: {str(error) or type(error).__name__}") from None
        question = self._resolver.resolve(
            wanted, kind, lifetime=self._lifetime, raise_on_no_answer=False, backend=self._backend
        )
        try:
            return list(_finish(question).rrset or ())
        except dns.resolver.NXDOMAIN:
            raise NoSuchDomain(name) from None
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise LookupFailed(f"{kind} of {name}: {str(error) or type(error).__name__}") from error


def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError("dnspython waited for something other than its backend")


def _nameserver(text: str) -> Any:
    import dns.nameserver

    from greensmtp._hostport import split

    host, port = split(text)
    return dns.nameserver.Do53Nameserver(host, port or 53)


def _timeout(seconds: float | None) -> Timeout:
    import dns.exception

    expired: Any = dns.exception.Timeout
    return Timeout(seconds, expired(timeout=seconds))


def _make_backend() -> Any:
    import dns._asyncbackend as base

    async def within(timeout: float | None, call: Any) -> Any:
        with _timeout(timeout):
            return call()

    class Wrapped:
        def __init__(self, made: Any) -> None:
            self.family, self.type = made.family, made.type
            self._socket = made

        async def close(self) -> None:
            self._socket.close()

        async def getpeername(self) -> Any:
            return self._socket.getpeername()

        async def getsockname(self) -> Any:
            return self._socket.getsockname()

    class Datagram(Wrapped, base.DatagramSocket):
        async def sendto(self, what: bytes, destination: Any, timeout: float | None) -> Any:
            return await within(timeout, lambda: self._socket.sendto(what, destination))

        async def recvfrom(self, size: int, timeout: float | None) -> Any:
            return await within(timeout, lambda: self._socket.recvfrom(size))

    class Stream(Wrapped, base.StreamSocket):
        async def sendall(self, what: bytes, timeout: float | None) -> Any:
            return await within(timeout, lambda: self._socket.sendall(what))

        async def recv(self, size: int, timeout: float | None) -> Any:
            return await within(timeout, lambda: self._socket.recv(size))

    class Backend(base.Backend):
        def name(self) -> str:
            return "gevent"

        async def make_socket(  # noqa: PLR0917 - as dnspython calls it
            self,
            af: int,
            socktype: int,
            proto: int = 0,
            source: Any = None,
            destination: Any = None,
            timeout: float | None = None,
            ssl_context: Any = None,
            server_hostname: Any = None,
        ) -> Any:
            made = socket.socket(af, socktype, proto)
            try:
                if source:
                    made.bind(source)
                if socktype == socket.SOCK_DGRAM:
                    return Datagram(made)
                await within(timeout, lambda: made.connect(destination))
                return Stream(made)
            except BaseException:
                made.close()
                raise

        async def sleep(self, interval: float) -> None:
            sleep(interval)

        async def wait_for(self, awaitable: Any, timeout: float | None) -> Any:
            with _timeout(timeout):
                return await awaitable

    return Backend()
