"""Running one SASL exchange with a client: challenges, responses, and the queries of its mechanism."""

from __future__ import annotations

import logging
import traceback
from base64 import b64encode
from binascii import Error as BadBase64
from binascii import a2b_base64
from collections.abc import Callable
from typing import Any

from gevent import Timeout

from greensmtp.errors import MalformedAnswer, Reject
from greensmtp.middleware._pause import pause
from greensmtp.middleware.auth.attempts import Attempt
from greensmtp.middleware.auth.backends import Checker, Passwords
from greensmtp.middleware.auth.credentials import Backend, Unavailable
from greensmtp.middleware.auth.dovecot import DovecotAuth
from greensmtp.middleware.auth.htpasswd import Htpasswd
from greensmtp.middleware.auth.resolver import CredentialResolver
from greensmtp.protocol import canned
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import MAX_TEXT
from greensmtp.protocol.sasl.exchange import CredentialQuery, Exchange, Identity, Refused
from greensmtp.session import Session

logger = logging.getLogger("greensmtp")

#: What a backend may raise to fail one attempt alone. ``sys.exit`` in a backend is a fault like any other.
FAULTS = (Exception, SystemExit)

#: May this identity act as its authzid? ``(identity, session) -> bool``
Authorize = Callable[[Identity, Session], bool]


class ExchangeRunner:
    """Runs exchanges, and logs the faults of the backend.

    :param authorize: decides whether an identity may act as another one; None: it may not.
    :param timeout: seconds for each call of the backend.
    """

    def __init__(
        self, backend: Backend, resolver: CredentialResolver, authorize: Authorize | None, timeout: float
    ) -> None:
        self._backend = backend
        self._resolver = resolver
        self._authorize = authorize
        self._timeout = timeout

    def run(self, session: Session, exchange: Exchange, responses: list[bytes], attempt: Attempt) -> Identity:
        """Run an exchange to its end, and return the identity that it has proved.

        :param responses: the initial response, if the client has sent one.
        :raises Refused: the exchange has failed.
        """
        identity = self._exchange(session, exchange, responses, attempt)
        if identity.authzid and identity.authzid != identity.authcid and not self._is_authorized(identity, session):
            raise Refused(canned.AUTH_INVALID)
        return identity

    def _exchange(self, session: Session, exchange: Exchange, responses: list[bytes], attempt: Attempt) -> Identity:
        answer: Any = None
        try:
            while True:
                try:
                    with self.limit_time():
                        step = exchange.send(answer)
                    while isinstance(step, CredentialQuery):
                        _count_for_account(session, attempt, step)
                        with self.limit_time():
                            step = exchange.send(self._resolver.answer(step, session))
                except StopIteration as end:
                    identity: Identity = end.value
                    return identity
                except (Refused, Reject):
                    raise
                except FAULTS as error:
                    if error is session.close_error:
                        raise
                    self.log_fault(session, error)
                    raise Refused(canned.AUTH_UNAVAILABLE) from None
                except KeyboardInterrupt as error:  # ends the program, and the log tells where it came from
                    self.log_fault(session, error, "ending the program")
                    raise
                answer = responses.pop() if responses else _ask_client(session, step)
        finally:
            exchange.close()

    def _is_authorized(self, identity: Identity, session: Session) -> bool:
        if self._authorize is None:
            return False
        try:
            with self.limit_time():
                return self._authorize(identity, session) is True
        except FAULTS as error:
            self.log_fault(session, error)
            raise Refused(canned.AUTH_UNAVAILABLE) from None

    def limit_time(self) -> Timeout:
        """Return a timeout for one call of the backend; it raises Unavailable."""
        return Timeout(self._timeout, Unavailable(f"no answer within {self._timeout:g} s"))

    def log_fault(self, session: Session, error: BaseException, action: str = "replying 454") -> None:
        """Log what was raised, and where. The text of an unknown error is left out: it may hold a secret."""
        if isinstance(error, Unavailable):
            logger.error("%s: auth: %s: %s; %s", session.log_id, self, shown(error), action)
            return
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        logger.error("%s: auth: %s raised %s; %s\n%s", session.log_id, self, type(error).__name__, action, where)

    def __str__(self) -> str:
        """The backend. The repr of a user's own class is left out: it may hold a secret."""
        is_ours = isinstance(self._backend, Passwords | Checker | Htpasswd | DovecotAuth)
        return repr(self._backend) if is_ours else type(self._backend).__name__


def decode_response(text: str | bytes) -> bytes:
    """Decode a response.

    :raises Refused: it is not base64.
    """
    try:
        return a2b_base64(text, strict_mode=True)
    except (BadBase64, ValueError):
        raise Refused(canned.AUTH_BAD_BASE64) from None


def _count_for_account(session: Session, attempt: Attempt, query: CredentialQuery) -> None:
    """Count the attempt for its account; refuse or delay it after too many failures."""
    seconds = attempt.count_for_account(query.username)
    if seconds is None:
        raise Refused(canned.AUTH_TOO_MANY_FAILURES)
    if seconds:
        session.flush()
        pause(session, seconds)


def _ask_client(session: Session, challenge: bytes) -> bytes:
    text = b64encode(challenge).decode()
    if len(text) > MAX_TEXT:
        raise Refused(canned.AUTH_UNAVAILABLE)  # the reply would be folded into several lines
    try:
        line = session.challenge(text)
    except MalformedAnswer as error:
        raise Refused(error.reply) from None
    if line == b"*":
        raise Refused(canned.AUTH_CANCELLED)
    return decode_response(line)
