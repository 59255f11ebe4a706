"""Auth: who is there? AUTH (RFC 4954), the whole of it."""

from __future__ import annotations

import logging
import traceback
from base64 import b64encode
from binascii import Error as BadBase64
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gevent import Timeout

from greensmtp.chain import Proceed
from greensmtp.errors import ProtocolError, Reject
from greensmtp.middleware._addresses import network_around
from greensmtp.middleware._backends import Checker, Passwords, check_check, make_backend
from greensmtp.middleware._failures import Failures, account_of
from greensmtp.middleware._offer import Offer
from greensmtp.middleware._registrar import Registrar
from greensmtp.middleware.credentials import Backend, Check, Relays, Unavailable, check_flag, check_seconds
from greensmtp.middleware.dovecot import DovecotAuth
from greensmtp.middleware.htpasswd import Htpasswd
from greensmtp.protocol import standard
from greensmtp.protocol.addresses import Address
from greensmtp.protocol.commands import Command, PathCommand
from greensmtp.protocol.extensions import Extension
from greensmtp.protocol.replies import MAX_TEXT, Reply
from greensmtp.protocol.sasl_claims import Channel, Claim, Exchange, Identity, Refused
from greensmtp.protocol.sasl_server import MECHANISMS
from greensmtp.protocol.states import State
from greensmtp.protocol.xtext import decode_xtext
from greensmtp.session import Session

logger = logging.getLogger("greensmtp")

#: RFC 4954 section 3: the parameter of MAIL, and its room on the line.
AUTH = Extension("AUTH", mail=frozenset({"AUTH"}), room={"MAIL": 500})

#: With ``required``, these take an identity, whoever implements them; all others of the RFCs are for getting one, or
#: for leaving (RFC 4954 section 6).
DEMANDING = (
    *("MAIL", "RCPT", "DATA", "BDAT", "BURL", "SEND", "SOML", "SAML"),
    *("VRFY", "EXPN", "ETRN", "ATRN", "TURN", "HELP"),
)

#: What a challenge raises about the answer's line -> the reply to it.
_BAD_LINES = {
    str(reply): reply
    for reply in (standard.LINE_TOO_LONG, standard.BARE_NEWLINE, standard.NOT_SMTP, standard.LINE_WITHOUT_END)
}

#: May this identity act as its authzid? ``(identity, session) -> bool``
Authorize = Callable[[Identity, Session], bool]


