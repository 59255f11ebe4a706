"""Answers to the claims of SASL mechanisms, out of a backend; an unknown user costs as much as a known one."""

from __future__ import annotations

import hmac
import logging
from secrets import token_bytes, token_urlsafe
from typing import Any

from greensmtp.errors import ArgumentError
from greensmtp.middleware.auth.credentials import (
    Backend,
    Check,
    Credentials,
    PasswordStore,
    PasswordVerifier,
    ScramKeyStore,
    TokenVerifier,
    Verdict,
)
from greensmtp.protocol.sasl.exchange import (
    CredentialQuery,
    KeysQuery,
    PasswordQuery,
    ScramKeys,
    SecretQuery,
    TokenQuery,
    prepare_password,
)
from greensmtp.protocol.sasl.server import Need
from greensmtp.session import Session
from greensmtp.thread_pool import BoundedPool

logger = logging.getLogger("greensmtp")

#: Keys derived at once.
AT_ONCE = 4

#: What SASLprep works on for every user, since it looks at each character in Python: the password, and as much of this
#: as is missing from its length.
_FILLER = "x" * 64


class CredentialResolver:
    """Answers the claims of the mechanisms out of a backend.

    A user that does not exist costs as much as one that does: whatever is done for one is done for the other, with
    a password that nobody knows.

    :param secret: what SCRAM's salts are made with. Where it is the same in several processes, an unknown user has the
        same salt in all of them; None: a random one, of this process alone.
    """

    def __init__(self, backend: Backend, check_token: Check | None = None, secret: bytes | None = None) -> None:
        self._pepper = token_bytes(32)
        self._secret_of_salts = token_bytes(32) if secret is None else secret
        self._nobody = token_urlsafe(32)
        self._pool = BoundedPool(AT_ONCE)
        self._check = backend.check_password if isinstance(backend, PasswordVerifier) else None
        self._get_password = backend.get_password if isinstance(backend, PasswordStore) else None
        self._get_keys = backend.get_scram_keys if isinstance(backend, ScramKeyStore) else None
        #: What unknown users' keys are said to have been made with.
        self._iterations = _check_number("scram_iterations", getattr(backend, "scram_iterations", 4096), 4096)
        self._salt_length = _check_number("scram_salt_length", getattr(backend, "scram_salt_length", 16), 12, 32)
        self._has_warned = False
        self._check_token = check_token or (backend.check_token if isinstance(backend, TokenVerifier) else None)

    @property
    def serves(self) -> frozenset[Need]:
        """What it can answer."""
        can: dict[Need, bool] = {
            "check": self._check is not None or self._get_password is not None,
            "token": self._check_token is not None,
            "secret": self._get_password is not None,
            "keys": self._get_keys is not None or self._get_password is not None,
        }
        return frozenset(need for need, it_can in can.items() if it_can)

    def answer(self, claim: CredentialQuery, session: Session) -> Any:
        """What the mechanism is to be sent for its claim.

        Whatever the backend raises comes through.
        """
        if isinstance(claim, PasswordQuery):
            if self._check is None:
                return self._compare(claim)
            return _name(claim, self._check(_credentials(claim, session, password=claim.password)))
        if isinstance(claim, TokenQuery):
            assert self._check_token is not None
            return _name(claim, self._check_token(_credentials(claim, session, token=claim.token)))
        if isinstance(claim, SecretQuery):
            return self._secret(claim.username)
        if isinstance(claim, KeysQuery):
            return self._keys(claim.username)
        return None

    def _secret(self, username: str) -> str | None:
        assert self._get_password is not None
        password = self._get_password(username)
        if password is not None and not isinstance(password, str):
            raise TypeError(f"a password is a str, or None, not a {type(password).__name__}")
        return password or None

    def _compare(self, claim: PasswordQuery) -> str | None:
        password = self._secret(claim.username)
        # Of digests, which are of one length, with a key that nobody knows.
        expected, given = (self._digest(text) for text in (password or self._nobody, claim.password))
        return claim.username if hmac.compare_digest(expected, given) and password is not None else None

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._pepper, text.encode("utf-8", "surrogatepass"), "sha256")

    @property
    def knows_keys(self) -> bool:
        """The salts of known users are the backend's, so that a salt which changes is an unknown user's."""
        return self._get_keys is not None

    def _keys(self, username: str) -> ScramKeys:
        # Not random, but not to be foreseen either: an unknown user has the same salt at every try, too (RFC 5802
        # section 9).
        salt = self._made_up("salt", username)[: self._salt_length]
        if self._get_keys is not None:
            found = self._get_keys(username)
            made_up = self._made_up("key", username)
            if found is None:
                return ScramKeys(salt, made_up, made_up, self._iterations, False)
            self._warn_of_difference(_checked(found))
            return found
        # Derived each time, which takes a millisecond: who came quickly because he had been here before would be known
        # by that.
        return self._pool.call(_derive, self._secret(username), self._nobody, salt)

    def _warn_of_difference(self, keys: ScramKeys) -> None:
        """Log, once, that known users can be told from unknown ones by what their challenges show."""
        length, iterations = len(keys.salt), keys.iterations
        if self._has_warned or (length, iterations) == (self._salt_length, self._iterations):
            return
        self._has_warned = True
        logger.warning(
            "auth: SCRAM keys with %d octets of salt and %d iterations; unknown users are shown %d and %d, and can be "
            "told from known ones by that: set scram_salt_length and scram_iterations of the backend, and use the same "
            "for all users",
            *(length, iterations, self._salt_length, self._iterations),
        )

    def _made_up(self, what: str, username: str) -> bytes:
        return hmac.digest(self._secret_of_salts, f"{what}\0{username}".encode("utf-8", "surrogatepass"), "sha256")


def _derive(password: str | None, nobody: str, salt: bytes) -> ScramKeys:
    """Do the same work for every user. Runs in the thread pool."""
    prepared = None
    try:
        prepared = prepare_password(password or "")
    except ValueError:
        pass  # such a password cannot be given over SCRAM: it is nobody's
    prepare_password(_FILLER[len(password or "") :])
    return ScramKeys.of_prepared(prepared or nobody, salt, known=bool(prepared))


def _check_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ArgumentError(name, f"must be a whole number {limit}, not {value!r}")
    return value


def _checked(keys: Any) -> ScramKeys:
    if not isinstance(keys, ScramKeys):
        raise TypeError(f"get_scram_keys gives ScramKeys, or None, not a {type(keys).__name__}")
    return keys


def _credentials(
    claim: CredentialQuery, session: Session, password: str | None = None, token: str | None = None
) -> Credentials:
    return Credentials(claim.username, password, token, claim.mechanism, claim.authzid, session)


def _name(claim: CredentialQuery, verdict: Verdict) -> str | None:
    """The name that a check has come to; anything but a clear answer is an error, not a yes."""
    if verdict is False or verdict is None or verdict == "":
        return None
    name: Any = claim.username if verdict is True else verdict
    if not isinstance(name, str) or not name:
        raise TypeError("a check gives True, False or a name, and for a token that comes without a name, the name")
    return name
