"""Auth: who is there? AUTH (RFC 4954), the whole of it."""

from __future__ import annotations

import logging
import traceback
from base64 import b64encode
from binascii import Error as BadBase64
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gevent import Timeout

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError, ProtocolError, Reject
from greensmtp.middleware._pause import pause, waiting
from greensmtp.middleware.auth.attempts import Attempt, AttemptLimits
from greensmtp.middleware.auth.backends import Checker, Passwords, check_check, make_backend
from greensmtp.middleware.auth.credentials import Backend, Check, MechanismRelay, Unavailable, check_flag, check_seconds
from greensmtp.middleware.auth.dovecot import DovecotAuth
from greensmtp.middleware.auth.htpasswd import Htpasswd
from greensmtp.middleware.auth.mechanisms import MechanismPolicy
from greensmtp.middleware.auth.recipients import decides_recipients
from greensmtp.middleware.auth.resolver import CredentialResolver
from greensmtp.protocol import canned
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import Command, PathCommand
from greensmtp.protocol.esmtp import Extension, decode_xtext, offer
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import MAX_TEXT, Reply
from greensmtp.protocol.sasl.exchange import Channel, CredentialQuery, Exchange, Identity, Refused
from greensmtp.protocol.sasl.server import MECHANISMS
from greensmtp.protocol.state import State
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.chain.chain import StackInfo

logger = logging.getLogger("greensmtp")

#: RFC 4954 section 3: the parameter of MAIL, and its room on the line.
AUTH = Extension("AUTH", mail=frozenset({"AUTH"}), room={"MAIL": 500})

#: With ``required``, these take an identity, whoever implements them; all others of the RFCs are for getting one, or
#: for leaving (RFC 4954 section 6).
DEMANDING = (
    *("MAIL", "RCPT", "DATA", "BDAT", "BURL", "SEND", "SOML", "SAML"),
    *("VRFY", "EXPN", "ETRN", "ATRN", "TURN", "HELP"),
)

#: What a backend may raise without anything but this attempt coming to an end: ``sys.exit`` in it is a fault, too.
_FAULTS = (Exception, SystemExit)

#: What a challenge raises about the answer's line -> the reply to it.
_BAD_LINES = {
    str(reply): reply for reply in (canned.LINE_TOO_LONG, canned.BARE_NEWLINE, canned.NOT_SMTP, canned.LINE_WITHOUT_END)
}

#: Octets in ``secret``.
_LEAST_SECRET = 16

#: May this identity act as its authzid? ``(identity, session) -> bool``
Authorize = Callable[[Identity, Session], bool]


