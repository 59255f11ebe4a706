"""TLS contexts with current defaults."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

from gevent import ssl as gevent_ssl

from greensmtp.errors import ArgumentError

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_CLIENT_AUTH = {False: ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


#: OpenSSL's reason -> the text for an error
_REASONS = {
    "KEY_VALUES_MISMATCH": "the key belongs to another certificate",
    "KEY_TYPE_MISMATCH": "the key is of another type than that of the certificate",
    "NO_START_LINE": "there is no PEM block that can be read",
    "BAD_END_LINE": "a PEM block has no end; is the file complete?",
    "BAD_BASE64_DECODE": "a PEM block is damaged",
    "EE_KEY_TOO_SMALL": "the key is too short for OpenSSL's security level; use RSA of 2048 bits or more",
    "CA_MD_TOO_WEAK": "the certificate has a signature that OpenSSL's security level forbids, such as SHA-1",
}


class ServerContext(gevent_ssl.SSLContext):
    """A context of a server, with its certificate."""

    #: The server's own certificate in DER, for channel binding.
    certificate: bytes | None = None


def server_context(
    certfile: str | Path,
    keyfile: str | Path | None = None,
    *,
    minimum: str = "1.2",
    ciphers: str | None = None,
    tickets: bool = False,
    client_ca: str | Path | None = None,
    client_auth: object = False,
) -> ServerContext:
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
            except (OSError, ValueError) as error:
                raise ArgumentError(name, f"{str(path)!r} cannot be read: {_reason(error)}") from error
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    if minimum not in [*_VERSIONS]:  # a list, since the given value may not be hashable
        raise ArgumentError("minimum", f"takes {' or '.join(map(repr, _VERSIONS))}, not {minimum!r}")
    context.minimum_version = _VERSIONS[minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    if ciphers is not None:
        try:
            context.set_ciphers(ciphers)
        except (ssl.SSLError, TypeError, ValueError) as error:
            raise ArgumentError("ciphers", f"{ciphers!r} names no cipher that OpenSSL has") from error
    _ask_clients(context, client_ca, client_auth)
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
            f"{_reason(error)}",
        ) from error
    context.certificate = own_certificate(certfile)
    return context


def _reason(error: Exception) -> str:
    """Return the cause of an error with a PEM file, without OpenSSL's names and line numbers."""
    if not isinstance(error, ssl.SSLError):
        return getattr(error, "strerror", None) or str(error)
    # OpenSSL gives no reason where it finds no PEM block at all: "PEM lib (_ssl.c:4149)".
    found = getattr(error, "reason", None) or ""
    return _REASONS.get(found) or found.replace("_", " ").lower() or "there is no PEM block that can be read"


def _ask_clients(context: ssl.SSLContext, client_ca: str | Path | None, client_auth: object) -> None:
    if not isinstance(client_auth, bool | str) or client_auth not in _CLIENT_AUTH:
        raise ArgumentError("client_auth", f"takes 'optional', 'required' or False, not {client_auth!r}")
    if client_ca is not None:
        try:
            context.load_verify_locations(str(client_ca))
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = "no certificates in PEM" if isinstance(error, ssl.SSLError) else _reason(error)
            raise ArgumentError("client_ca", f"{str(client_ca)!r} cannot be used: {reason}") from error
    context.verify_mode = _CLIENT_AUTH[client_auth]


def _decode(certfile: str | Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ssl._ssl._test_decode_cert(str(certfile))  # type: ignore[attr-defined]
    except (ssl.SSLError, OSError) as error:
        raise ArgumentError("certfile", f"{str(certfile)!r} is no certificate: {_reason(error)}") from error
    return found


def end_of(certfile: str | Path) -> float:
    """Return when a certificate expires, in seconds since 1970.

    :raises ValueError: it cannot be read.
    """
    return float(ssl.cert_time_to_seconds(_decode(certfile)["notAfter"]))


def names_in(certfile: str | Path) -> list[str]:
    """Return the host names in a certificate (RFC 6125 section 6.4): subjectAltName, or else the common name.

    :raises ValueError: it cannot be read.
    """
    found = _decode(certfile)
    names = [value for kind, value in found.get("subjectAltName", ()) if kind == "DNS"]
    if not found.get("subjectAltName"):
        names = [value for parts in found.get("subject", ()) for key, value in parts if key == "commonName"]
    return names


def own_certificate(certfile: str | Path) -> bytes | None:
    """Return the first certificate of a PEM file in DER, which is the server's own; None if there is none."""
    found = _CERTIFICATE.search(Path(certfile).read_text("latin-1"))
    return None if found is None else ssl.PEM_cert_to_DER_cert(found[0])
