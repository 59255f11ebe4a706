"""What a server's SASL exchange is made of: challenges, claims about users and their answers, and its end.

An exchange is a generator. It yields challenges (``bytes``), and is sent the client's responses; it yields claims,
and is sent what whoever knows the users says to them; it returns the Identity, or raises Refused.
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
    """The exchange has come to nothing; ``reply`` says why.

    ``is_failure`` is false where no credentials were shown, so that this attempt is no failed login.
    """

    def __init__(self, reply: Reply, *, is_failure: bool = True) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.is_failure = is_failure


@dataclass(frozen=True, slots=True)
class Identity:
    """Who has authenticated; ``str()`` of it is ``authcid``.

    ``authcid`` is whose credentials these were, ``authzid`` whom he wants to act as, ``""``: himself (RFC 4422
    section 2).
    """

    authcid: str
    authzid: str = ""
    mechanism: str = ""

    def __str__(self) -> str:
        return self.authcid


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a server keeps instead of a password, for SCRAM-SHA-256 (RFC 5802 section 3); no secret in its repr.

    :raises ValueError: a salt of less than 12 octets, keys that are not 32 octets long, less than 4096 iterations.
    """

    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    iterations: int = 4096
    #: False: made up, so that nobody can tell that there is no such user; every proof is refused.
    known: bool = True

    def __post_init__(self) -> None:
        if len(self.salt) < 12 or len(self.stored_key) != 32 or len(self.server_key) != 32 or self.iterations < 4096:
            raise ValueError(
                "ScramKeys takes 12 octets of salt or more, keys of 32 octets, and 4096 iterations or more"
            )

    @classmethod
    def derive(
        cls, password: str, salt: bytes | None = None, iterations: int = 4096, *, known: bool = True
    ) -> ScramKeys:
        """The keys of a password. It computes for milliseconds: keep it off the hub. Needs ``greensmtp[scram]``.

        :raises ValueError: the password has characters that SASLprep does not allow (RFC 4013).
        """
        return cls.of_prepared(prepare_password(password), salt or token_bytes(16), iterations, known=known)

    @classmethod
    def of_prepared(cls, password: str, salt: bytes, iterations: int = 4096, *, known: bool = True) -> ScramKeys:
        """The keys of a password that has been prepared (RFC 5802 section 3)."""
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        return cls(salt, hashlib.sha256(client_key).digest(), server_key, iterations, known)


def prepare_password(password: str) -> str:
    """Apply SASLprep (RFC 4013). Needs ``greensmtp[scram]``.

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
    """Somebody says that he is ``username``. By itself it is proved otherwise; its answer is not looked at."""

    username: str
    mechanism: str
    authzid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordQuery(CredentialQuery):
    """... and gives his password. The answer: his name, as it is to be known from now on, or None."""

    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuery(CredentialQuery):
    """... and gives a token; ``username`` may be ``""`` when the token says that. The answer is as to a password."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretQuery(CredentialQuery):
    """... and will prove that he knows the password: what is it? The answer: a str, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysQuery(CredentialQuery):
    """... and will prove that he knows the password: what are its keys? The answer: ScramKeys, always."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What an exchange knows of the connection."""

    #: The server's name.
    hostname: str
    #: Type -> data of the channel bindings that there are; empty where -PLUS is not offered.
    bindings: Mapping[str, bytes] = field(default_factory=dict)


Exchange = Generator[bytes | CredentialQuery, Any, Identity]