class Auth:
    """Lets clients say who they are, and sets ``session.identity`` when it is true.

    ``Auth({"beep": "boop"})``, ``Auth("htpasswd:/etc/mail/users", required=True)``. A success emits the signal
    ``auth``, whose receivers have the last word; the identity (``authcid``, ``authzid``, ``mechanism``; ``str()`` of
    it is the first) is kept over RSET and EHLO, and gone after STARTTLS.

    :param backend: who knows the users: a mapping of users to passwords; a callable ``(credentials) -> bool``, which
        runs in the connection's greenlet; ``"htpasswd:/path"``; ``"dovecot:/path/of/auth-client"``; or an object with
        one of the methods in ``greensmtp.middleware.auth.credentials``.
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
    :param failures_by_account: the same for one user from one network (IPv4 /24, IPv6 /64), other networks go on; from
        all networks together, five times as many, and further attempts wait, up to ten seconds.
    :param timeout: seconds that the backend has for one answer, until 454.
    :param secret: what SCRAM's salts for unknown users are made with, 16 octets or more: the same one for all
        processes that serve the same users, and kept. A random one when not given; then a user whose salt differs
        between two processes, or after a restart, does not exist.
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
        secret: bytes | str | None = None,
    ) -> None:
        if check_token is not None:
            check_check(check_token)
        if authorize is not None and not callable(authorize):
            raise TypeError("authorize is called as (identity, session) -> bool")
        self._backend = make_backend(backend)
        self._registrar = CredentialResolver(self._backend, check_token, _check_secret(secret))
        self._offer = MechanismPolicy(self._backend, self._registrar, mechanisms, allow_plaintext=allow_plaintext)
        #: Unknown users can be told from known ones by their salts.
        self._tells_by_salts = secret is None and self._registrar.knows_keys and self._offer.has_scram
        self.required = check_flag("required", required)
        self._allow_plaintext = check_flag("allow_plaintext", allow_plaintext)
        self._authorize = authorize
        self._timeout = check_seconds("timeout", timeout)
        self._limits = AttemptLimits(failures_by_client, failures_by_account)
        self._behaviours: dict[str, Callable[[Session, Command, Proceed], Reply]] = {
            "EHLO": self._greet,
            "LHLO": self._greet,
            "AUTH": self._auth,
            "MAIL": self._mail,
            **(dict.fromkeys(DEMANDING[1:], self._demand) if required else {}),
        }
        self.verbs = tuple(self._behaviours)

    def start(self, server: StackInfo) -> None:
        """Warn of what can be meant, and seldom is."""
        if self._tells_by_salts:
            logger.warning(
                "auth: SCRAM without Auth(secret=...): unknown users get other salts in every process, and can be told "
                "from known ones by that; pass the same secret in all processes"
            )
        if not self.required and not decides_recipients(server):
            logger.warning(
                "auth: nothing decides which recipients a client may send to, and clients need not authenticate "
                "(an open relay, where accepted mail is sent on): pass required=True, or connect a handler of 'to' "
                "that looks at session.identity"
            )

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
        except _FAULTS as error:
            self._complain(session, error)
            return reply
        return offer(reply, "AUTH", *names) if names else reply

    def _demand(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.identity is not None:
            return proceed(session, command)
        hidden = self._offer.needs_tls and not session.tls and session.server.tls_context is not None
        return canned.AUTH_NEEDS_STARTTLS if hidden else canned.AUTH_REQUIRED

    def _mail(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if self.required and session.identity is None:
            return self._demand(session, command, proceed)
        if isinstance(command, PathCommand) and command.error is None and "AUTH" in command.address.parameters:
            command = _with_submitter(command, trusted=session.identity is not None)
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
            return canned.SAY_AUTH
        name = words[0].upper()
        try:
            with self._patience():
                bindings = self._offer.bindings(session)
                usable = self._offer.usable(session, bindings)
        except _FAULTS as error:
            self._complain(session, error)
            return canned.AUTH_UNAVAILABLE
        if name not in usable:
            return self._offer.refusal(session, name)
        return self._attempt(session, name, Channel(session.server.hostname, bindings), words[1:])

    # One exchange

    def _attempt(self, session: Session, name: str, channel: Channel, initial: list[str]) -> Reply:
        attempt = Attempt(self._limits, session.peer_host, waiting(session))
        try:
            return self._try(session, name, channel, initial, attempt)
        finally:
            attempt.end()

    def _try(self, session: Session, name: str, channel: Channel, initial: list[str], attempt: Attempt) -> Reply:
        is_failure = True
        try:
            if initial and not MECHANISMS[name].takes_initial:
                return canned.AUTH_NO_INITIAL
            if not attempt.begin():
                raise Refused(canned.AUTH_TOO_MANY_FAILURES)
            responses = [b"" if word == "=" else _decode(word) for word in initial]
            identity = self._hold(session, self._begin(session, name, channel), responses, attempt)
            if identity.authzid and identity.authzid != identity.authcid and not self._authorized(identity, session):
                raise Refused(canned.AUTH_INVALID)
        except Refused as refused:
            reply, is_failure = refused.reply, refused.is_failure
        except Reject as reject:
            reply = Reply(reject.code, reject.message or "Refused")
        else:
            answer = session.ask("auth", identity=identity)
            assert answer is not None
            reply = answer
            if reply.is_positive:
                session.stage(setattr, session, "identity", identity)
                # (A success that another middleware refuses stays counted as a failure.)
                session.stage(attempt.succeed)
        # (421 is the peer's own doing: a line without end, or another protocol, in place of an answer.)
        if not reply.is_positive and (not is_failure or not (reply.is_permanent_failure or reply.ends_connection)):
            attempt.give_back()
        return reply

    def _begin(self, session: Session, name: str, channel: Channel) -> Exchange:
        if isinstance(self._backend, MechanismRelay) and self._offer.is_relayed(name):
            return self._backend.relay(name, session)
        return MECHANISMS[name].begin(channel)

    def _hold(self, session: Session, exchange: Exchange, responses: list[bytes], attempt: Attempt) -> Identity:
        """Pass on challenges and responses, and answer the claims, to the end."""
        answer: Any = None
        try:
            while True:
                try:
                    with self._patience():
                        step = exchange.send(answer)
                    while isinstance(step, CredentialQuery):
                        _admit(session, attempt, step)
                        with self._patience():
                            step = exchange.send(self._registrar.answer(step, session))
                except StopIteration as end:
                    identity: Identity = end.value
                    return identity
                except (Refused, Reject):
                    raise
                except _FAULTS as error:
                    if error is session.close_error:
                        raise
                    self._complain(session, error)
                    raise Refused(canned.AUTH_UNAVAILABLE) from None
                except KeyboardInterrupt as error:  # which ends the program, but does not go unexplained
                    self._complain(session, error)
                    raise
                answer = responses.pop() if responses else _respond(session, step)
        finally:
            exchange.close()

    def _authorized(self, identity: Identity, session: Session) -> bool:
        if self._authorize is None:
            return False
        try:
            with self._patience():
                return self._authorize(identity, session) is True
        except _FAULTS as error:
            self._complain(session, error)
            raise Refused(canned.AUTH_UNAVAILABLE) from None

    def _patience(self) -> Timeout:
        return Timeout(self._timeout, Unavailable(f"no answer within {self._timeout:g} s"))

    def _complain(self, session: Session, error: BaseException) -> None:
        """Log what went wrong, and where, but not an error's text: nobody knows what it holds."""
        if isinstance(error, Unavailable):
            logger.error("%s: auth: %s: %s", session.id, self._shown, shown(error))
            return
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        logger.error("%s: auth: %s raised %s:\n%s", session.id, self._shown, type(error).__name__, where)

    @property
    def _shown(self) -> str:
        """The backend. One that is not ours may have a secret in its repr."""
        ours = isinstance(self._backend, Passwords | Checker | Htpasswd | DovecotAuth)
        return repr(self._backend) if ours else type(self._backend).__name__

    def __repr__(self) -> str:
        flags = {"required": self.required, "allow_plaintext": self._allow_plaintext}
        return f"Auth({', '.join([self._shown, *(f'{flag}=True' for flag, is_set in flags.items() if is_set)])})"


