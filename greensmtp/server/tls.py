"""TLS contexts with current defaults."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from gevent import ssl as gevent_ssl

from greensmtp.errors import ArgumentError

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def server_context(certfile: str | Path, keyfile: str | Path | None = None) -> ssl.SSLContext:
    """Return a context for a server: TLS 1.2 or later, with the default ciphers of Python's ssl.

    :param certfile: PEM, the certificate followed by its chain.
    :param keyfile: PEM; None: the key is in ``certfile``.
    :raises ValueError: a file cannot be read, or does not hold what it should; the text says which.
    """
    for name, path in (("certfile", certfile), ("keyfile", keyfile)):
        if path is not None:
            if not isinstance(path, str | Path):
                raise TypeError(f"{name} takes the path of a PEM file, not {path!r}")
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                raise ArgumentError(name, f"{str(path)!r} cannot be read: {error.strerror}") from error
    context: ssl.SSLContext = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    locked = False

    def no_password() -> bytes:
        """Called by OpenSSL for an encrypted key, instead of a prompt at the terminal that would block the hub."""
        nonlocal locked
        locked = True
        return b""

    try:
        context.load_cert_chain(str(certfile), None if keyfile is None else str(keyfile), no_password)
    except (ssl.SSLError, OSError) as error:
        if locked:
            raise ArgumentError(
                "certfile" if keyfile is None else "keyfile",
                f"{str(keyfile or certfile)!r} is encrypted: remove its passphrase (openssl pkey -in OLD -out NEW), "
                "and let file permissions protect it",
            ) from None
        text = Path(certfile).read_text("latin-1")
        if keyfile is None and _CERTIFICATE.search(text) and not _KEY.search(text):
            raise ArgumentError(
                "certfile", f"{str(certfile)!r} contains no private key (PEM), and no separate key file is given"
            ) from error
        raise ArgumentError(
            "certfile",
            f"{str(certfile)!r} and {str(keyfile or certfile)!r} must be a certificate and its private key, both PEM: "
            f"{error}",
        ) from error
    return context


def own_certificate(certfile: str | Path) -> bytes | None:
    """Return the first certificate of a PEM file in DER, which is the server's own; None if there is none."""
    found = _CERTIFICATE.search(Path(certfile).read_text("latin-1"))
    return None if found is None else ssl.PEM_cert_to_DER_cert(found[0])
