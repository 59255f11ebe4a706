"""aiosmtpd as tests/corpus expects a server: PORT LMTP_PORT CERT. It takes everything but one recipient."""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import Any

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult


class Nowhere:
    """Throws messages away."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        """Refuse one recipient."""
        if address == "no@example.com":
            return "550 5.1.1 No such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Accept."""
        return "250 2.0.0 Ok"


def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    """Know one user."""
    return AuthResult(success=(data.login, data.password) == (b"jo", b"secret"), handled=False)


async def serve(port: int, lmtp_port: int, cert: str) -> None:
    """Until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    options: dict[str, Any] = {
        "hostname": "mx.example.com",
        "tls_context": context,
        "data_size_limit": 1_000_000,
        "enable_SMTPUTF8": True,
        "authenticator": check,
        "auth_require_tls": False,
    }
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: LMTP(Nowhere(), **options), "127.0.0.1", lmtp_port)
    server = await loop.create_server(lambda: SMTP(Nowhere(), **options), "127.0.0.1", port)
    await server.serve_forever()


asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
