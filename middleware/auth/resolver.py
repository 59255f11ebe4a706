"""Answers to the queries of SASL mechanisms, from a backend.

Rules of this file:

- An unknown user takes as long as a known one. Whatever is done for one is done for the other, with a password that no
  client knows (``_stand_in``).
- An unknown user looks like a known one: its SCRAM salt is the same at every attempt.
- No error shows a password or a token.
"""

from __future__ import annotations

import hmac
import logging
from secrets import token_bytes, token_urlsafe
from typing import Any

from greensmtp._fork_key import KEY
from greensmtp.middleware._validate import check_count
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

#: How many keys are derived at the same time.
AT_ONCE = 4

#: SASLprep looks at each character in Python. It is given the password and the rest of this text, so that it takes
#: equally long for every user.
_FILLER = "x" * 64


class CredentialResolver:
    """Answers the queries of the mechanisms from a backend.

    :param secret: the key of the salts for unknown users. With the same secret, several processes show the same salt;
        None: a random one for this process and those that it forks.
    """

    def __init__(self, backend: Backend, check_token: Check | None = None, secret: bytes | None = None) -> None:
        self._pepper = token_bytes(32)
        self._secret_of_salts = KEY if secret is None else secret
        self._stand_in = token_urlsafe(32)
        self._pool = BoundedPool(AT_ONCE)
        self._check = backend.check_password if isinstance(backend, PasswordVerifier) else None
        self._get_password = backend.get_password if isinstance(backend, PasswordStore) else None
        self._get_keys = backend.get_scram_keys if isinstance(backend, ScramKeyStore) else None
        #: How the keys of unknown users look.
        self._iterations = check_count("scram_iterations", getattr(backend, "scram_iterations", 4096), least=4096)
        self._salt_length = check_count(
            "scram_salt_length", getattr(backend, "scram_salt_length", 16), least=12, most=32
        )
        self._has_warned = False
        self._check_token = check_token or (backend.check_token if isinstance(backend, TokenVerifier) else None)

    @property
    def serves(self) -> frozenset[Need]:
        """The kinds of queries that it can answer."""
        can: dict[Need, bool] = {
            "check": self._check is not None or self._get_password is not None,
            "token": self._check_token is not None,
            "secret": self._get_password is not None,
            "keys": self._get_keys is not None or self._get_password is not None,
        }
        return frozenset(need for need, it_can in can.items() if it_can)

    def answer(self, query: CredentialQuery, session: Session) -> Any:
        """Return what the mechanism is to be sent for its query.

        :raises BaseException: whatever the backend raises.
        """
        if isinstance(query, PasswordQuery):
            if self._check is None:
                return self._compare(query)
            return _name(query, self._check(_credentials(query, session, password=query.password)))
        if isinstance(query, TokenQuery):
            assert self._check_token is not None
            return _name(query, self._check_token(_credentials(query, session, token=query.token)))
        if isinstance(query, SecretQuery):
            return self._password(query.username)
        if isinstance(query, KeysQuery):
            return self._keys(query.username)
        return None

    def _password(self, username: str) -> str | None:
        assert self._get_password is not None
        password = self._get_password(username)
        if password is not None and not isinstance(password, str):
            raise TypeError(f"get_password must return a str or None, not a {type(password).__name__}")
        return password or None

    def _compare(self, query: PasswordQuery) -> str | None:
        password = self._password(query.username)
        # Digests are compared: they have one length, and their key is secret.
        expected, given = (self._digest(text) for text in (password or self._stand_in, query.password))
        return query.username if hmac.compare_digest(expected, given) and password is not None else None

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._pepper, text.encode("utf-8", "surrogatepass"), "sha256")

    @property
    def knows_keys(self) -> bool:
        """True if the backend has the salts of known users. A salt that changes is then an unknown user's."""
        return self._get_keys is not None

    def _keys(self, username: str) -> ScramKeys:
        # Not random and not predictable: an unknown user has the same salt at every attempt (RFC 5802 section 9).
        salt = self._made_up("salt", username)[: self._salt_length]
        if self._get_keys is not None:
            found = self._get_keys(username)
            made_up = self._made_up("key", username)
            if found is None:
                return ScramKeys(salt, made_up, made_up, self._iterations, False)
            self._warn_of_difference(_checked(found))
            return found
        # Derived each time, which takes a millisecond. Keys from a cache would show that the user is known.
        return self._pool.call(_derive, self._password(username), self._stand_in, salt)

    def _warn_of_difference(self, keys: ScramKeys) -> None:
        """Log once that challenges distinguish known users from unknown ones."""
        length, iterations = len(keys.salt), keys.iterations
        if self._has_warned or (length, iterations) == (self._salt_length, self._iterations):
            return
        self._has_warned = True
        logger.warning(
            "auth: SCRAM keys with %d bytes of salt and %d iterations; unknown users get %d and %d, which "
            "distinguishes them from known users: set scram_salt_length and scram_iterations of the backend, "
            "and use the same for all users",
            *(length, iterations, self._salt_length, self._iterations),
        )

    def _made_up(self, what: str, username: str) -> bytes:
        return hmac.digest(self._secret_of_salts, f"{what}\0{username}".encode("utf-8", "surrogatepass"), "sha256")


def _derive(password: str | None, stand_in: str, salt: bytes) -> ScramKeys:
    """Derive keys, with the same work for every user. Runs in the thread pool."""
    prepared = None
    try:
        prepared = prepare_password(password or "")
    except ValueError:
        pass  # SCRAM cannot carry such a password: it never matches
    prepare_password(_FILLER[len(password or "") :])
    return ScramKeys.of_prepared(prepared or stand_in, salt, known=bool(prepared))


def _checked(keys: Any) -> ScramKeys:
    if not isinstance(keys, ScramKeys):
        raise TypeError(f"get_scram_keys must return ScramKeys or None, not a {type(keys).__name__}")
    return keys


def _credentials(
    query: CredentialQuery, session: Session, password: str | None = None, token: str | None = None
) -> Credentials:
    return Credentials(query.username, password, token, query.mechanism, query.authzid, session)


def _name(query: CredentialQuery, verdict: Verdict) -> str | None:
    """Return the user's name by the verdict of a check; None if it says no.

    :raises TypeError: the verdict is neither a bool nor a name. (It is not taken as a yes.)
    """
    if verdict is False or verdict is None or verdict == "":
        return None
    name: Any = query.username if verdict is True else verdict
    if not isinstance(name, str) or not name:
        raise TypeError("a check must return True, False or a name, and the name for a token that comes without one")
    return name