class Auth:
    """Lets clients say who they are, and sets ``session.identity`` when it is true.

    ``Auth({"beep": "boop"})``, ``Auth("htpasswd:/etc/mail/users", required=True)``. A success emits the signal
    ``auth``, whose receivers have the last word; the identity (``authcid``, ``authzid``, ``mechanism``; ``str()`` of
    it is the first) is kept over RSET and EHLO, and gone after STARTTLS.

    :param backend: who knows the users: a mapping of users to passwords; a callable ``(credentials) -> bool``, which
        runs in the connection's greenlet; ``"htpasswd:/path"``; ``"dovecot:/path/of/auth-client"``; or an object with
        one of the methods in ``greensmtp.middleware.credentials``.
    :param mechanisms: those to offer; all that the backend can serve when not given (SCRAM only where scramp is
        installed).
    :param required: no mail without it: 530.
    :param allow_plaintext: PLAIN, LOGIN and tokens without TLS, too. Whoever reads along has the password then.
    :param check_token: for OAUTHBEARER and XOAUTH2: a callable ``(credentials) -> bool``; or it gives the name that
        the token is for.
    :param authorize: may this identity act as its ``authzid``? ``(identity, session) -> bool``. Nobody may act as
        anybody else when not given.
    :param failures_by_client: failed attempts from one address (IPv6: one /64) until 454, before anything is
        checked: ``"10/minute"``; None: any number.
    :param failures_by_account: the same for one user, wherever they come from.
    :param timeout: seconds that the backend has for one answer, until 454.
    :raises ValueError, TypeError: an argument cannot be right; the text says what it takes.
    :raises ImportError: a library is missing; the text says what to install.
    """

    extensions = (AUTH,)

    def __init__(
        self,
        backend: Backend | Mapping[str, str] | Check | str,
        mechanisms: Sequence[str] | None = None,
        required: bool = False,
        allow_plaintext: bool = False,
        *,
        check_token: Check | None = None,
        authorize: Authorize | None = None,
        failures_by_client: str | None = "20/minute",
        failures_by_account: str | None = "20/minute",
        timeout: float = 30.0,
    ) -> None:
        if check_token is not None:
            check_check(check_token)
        if authorize is not None and not callable(authorize):
            raise TypeError("authorize is called as (identity, session) -> bool")
        self._backend = make_backend(backend)
        self._registrar = Registrar(self._backend, check_token)
        self._offer = Offer(self._backend, self._registrar, mechanisms, allow_plaintext=allow_plaintext)
        self._required = check_flag("required", required)
        self._allow_plaintext = check_flag("allow_plaintext", allow_plaintext)
        self._authorize = authorize
        self._timeout = check_seconds("timeout", timeout)
        self._by_client = _failures("failures_by_client", failures_by_client)
        self._by_account = _failures("failures_by_account", failures_by_account)
        self._behaviours: dict[str, Callable[[Session, Command, Proceed], Reply]] = {
            "EHLO": self._greet,
            "LHLO": self._greet,
            "AUTH": self._auth,
            "MAIL": self._mail,
            **(dict.fromkeys(DEMANDING[1:], self._demand) if required else {}),
        }
        self.verbs = tuple(self._behaviours)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Answer AUTH; offer it in the reply to EHLO; ask for it where it is required."""
        return self._behaviours[command.verb](session, command, proceed)

    # The commands

    def _greet(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        # Nobody may say AUTH a second time (RFC 4954 section 4), so nobody is told to.
        if reply.code != 250 or session.identity is not None:
            return reply
        try:
            with self._patience():
                names = self._offer.usable(session, self._offer.bindings(session))
        except Exception as error:
            self._complain(session, error)
            return reply
        return Reply(250, *reply.lines, f"AUTH {' '.join(names)}", enhanced=None) if names else reply

    def _demand(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.identity is not None:
            return proceed(session, command)
        hidden = self._offer.needs_tls and not session.tls and session.server.tls_context is not None
        return standard.AUTH_NEEDS_STARTTLS if hidden else standard.AUTH_REQUIRED

    def _mail(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if self._required and session.identity is None:
            return self._demand(session, command, proceed)
        if isinstance(command, PathCommand) and command.error is None and "AUTH" in command.address.parameters:
            try:
                command = _with_submitter(command, trusted=session.identity is not None)
            except ProtocolError as error:
                return Reply(501, f"5.5.4 AUTH= takes a mailbox or <>: {error}")
        return proceed(session, command)

    def _auth(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        # The signal `command` is for every command: who decides it takes the place of what follows.
        reply = session.ask("command", command=command)
        if reply is not None:
            return reply
        refusal = command.error or _out_of_place(session)
        if refusal is not None:
            return refusal
        words = command.argument.split()
        if not 1 <= len(words) <= 2:
            return standard.SAY_AUTH
        name = words[0].upper()
        try:
            with self._patience():
                bindings = self._offer.bindings(session)
                usable = self._offer.usable(session, bindings)
        except Exception as error:
            self._complain(session, error)
            return standard.AUTH_UNAVAILABLE
        if name not in usable:
            return self._offer.refusal(session, name)
        return self._attempt(session, name, Channel(session.server.hostname, bindings), words[1:])

    # One exchange

    def _attempt(self, session: Session, name: str, channel: Channel, initial: list[str]) -> Reply:
        taken: list[tuple[Failures, str]] = []
        try:
            if initial and not MECHANISMS[name].takes_initial:
                return standard.AUTH_NO_INITIAL
            client = _network(session.peer_host)
            if client is not None:
                _take(self._by_client, client, taken)
            responses = [b"" if word == "=" else _decode(word) for word in initial]
            identity = self._hold(session, self._begin(session, name, channel), responses, taken)
            if identity.authzid and identity.authzid != identity.authcid and not self._authorized(identity, session):
                raise Refused(standard.AUTH_INVALID)
        except Refused as refused:
            reply = refused.reply
        except Reject as reject:
            reply = Reply(reject.code, reject.message or "Refused")
        else:
            answer = session.ask("auth", identity=identity)
            assert answer is not None
            reply = answer
            if reply.is_positive:
                session.identity = identity
        # (421 is the peer's own doing: a line without end, or another protocol, in place of an answer.)
        if not reply.is_permanent_failure and not reply.ends_connection:
            for failures, key in taken:
                failures.give_back(key)
        return reply

    def _begin(self, session: Session, name: str, channel: Channel) -> Exchange:
        if isinstance(self._backend, Relays) and self._offer.is_relayed(name):
            return self._backend.relay(name, session)
        return MECHANISMS[name].begin(channel)

    def _hold(
        self, session: Session, exchange: Exchange, responses: list[bytes], taken: list[tuple[Failures, str]]
    ) -> Identity:
        """Pass on challenges and responses, and answer the claims, to the end."""
        answer: Any = None
        try:
            while True:
                try:
                    with self._patience():
                        step = exchange.send(answer)
                        while isinstance(step, Claim):
                            _take(self._by_account, account_of(step.username), taken)
                            step = exchange.send(self._registrar.answer(step, session))
                except StopIteration as end:
                    identity: Identity = end.value
                    return identity
                except (Refused, Reject):
                    raise
                except Exception as error:
                    if error is session.link.lost:
                        raise
                    self._complain(session, error)
                    raise Refused(standard.AUTH_UNAVAILABLE) from None
                answer = responses.pop() if responses else _respond(session, step)
        finally:
            exchange.close()

    def _authorized(self, identity: Identity, session: Session) -> bool:
        if self._authorize is None:
            return False
        try:
            with self._patience():
                return self._authorize(identity, session) is True
        except Exception as error:
            self._complain(session, error)
            raise Refused(standard.AUTH_UNAVAILABLE) from None

    def _patience(self) -> Timeout:
        return Timeout(self._timeout, Unavailable(f"no answer within {self._timeout:g} s"))

    def _complain(self, session: Session, error: Exception) -> None:
        """Log what went wrong, and where, but not an error's text: nobody knows what it holds."""
        if isinstance(error, Unavailable):
            logger.error("%s: auth: %s: %s", session.id, self._shown, error)
            return
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        logger.error("%s: auth: %s raised %s:\n%s", session.id, self._shown, type(error).__name__, where)

    @property
    def _shown(self) -> str:
        """The backend. One that is not ours may have a secret in its repr."""
        ours = isinstance(self._backend, Passwords | Checker | Htpasswd | DovecotAuth)
        return repr(self._backend) if ours else type(self._backend).__name__

    def __repr__(self) -> str:
        flags = {"required": self._required, "allow_plaintext": self._allow_plaintext}
        return f"Auth({', '.join([self._shown, *(f'{flag}=True' for flag, is_set in flags.items() if is_set)])})"


