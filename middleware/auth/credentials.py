"""The interface of Auth's backends: an object with one or more of these methods."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from greensmtp.protocol.sasl.exchange import Exchange, ScramKeys
from greensmtp.session import Session


class Unavailable(Exception):
    """Raised by a backend that cannot answer: the reply is 454, and the text is logged. It must hold no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client has sent to authenticate. The repr shows no secret."""

    #: The name that the client gives. ``""`` with a token that brings the name itself.
    username: str
    #: The password, for PLAIN and LOGIN; never ``""``.
    password: str | None = field(repr=False)
    #: The token, for OAUTHBEARER and XOAUTH2.
    token: str | None = field(repr=False)
    #: The SASL mechanism: ``"PLAIN"``.
    mechanism: str
    #: The user that the client asks to act as; ``""``: the one that has authenticated.
    authzid: str
    session: Session = field(repr=False)


#: True: the credentials are right. A str: they are right, and this is the user's name. False or None: they are wrong.
Verdict = bool | str | None
#: A callable backend.
Check = Callable[[Credentials], Verdict]


@runtime_checkable
class PasswordVerifier(Protocol):
    """Serves PLAIN and LOGIN."""

    def check_password(self, credentials: Credentials, /) -> Verdict:
        """Return whether this is the user's password."""


@runtime_checkable
class TokenVerifier(Protocol):
    """Serves OAUTHBEARER and XOAUTH2."""

    def check_token(self, credentials: Credentials, /) -> Verdict:
        """Return whether the token is valid, or the name that it is valid for."""


@runtime_checkable
class PasswordStore(Protocol):
    """Serves CRAM-MD5, SCRAM, PLAIN and LOGIN, since it has the passwords themselves."""

    def get_password(self, username: str, /) -> str | None:
        """Return the user's password; None if there is no such user."""


@runtime_checkable
class ScramKeyStore(Protocol):
    """Serves SCRAM without knowing a password.

    The attribute ``scram_iterations`` gives the number of iterations (default: 4096), ``scram_salt_length`` the bytes
    of a salt (12 to 32; default: 16). Keys for unknown users are made up with the same numbers.
    """

    def get_scram_keys(self, username: str, /) -> ScramKeys | None:
        """Return the user's keys; None if there is no such user."""


@runtime_checkable
class MechanismRelay(Protocol):
    """Passes the exchange on to another server."""

    def offered_mechanisms(self) -> Collection[str]:
        """Return the mechanisms that the other server offers now."""

    def relay(self, mechanism: str, session: Session, /) -> Exchange:
        """Return the exchange, which the other server holds."""


Backend = PasswordVerifier | TokenVerifier | PasswordStore | ScramKeyStore | MechanismRelay
