"""Channel bindings (RFC 5929): data that ties a SASL exchange to the TLS connection that carries it."""

from __future__ import annotations

import hashlib
from functools import lru_cache

#: The types that Python's ssl supports in a server. (It does not support ``tls-exporter``, RFC 9266.)
END_POINT = "tls-server-end-point"
UNIQUE = "tls-unique"

#: Signature algorithms without a hash of their own: TLS libraries disagree about the binding.
_WITHOUT_HASH = frozenset({"ed25519", "ed448"})

#: Hashes that a signature may use and a binding may not (RFC 5929 section 4.1).
_TOO_WEAK = frozenset({"md5", "sha1"})


@lru_cache(maxsize=16)
def end_point_binding(certificate: bytes) -> bytes | None:
    """Return the data of ``tls-server-end-point`` for a server's certificate (DER).

    Return None where the type is not defined: the signature has no hash algorithm (Ed25519), or one that hashlib
    lacks.

    :raises ImportError: asn1crypto is missing; it comes with ``greensmtp[scram]``.
    """
    from asn1crypto.x509 import Certificate  # type: ignore[import-untyped]

    try:
        parsed = Certificate.load(certificate)
        if parsed["signature_algorithm"]["algorithm"].native in _WITHOUT_HASH:
            return None
        name = str(parsed.hash_algo)
        return hashlib.new("sha256" if name in _TOO_WEAK else name, certificate).digest()
    except ValueError:
        return None