def _check_secret(secret: bytes | str | None) -> bytes | None:
    """
    :raises TypeError, ValueError: it is none; the text shows nothing of it.
    """
    if secret is None:
        return None
    if not isinstance(secret, bytes | str):
        raise TypeError(f"secret must be bytes or a str, not {type(secret).__name__}")
    octets = secret.encode() if isinstance(secret, str) else secret
    if len(octets) < _LEAST_SECRET:
        raise ArgumentError("secret", f"must have at least {_LEAST_SECRET} octets, not {len(octets)}")
    return octets


def _out_of_place(session: Session) -> Reply | None:
    """AUTH may not come now (RFC 4954 sections 3 and 4)."""
    if session.greeting in (None, "helo"):
        return canned.AUTH_NEEDS_EHLO
    if session.identity is not None:
        return canned.AUTH_ALREADY
    if session.state > State.GREETED:
        return canned.AUTH_IN_TRANSACTION
    return None


def _admit(session: Session, attempt: Attempt, claim: CredentialQuery) -> None:
    """Count the attempt for the account it is at; refuse it, or have it wait, where there have been too many."""
    seconds = attempt.claim(claim.username)
    if seconds is None:
        raise Refused(canned.AUTH_TOO_MANY_FAILURES)
    if seconds:
        session.flush()
        pause(session, seconds)


def _respond(session: Session, challenge: bytes) -> bytes:
    text = b64encode(challenge).decode()
    if len(text) > MAX_TEXT:
        raise Refused(canned.AUTH_UNAVAILABLE)  # it would be folded into several lines
    try:
        line = session.challenge(text)
    except ProtocolError as error:
        raise Refused(_BAD_LINES.get(str(error), canned.LINE_TOO_LONG)) from None
    if line == b"*":
        raise Refused(canned.AUTH_CANCELLED)
    return _decode(line)


def _decode(text: str | bytes) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except (BadBase64, ValueError):
        raise Refused(canned.AUTH_BAD_BASE64) from None


def _with_submitter(command: PathCommand, *, trusted: bool) -> PathCommand:
    """MAIL with its AUTH= decoded; from a client that has not authenticated it means ``<>`` (RFC 4954 section 5), and
    so does what is no mailbox: Dovecot's submission service sends the name that its user has logged in with."""
    address = command.address
    submitter = "<>"
    if trusted:
        try:
            decoded = decode_xtext(address.parameters["AUTH"] or "")
            if decoded != "<>" and (mailbox := Address.parse(decoded)):
                submitter = mailbox  # not a plain str: the client knows by it that xtext has been decoded
        except ProtocolError:
            pass
    known = address.with_parameters({**address.parameters, "AUTH": submitter})
    return PathCommand(command.verb, command.argument, known)
