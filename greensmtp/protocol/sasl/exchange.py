"""The parts of a server's SASL exchange: challenges, queries about credentials, and the identity at its end.

An exchange is a generator. It yields a challenge (``bytes``) and is sent the client's response. It yields a
CredentialQuery and is sent the answer of the credential store. It returns the Identity, or raises Refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Any

from greensmtp.protocol.reply import Reply


class Refused(Exception):
    """The exchange has failed; ``reply`` is for the client.

    ``is_failure`` is false where the client has shown no credentials, so that this attempt is not a failed login.
    """

    def __init__(self, reply: Reply, *, is_failure: bool = True) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.is_failure = is_failure


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated user; ``str()`` of it is ``authcid``.

    ``authcid`` is the user whose credentials these were. ``authzid`` is the user to act as, ``""`` for the same one
    (RFC 4422 section 2).
    """

    authcid: str
    authzid: str = ""
    mechanism: str = ""

    def __str__(self) -> str:
        return self.authcid


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """The keys that a server stores instead of a password, for SCRAM-SHA-256 (RFC 5802 section 3); hidden in its repr.

    :raises ValueError: the salt has less than 12 bytes, a key not 32 bytes, or there are less than 4096 iterations.
    """

    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    iterations: int = 4096
    #: False: made up for an unknown user, so that a client cannot tell; every proof is refused.
    known: bool = True

    def __post_init__(self) -> None:
        if len(self.salt) < 12 or len(self.stored_key) != 32 or len(self.server_key) != 32 or self.iterations < 4096:
            raise ValueError(
                "ScramKeys takes a salt of at least 12 bytes, keys of 32 bytes, and at least 4096 iterations"
            )

    @classmethod
    def derive(
        cls, password: str, salt: bytes | None = None, iterations: int = 4096, *, known: bool = True
    ) -> ScramKeys:
        """Return the keys of a password. Call it in a thread pool: it takes milliseconds. Needs ``greensmtp[scram]``.

        :raises ValueError: the password has characters that SASLprep does not allow (RFC 4013).
        """
        return cls.of_prepared(prepare_password(password), salt or token_bytes(16), iterations, known=known)

    @classmethod
    def of_prepared(cls, password: str, salt: bytes, iterations: int = 4096, *, known: bool = True) -> ScramKeys:
        """Return the keys of a password that SASLprep has been applied to (RFC 5802 section 3)."""
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        return cls(salt, hashlib.sha256(client_key).digest(), server_key, iterations, known)


def prepare_password(password: str) -> str:
    """Apply SASLprep (RFC 4013) to a password. Needs ``greensmtp[scram]``.

    :raises ValueError: the password has characters that SASLprep does not allow.
    """
    from scramp import ScramException  # type: ignore[import-untyped]
    from scramp.utils import saslprep  # type: ignore[import-untyped]

    try:
        prepared: str = saslprep(password)
    except ScramException:
        raise ValueError("SASLprep does not allow this password") from None
    return prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialQuery:
    """The client claims to be ``username``. This base class: the claim was proved already; the answer is ignored."""

    username: str
    mechanism: str
    authzid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordQuery(CredentialQuery):
    """A password to check. The answer: the name by which the user is known from now on, or None if it is wrong."""

    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuery(CredentialQuery):
    """A token to check; ``username`` may be ``""`` if the token names the user. The answer: as to a password."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretQuery(CredentialQuery):
    """A password that the mechanism needs itself, to check a digest. The answer: a str, or None if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysQuery(CredentialQuery):
    """The keys of a password, to check a SCRAM proof. The answer: ScramKeys, for unknown users too."""


@dataclass(frozen=True, slots=True)
class Channel:
    """The connection, as an exchange needs it."""

    #: The server's name.
    hostname: str
    #: The channel bindings: type -> data; empty where -PLUS is not offered.
    bindings: Mapping[str, bytes] = field(default_factory=dict)
    #: The user that the client's certificate names, for EXTERNAL; None without one.
    client: str | None = None


Exchange = Generator[bytes | CredentialQuery, Any, Identity]
