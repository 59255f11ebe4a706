"""Who a client is, by its IP address: one address, or the network around it."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from greensmtp.session import Session

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

#: Bits of ``::ffff:0:0/96``: what a listener on ``::`` sees of an IPv4 client (RFC 4291 section 2.5.5.2).
_MAPPED_PREFIX = 96


@lru_cache(4096)
def read_address(host: str) -> IPAddress:
    """An IP address as a socket gives it; an IPv4-mapped IPv6 address is the IPv4 address.

    :raises ValueError: it is none.
    """
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


@lru_cache(4096)
def network_around(host: str, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """``network_of`` what a socket gives.

    :raises ValueError: it is no IP address.
    """
    return network_of(read_address(host), ipv4_prefix, ipv6_prefix)


def client_address(session: Session) -> IPAddress | None:
    """The client's address; None on a unix socket.

    :raises ValueError: the session's peer is something else.
    """
    host = session.peer_host
    return None if host is None else read_address(host)


def network_of(address: IPAddress, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """The network around an address: ``"192.0.2.0/24"``; ``"192.0.2.1"`` where it is the address alone."""
    prefix = ipv4_prefix if address.version == 4 else ipv6_prefix
    hidden = address.max_prefixlen - prefix
    base = type(address)(int(address) >> hidden << hidden)
    return f"{base}/{prefix}" if hidden else str(base)


def read_network(text: str) -> IPNetwork:
    """A network or a single address as people write it; an IPv4-mapped IPv6 network is the IPv4 network.

    :raises ValueError: it is none, or has bits set behind its prefix.
    """
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX))
    return network