def _out_of_place(session: Session) -> Reply | None:
    """AUTH may not come now (RFC 4954 sections 3 and 4)."""
    if session.greeting in (None, "helo"):
        return standard.AUTH_NEEDS_EHLO
    if session.identity is not None:
        return standard.AUTH_ALREADY
    if session.state > State.GREETED:
        return standard.AUTH_IN_TRANSACTION
    return None


def _network(host: str | None) -> str | None:
    """Whom a client's failures are counted for; None: everybody on a unix socket is trusted not to guess."""
    if host is None:
        return None
    try:
        return network_around(host, 32, 64)
    except ValueError:
        return host


def _failures(name: str, limit: str | None) -> Failures | None:
    return None if limit is None else Failures(limit, name)


def _take(failures: Failures | None, key: str, taken: list[tuple[Failures, str]]) -> None:
    """Count this attempt, or refuse it. (A token without a name is nobody's account.)"""
    if failures is not None and key:
        if not failures.take(key):
            raise Refused(standard.AUTH_TOO_MANY_FAILURES)
        taken.append((failures, key))


def _respond(session: Session, challenge: bytes) -> bytes:
    text = b64encode(challenge).decode()
    if len(text) > MAX_TEXT:
        raise Refused(standard.AUTH_UNAVAILABLE)  # it would be folded into several lines
    try:
        line = session.challenge(text)
    except ProtocolError as error:
        raise Refused(_BAD_LINES.get(str(error), standard.LINE_TOO_LONG)) from None
    if line == b"*":
        raise Refused(standard.AUTH_CANCELLED)
    return _decode(line)


def _decode(text: str | bytes) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except (BadBase64, ValueError):
        raise Refused(standard.AUTH_BAD_BASE64) from None


def _with_submitter(command: PathCommand, *, trusted: bool) -> PathCommand:
    """MAIL with its AUTH= decoded; from a client that has not authenticated it means nobody (RFC 4954 section 5).

    :raises ProtocolError: it is no mailbox.
    """
    address = command.address
    submitter = decode_xtext(address.parameters["AUTH"] or "")
    if submitter != "<>" and not Address.parse(submitter):
        raise ProtocolError("there is none")
    parameters = MappingProxyType(
        {**address.parameters, "AUTH": Address.parse(submitter) if trusted and submitter != "<>" else "<>"}
    )
    known = Address(str(address), address.local_part, address.domain, parameters)
    return PathCommand(command.verb, command.argument, known)
