"""What handlers and middleware may know of the server: the type of ``session.server``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ssl

    from greensmtp.session.signals import Signals


class ServerLimits(Protocol):
    """The limits that concern a transaction; ``greensmtp.Limits`` describes them, and has the others."""

    @property
    def max_message_size(self) -> int | None:
        """Bytes in a message; None: no limit."""

    @property
    def max_recipients(self) -> int:
        """Recipients in a transaction."""

    @property
    def ack_timeout(self) -> float:
        """Seconds for handlers to decide."""

    @property
    def handler_timeout(self) -> float:
        """Seconds for handlers and middleware to handle one command."""


class ServerInfo(Protocol):
    """A server as its sessions see it. Read-only; ``SMTPServer`` is one."""

    @property
    def hostname(self) -> str:
        """The server's name, in the banner and the reply to EHLO."""

    @property
    def lmtp(self) -> bool:
        """True if it speaks LMTP."""

    @property
    def address(self) -> tuple[str, int] | str:
        """The address it listens on: a pair of host and port (more for IPv6), or the path of a unix socket."""

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context of STARTTLS and implicit TLS; None without a certificate."""

    @property
    def implicit_tls(self) -> bool:
        """True if TLS begins with the connection (RFC 8314)."""

    @property
    def certificate(self) -> bytes | None:
        """The server's own certificate in DER, where it is known; for channel binding."""

    @property
    def limits(self) -> ServerLimits:
        """The limits that concern a transaction."""

    @property
    def draining(self) -> bool:
        """True once the server is stopping: it accepts no connections, and begins no transaction."""

    @property
    def signals(self) -> Signals:
        """The server's own signals."""
