"""The credentials of a pool, and whether the server refused them."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from greensmtp.client.client import SMTPClient
from greensmtp.errors import AuthenticationFailed
from greensmtp.protocol.reply import Reply

#: Seconds for which refused credentials are not tried again.
REFUSED_SECONDS = 300.0

#: A password or token; or a function that returns one, called for each new connection.
Secret = str | Callable[[], str | None] | None


class PoolLogin:
    """Log in with a pool's credentials, and remember a refusal.

    Refused credentials are not tried on another host or connection, since repeated failures lock accounts.
    """

    def __init__(
        self, username: str, password: Secret, token: Secret, mechanism: str | None, *, allow_plaintext: bool
    ) -> None:
        self._username = username
        self._password = password
        self._token = token
        self._mechanism = mechanism
        self._allow_plaintext = allow_plaintext
        #: True once a server has accepted them. Until then they are tried on one connection at a time.
        self.proven = False
        #: The refusal, the refused credentials, and the time until which they are not tried again.
        self._refusal: Reply | None = None
        self._refused: tuple[str | None, str | None] = (None, None)
        self._refused_until = 0.0

    @property
    def refused(self) -> bool:
        """True if a server has refused the credentials, so that no other host needs to be tried."""
        return self._refusal is not None

    def check(self) -> None:
        """Check that the credentials may be tried.

        :raises AuthenticationFailed: a server refused them less than REFUSED_SECONDS ago.
        """
        refusal = self._refusal
        if refusal is None:
            return
        if monotonic() < self._refused_until and self._current() == self._refused:
            raise _refused(refusal)
        if refusal is self._refusal:  # a callable may have let other greenlets run
            self._refusal = None
            self._refused = (None, None)

    def log_in(self, client: SMTPClient) -> None:
        """Log in on a new connection.

        :raises AuthenticationFailed: the server refuses the credentials, or they cannot be sent to it.
        """
        password, token = self._current()
        reply = client.login(
            self._username,
            password,
            token=token,
            mechanism=self._mechanism,
            allow_plaintext=self._allow_plaintext,
        )
        self.proven = reply.is_positive
        if reply.is_permanent_failure:
            self._refusal, self._refused = reply, (password, token)
            self._refused_until = monotonic() + REFUSED_SECONDS
        if not reply.is_positive:
            raise _refused(reply)

    def _current(self) -> tuple[str | None, str | None]:
        password, token = self._password, self._token
        return password() if callable(password) else password, token() if callable(token) else token


def _refused(reply: Reply) -> AuthenticationFailed:
    return AuthenticationFailed(f"the server refuses the credentials: {reply}", reply)
