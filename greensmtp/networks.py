"""Clients by their IP addresses: one address, or the network around it. For middleware and predicates.

An IPv6 socket sees an IPv4 client as ``::ffff:192.0.2.1``. Here that is the IPv4 address everywhere.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from greensmtp.session import Session

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

#: The prefix length of ``::ffff:0:0/96``, which holds the IPv4 addresses (RFC 4291 section 2.5.5.2).
_MAPPED_PREFIX = 96


@lru_cache(4096)
def read_address(host: str) -> IPAddress:
    """Return the IP address that a socket gives as text.

    :raises ValueError: it is not an IP address.
    """
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def client_address(session: Session) -> IPAddress | None:
    """Return the client's address; None on a unix socket.

    :raises ValueError: the session's peer is not an IP address.
    """
    host = session.peer_host
    return None if host is None else read_address(host)


def network_of(address: IPAddress, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return the network around an address: ``"192.0.2.0/24"``, or ``"192.0.2.1"`` if it is that address alone."""
    prefix = ipv4_prefix if address.version == 4 else ipv6_prefix
    hidden = address.max_prefixlen - prefix
    base = type(address)(int(address) >> hidden << hidden)
    return f"{base}/{prefix}" if hidden else str(base)


@lru_cache(4096)
def network_around(host: str, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """Return ``network_of`` the address that a socket gives as text; the text itself if it is not an IP address."""
    try:
        address = read_address(host)
    except ValueError:
        return host  # the peer of a connection that was accepted elsewhere
    return network_of(address, ipv4_prefix, ipv6_prefix)


def read_network(text: str) -> IPNetwork:
    """Return a network, or a single address as a network of one; an IPv4-mapped IPv6 network is the IPv4 network.

    :raises ValueError: it is not a network, or has bits set beyond its prefix.
    """
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX))
    return network
