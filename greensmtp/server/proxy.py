"""A connection from a trusted proxy: the PROXY header comes before all else, and names the client.

The rules of this file:

- The header is read before ACCEPT, so limits and access lists see the client, and never the proxy.
- Nothing is sent before the header has come, nor to a proxy whose header is malformed, late or unfinished; but 421 if
  the server stops, or gives the place to another connection.
- A proxy that speaks for itself is a client like any other, by its own address: LOCAL, UNKNOWN, and clients that have
  no IP address. A connection that is closed without a byte is a health check, too.
- A header that names the proxy's own end of this connection counts as LOCAL, which version 1 does not have: HAProxy's
  health checks begin so.
- TLS that the proxy has ended counts as TLS only where the server was told so.
"""

from __future__ import annotations

from dataclasses import replace

from greensmtp._log import logger
from greensmtp.errors import ConnectionLost
from greensmtp.networks import read_address
from greensmtp.protocol.proxy_header import ProxyHeader
from greensmtp.protocol.proxy_tlv import ProxyHeaderError
from greensmtp.server.handler import ConnectionHandler
from greensmtp.server.places import client_key
from greensmtp.session import SocketAddress

#: What is noted for a connection that was closed without a byte.
_HEALTH_CHECK = ProxyHeader(2, "UNKNOWN", is_local=True)


class ProxiedHandler(ConnectionHandler):
    """One connection from a trusted proxy."""

    __slots__ = ("proxy_tls",)

    #: True: TLS that the proxy has ended counts as the session's. The server sets it.
    proxy_tls: bool

    def _open(self) -> bool:
        """Read the header, then go on as with any connection."""
        if not self.transport.encrypted:  # a TLS socket is given to adopt() after its header has been read
            self._take(self._read_header())
        if not super()._open():
            return False
        if self.session.tls and not self.transport.encrypted:
            self._note_tls()
        return True

    def _read_header(self) -> ProxyHeader:
        """Return the header.

        :raises ConnectionLost: there is none, or a malformed one.
        """
        transport, session = self.transport, self.session
        try:
            return transport.read_proxy_header()
        except ConnectionLost as lost:
            if lost.reason == "closed":
                session.proxy = _HEALTH_CHECK
            raise
        except ProxyHeaderError as error:
            logger.info("%s: closed a connection from proxy %s: %s", session.id, session.peer_host or "unix", error)
            raise transport.fail("proxy") from None

    def _take(self, header: ProxyHeader) -> None:
        """Let the session, and the account of connections, have the client that the header names."""
        session = self.session
        if isinstance(header.source, tuple):
            host, port = header.source
            named = (str(read_address(host)), port)
            if named == _endpoint(session.peer):
                header = replace(header, is_local=True)
            session.peer = named
            self.registry.readdress(self, client_key(named))
        session.proxy = header
        session.tls = self.proxy_tls and header.ssl is not None and header.ssl.is_tls


def _endpoint(peer: SocketAddress) -> tuple[str, int] | None:
    """Return a socket's peer as a header names it; None for a unix socket, or a name that was given to adopt()."""
    try:
        return (str(read_address(peer[0])), peer[1]) if isinstance(peer, tuple) else None
    except ValueError:
        return None
