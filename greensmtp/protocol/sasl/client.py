"""The client's SASL mechanisms (RFC 4954), the strongest first. Bytes in and out, without base64 and without a socket.

A mechanism makes the initial response, answers challenges, and checks that the server has proved itself. It raises
SaslFailed where it cannot go on; the caller then cancels the exchange.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from greensmtp.protocol.errors import ProtocolError, SaslFailed


class Mechanism:
    """One exchange: ``initial``, then ``respond`` for each challenge, then ``check_success``."""

    name = ""
    #: What an eavesdropper gets. 0: a proof from which guessing is slow; 1: a digest from which it is fast; 2: the
    #: secret itself. Without TLS and ``allow_plaintext``, only 0 is used.
    exposes = 2
    #: The secret is an OAuth token instead of a password.
    takes_token = False
    #: ``respond`` computes for milliseconds, so it is called in the thread pool.
    slow = False
    #: The text of challenges matters. If not, it need not be base64 either.
    reads_challenges = True

    def __init__(self, username: str, secret: str) -> None:
        self._username = username
        self._secret = secret

    def initial(self) -> bytes | None:
        """Return the initial response (RFC 4954 section 4); None if the server sends a challenge first."""
        return None

    def respond(self, challenge: bytes) -> bytes:
        """Return the answer to a challenge.

        :raises SaslFailed: the mechanism has no such challenge; the exchange must be cancelled.
        """
        raise SaslFailed(f"the server sent a challenge that {self.name} does not have")

    def check_success(self) -> None:
        """Accept the server's positive reply.

        :raises SaslFailed: the mechanism needs a proof of the server, which has not come.
        """

    def __repr__(self) -> str:
        return f"<{self.name}>"  # without the secret


#: The iterations that a server may request. With fewer than 4096 (RFC 7677 section 4), a false server could guess the
#: password from our proof. More than a million would take seconds of CPU time.
SCRAM_ITERATIONS = range(4096, 1_000_001)


class ScramSHA256(Mechanism):
    """RFC 7677: neither side sends the password, and both prove that they know it. Needs ``greensmtp[scram]``."""

    name = "SCRAM-SHA-256"
    exposes = 0
    slow = True

    def __init__(self, username: str, secret: str) -> None:
        super().__init__(username, secret)
        from scramp import ScramClient  # type: ignore[import-untyped]

        try:
            self._client: Any = ScramClient([self.name], username, secret)
        except Exception as error:  # scramp's, about characters that RFC 4013 forbids; it does not show them
            raise SaslFailed(f"{self.name} does not allow this username or password: {error}") from None
        self._steps = iter((self._final, self._verify))
        self._verified = False

    def initial(self) -> bytes:
        first: str = self._client.get_client_first()
        return first.encode()

    def respond(self, challenge: bytes) -> bytes:
        step = next(self._steps, None)
        if step is None:
            return super().respond(challenge)
        try:
            return step(challenge.decode())
        except SaslFailed:
            raise
        except Exception as error:  # scramp's errors, and any that a malformed challenge causes in it
            raise SaslFailed(f"{self.name}: malformed or false challenge: {error}") from error

    def _final(self, challenge: str) -> bytes:
        self._client.set_server_first(challenge)
        iterations = int(self._client.iterations)
        if iterations not in SCRAM_ITERATIONS:
            raise SaslFailed(
                f"{self.name}: server requested {iterations} SCRAM iterations; "
                f"allowed: {SCRAM_ITERATIONS[0]} to {SCRAM_ITERATIONS[-1]}"
            )
        final: str = self._client.get_client_final()
        return final.encode()

    def _verify(self, challenge: str) -> bytes:
        self._client.set_server_final(challenge)
        self._verified = True
        return b""

    def check_success(self) -> None:
        if not self._verified:
            raise SaslFailed(f"{self.name}: the server did not prove that it knows the password")


class CramMD5(Mechanism):
    """RFC 2195."""

    name = "CRAM-MD5"
    exposes = 1
    _answered = False

    def respond(self, challenge: bytes) -> bytes:
        if self._answered:
            return super().respond(challenge)
        self._answered = True
        digest = hmac.new(self._secret.encode(), challenge, hashlib.md5).hexdigest()
        return f"{self._username} {digest}".encode()


class Plain(Mechanism):
    """RFC 4616."""

    name = "PLAIN"

    def initial(self) -> bytes:
        return f"\0{self._username}\0{self._secret}".encode()


class Login(Mechanism):
    """Never standardised: the server asks for the name, then for the password; its wording varies."""

    name = "LOGIN"
    reads_challenges = False

    def __init__(self, username: str, secret: str) -> None:
        super().__init__(username, secret)
        self._answers = iter((username, secret))

    def respond(self, challenge: bytes) -> bytes:
        answer = next(self._answers, None)
        return super().respond(challenge) if answer is None else answer.encode()


class OAuthBearer(Mechanism):
    """RFC 7628. A challenge is an error of the server, in JSON; the refusal follows an answer without content."""

    name = "OAUTHBEARER"
    takes_token = True
    _answered = False

    def __init__(self, username: str, secret: str) -> None:
        if "\x01" in username or "\x01" in secret:
            raise ProtocolError(f"{self.name}: username and token cannot have U+0001, which would end them")
        super().__init__(username, secret)

    def initial(self) -> bytes:
        name = self._username.replace("=", "=3D").replace(",", "=2C")
        return f"n,a={name},\x01auth=Bearer {self._secret}\x01\x01".encode()

    def respond(self, challenge: bytes) -> bytes:
        if self._answered:
            return super().respond(challenge)
        self._answered = True
        return b"\x01"


class XOAuth2(OAuthBearer):
    """The predecessor of RFC 7628 at Google and Microsoft."""

    name = "XOAUTH2"

    def initial(self) -> bytes:
        return f"user={self._username}\x01auth=Bearer {self._secret}\x01\x01".encode()

    def respond(self, challenge: bytes) -> bytes:
        super().respond(challenge)
        return b""


#: The strongest first.
MECHANISMS: Mapping[str, type[Mechanism]] = {
    mechanism.name: mechanism for mechanism in (ScramSHA256, CramMD5, OAuthBearer, XOAuth2, Plain, Login)
}


def choose(
    offered: Iterable[str], wanted: str | None, username: str, password: str | None, token: str | None
) -> Mechanism:
    """Return the strongest mechanism that the server offers and the credentials fit, or the one that is wanted.

    :param offered: the names in the server's offer.
    :param wanted: the only mechanism to use; None for the strongest. It need not be offered: some servers offer fewer
        than they accept.
    :raises SaslFailed: no mechanism fits.
    :raises ValueError: the wanted mechanism is unknown, or needs another kind of secret.
    :raises ImportError: the wanted mechanism needs a library that is not installed; the text names it.
    """
    if wanted is not None:
        kind = MECHANISMS.get(wanted.upper())
        if kind is None:
            raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, not {wanted!r}")
        secret = (token or password) if kind.takes_token else password
        if secret is None:
            raise ValueError(f"{kind.name} needs a {'token' if kind.takes_token else 'password'}")
        try:
            return kind(username, secret)
        except ModuleNotFoundError as error:
            raise ImportError(f"{kind.name} needs {error.name}: pip install 'greensmtp[scram]'") from error
    names = {name.upper() for name in offered}
    failure = SaslFailed(f"no mechanism in common: the server offers {' '.join(sorted(names)) or 'none'}")
    for name, kind in MECHANISMS.items():
        secret = token if kind.takes_token else password
        if name in names and secret is not None:
            try:
                return kind(username, secret)
            except ModuleNotFoundError:
                continue  # use the next strongest
            except SaslFailed as error:  # it does not allow these credentials; the next one may
                failure = error
    raise failure
