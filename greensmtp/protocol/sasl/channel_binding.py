"""Channel bindings (RFC 5929): what ties a SASL exchange to the TLS connection that it is held over."""

from __future__ import annotations

import hashlib
from functools import lru_cache

#: The types that Python's ssl lets a server have. (``tls-exporter``, RFC 9266, is not among them.)
END_POINT = "tls-server-end-point"
UNIQUE = "tls-unique"

#: What the one side would bind to, the other would not: libraries do not agree about these.
_WITHOUT_HASH = frozenset({"ed25519", "ed448"})

#: Hashes that a signature may have been made with, and a binding may not (RFC 5929 section 4.1).
_TOO_WEAK = frozenset({"md5", "sha1"})


@lru_cache(maxsize=16)
def end_point_binding(certificate: bytes) -> bytes | None:
    """The data of ``tls-server-end-point`` for a server's certificate (DER); None where the type is not defined for
    it, because its signature has no hash function of its own (Ed25519) or one that hashlib does not have.

    :raises ImportError: asn1crypto, which comes with ``greensmtp[scram]``, is missing.
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
