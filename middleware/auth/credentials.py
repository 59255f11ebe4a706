"""What a backend of Auth is: one who knows the users, and has one or more of these methods."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from greensmtp.errors import ArgumentError
from greensmtp.protocol.sasl.exchange import Exchange, ScramKeys
from greensmtp.session import Session


class Unavailable(Exception):
    """A backend cannot say who is who just now: the client gets 454, the log gets the text, which holds no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client has shown. The repr has no secret in it."""

    #: Who he says he is; with a token it may be ``""``, the token says it then.
    username: str
    #: The password, for PLAIN and LOGIN; never ``""``.
    password: str | None = field(repr=False)
    #: The token, for OAUTHBEARER and XOAUTH2.
    token: str | None = field(repr=False)
    #: ``"PLAIN"``.
    mechanism: str
    #: Whom he wants to act as; ``""``: himself.
    authzid: str
    session: Session = field(repr=False)


#: True: that is him. A str: that is him, and this is the name he is known by. False or None: no.
Verdict = bool | str | None
#: A callable backend.
Check = Callable[[Credentials], Verdict]


@runtime_checkable
class PasswordVerifier(Protocol):
    """Serves PLAIN and LOGIN."""

    def check_password(self, credentials: Credentials, /) -> Verdict:
        """Is this his password?"""


@runtime_checkable
class TokenVerifier(Protocol):
    """Serves OAUTHBEARER and XOAUTH2."""

    def check_token(self, credentials: Credentials, /) -> Verdict:
        """Is this a good token of his?"""


@runtime_checkable
class PasswordStore(Protocol):
    """Serves CRAM-MD5, SCRAM, PLAIN and LOGIN: it knows the passwords themselves."""

    def get_password(self, username: str, /) -> str | None:
        """His password; None: there is no such user."""


@runtime_checkable
class ScramKeyStore(Protocol):
    """Serves SCRAM without knowing a password.

    Where the keys are made with another number of iterations than 4096, an attribute ``scram_iterations`` says which,
    and ``scram_salt_length`` where their salts have other than 16 octets (12 to 32): unknown users are to look the
    same.
    """

    def get_scram_keys(self, username: str, /) -> ScramKeys | None:
        """His keys; None: there is no such user."""


@runtime_checkable
class MechanismRelay(Protocol):
    """Another server holds the exchange."""

    def offered_mechanisms(self) -> Collection[str]:
        """The mechanisms that it has just now."""

    def relay(self, mechanism: str, session: Session, /) -> Exchange:
        """Hold one exchange."""


Backend = PasswordVerifier | TokenVerifier | PasswordStore | ScramKeyStore | MechanismRelay


def check_seconds(name: str, value: Any) -> float:
    """A time-out, in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ArgumentError(name, f"takes a number of seconds above 0, not {value!r}")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """Yes or no; a str like "no" is neither."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} takes True or False, not {value!r}")
    return value


def check_path(name: str, value: Any) -> str:
    """The path of a file or a socket."""
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError(f"{name} takes a path, a str or a Path, not a {type(value).__name__}")
    return str(value)
