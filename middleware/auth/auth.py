"""Auth: authentication of clients by AUTH (RFC 4954)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError, Reject
from greensmtp.middleware._pause import waiting
from greensmtp.middleware._validate import check_flag, check_seconds
from greensmtp.middleware.auth.attempts import Attempt, AttemptLimits
from greensmtp.middleware.auth.backends import check_check, make_backend
from greensmtp.middleware.auth.credentials import Backend, Check, MechanismRelay
from greensmtp.middleware.auth.exchange import FAULTS, Authorize, ExchangeRunner, decode_response
from greensmtp.middleware.auth.mechanisms import CertificateUser, MechanismPolicy, user_of
from greensmtp.middleware.auth.recipients import decides_recipients
from greensmtp.middleware.auth.resolver import CredentialResolver
from greensmtp.middleware.auth.submitter import with_submitter
from greensmtp.protocol import canned
from greensmtp.protocol.command import Command, PathCommand
from greensmtp.protocol.esmtp import Extension, offer
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl.exchange import Channel, Exchange, Refused
from greensmtp.protocol.sasl.server import MECHANISMS
from greensmtp.protocol.state import State
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.chain.chain import StackInfo

logger = logging.getLogger("greensmtp")

#: The parameter of MAIL, and the bytes that it adds to the line's limit (RFC 4954 section 3).
AUTH = Extension("AUTH", mail=frozenset({"AUTH"}), room={"MAIL": 500}, verbs=frozenset({"AUTH"}))

#: With ``required``, these commands need an identity, in whatever middleware they are implemented. All other commands
#: of the RFCs serve to authenticate, or to leave (RFC 4954 section 6).
NEED_IDENTITY = (
    *("MAIL", "RCPT", "DATA", "BDAT", "BURL", "SEND", "SOML", "SAML"),
    *("VRFY", "EXPN", "ETRN", "ATRN", "TURN", "HELP"),
)

#: Bytes that ``secret`` must have.
_MIN_SECRET = 16


class Auth:
    """Authenticates clients, and sets ``session.identity``.

    ``Auth({"beep": "boop"})``, ``Auth("htpasswd:/etc/mail/users", required=True)``. A success emits the signal
    ``auth``, whose receivers decide last. The identity has ``authcid``, ``authzid`` and ``mechanism``; ``str()`` of it
    is the authcid. It is kept over RSET and EHLO, and dropped by STARTTLS.

    :param backend: a mapping of users to passwords; a callable ``(credentials) -> bool``, which runs in the
        connection's greenlet; ``"htpasswd:/path"``; ``"dovecot:/path/of/auth-client"``; or an object with one of the
        methods in ``greensmtp.middleware.auth.credentials``.
    :param mechanisms: the mechanisms to offer. Default: all that the backend can serve (SCRAM only where scramp is
        installed).
    :param required: reply 530 to mail commands before a client has authenticated.
    :param allow_plaintext: allow PLAIN, LOGIN and tokens without TLS as well. They can be read on the wire.
    :param check_token: for OAUTHBEARER and XOAUTH2: a callable ``(credentials) -> bool``. It may return the user's name
        instead of True.
    :param authorize: decides whether an identity may act as its ``authzid``: ``(identity, session) -> bool``. Default:
        no identity may act as another one.
    :param external: offer EXTERNAL to clients with a certificate that ``client_ca`` of the server's TLS has signed. The
        user is the mail address in it, or else its common name; or what this callable returns for the certificate
        (None: nobody). The backend is not asked about that user.
    :param failures_by_client: failed attempts from one address (IPv6: one /64) before the reply is 454 and nothing is
        checked: ``"10/minute"``; None: no limit.
    :param failures_by_account: the same for one user from one network (IPv4 /24, IPv6 /64). Other networks are not
        affected. Beyond five times as many failures from all networks, attempts are delayed by up to ten seconds.
    :param timeout: seconds for each call of the backend; then the reply is 454.
    :param secret: the key of SCRAM's salts for unknown users, 16 bytes or more. Pass the same, lasting secret to all
        processes that serve the same users. Otherwise a salt that differs between two processes, or after a restart,
        shows that a user does not exist. Default: random.
    :raises ValueError, TypeError: an argument is invalid; the text says what is expected.
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
        external: bool | CertificateUser = False,
        failures_by_client: str | None = "20/minute",
        failures_by_account: str | None = "20/minute",
        timeout: float = 30.0,
        secret: bytes | str | None = None,
    ) -> None:
        if check_token is not None:
            check_check(check_token)
        if authorize is not None and not callable(authorize):
            raise TypeError(f"authorize must be a callable (identity, session) -> bool, not {authorize!r}")
        self._backend = make_backend(backend)
        resolver = CredentialResolver(self._backend, check_token, _check_secret(secret))
        self._policy = MechanismPolicy(
            self._backend,
            resolver,
            mechanisms,
            allow_plaintext=allow_plaintext,
            certificate_user=_check_external(external),
        )
        self._runner = ExchangeRunner(self._backend, resolver, authorize, check_seconds("timeout", timeout))
        #: Salts distinguish unknown users from known ones.
        self._salts_reveal_users = secret is None and resolver.knows_keys and self._policy.has_scram
        self.required = check_flag("required", required)
        self._allow_plaintext = check_flag("allow_plaintext", allow_plaintext)
        self._limits = AttemptLimits(failures_by_client, failures_by_account)
        self._handlers: dict[str, Callable[[Session, Command, Proceed], Reply]] = {
            "EHLO": self._hello,
            "LHLO": self._hello,
            "AUTH": self._auth,
            "MAIL": self._mail,
            **(dict.fromkeys(NEED_IDENTITY[1:], self._require) if required else {}),
        }
        self.verbs = tuple(self._handlers)

    def start(self, server: StackInfo) -> None:
        """Warn about settings that are valid but seldom intended."""
        if self._salts_reveal_users:
            logger.warning(
                "auth: SCRAM without Auth(secret=...): unknown users get other salts after each start, and can be told "
                "from known ones by that; pass the same secret in all processes"
            )
        if not self.required and not decides_recipients(server):
            logger.warning(
                "auth: nothing decides which recipients a client may send to, and clients need not authenticate "
                "(an open relay, where accepted mail is sent on): pass required=True, or connect a handler of 'to' "
                "that looks at session.identity"
            )

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Handle AUTH, offer it in the reply to EHLO, and require it where configured."""
        return self._handlers[command.verb](session, command, proceed)

    # The commands

    def _hello(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        # A client may authenticate once (RFC 4954 section 4), so AUTH is not offered again.
        if reply.code != 250 or session.identity is not None:
            return reply
        try:
            with self._runner.limit_time():
                names = self._policy.usable(session, self._policy.bindings(session))
        except FAULTS as error:
            self._runner.log_fault(session, error, "not offering AUTH")
            return reply
        return offer(reply, "AUTH", *names) if names else reply

    def _require(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.identity is not None:
            return proceed(session, command)
        needs_starttls = self._policy.needs_tls and not session.tls and session.server.tls_context is not None
        return canned.AUTH_NEEDS_STARTTLS if needs_starttls else canned.AUTH_REQUIRED

    def _mail(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if self.required and session.identity is None:
            return self._require(session, command, proceed)
        if isinstance(command, PathCommand) and command.error is None and "AUTH" in command.address.parameters:
            command = with_submitter(command, trusted=session.identity is not None)
        return proceed(session, command)

    def _auth(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        # The signal `command` is emitted for every command, and a handler may answer in the place of Auth.
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
            with self._runner.limit_time():
                bindings = self._policy.bindings(session)
                usable = self._policy.usable(session, bindings)
                client = self._policy.client(session)
        except FAULTS as error:
            self._runner.log_fault(session, error)
            return canned.AUTH_UNAVAILABLE
        if name not in usable:
            return self._policy.refusal(session, name)
        channel = Channel(session.server.hostname, bindings, client)
        attempt = Attempt(self._limits, session.peer_host, waiting(session))
        try:
            return self._try(session, name, channel, words[1:], attempt)
        finally:
            attempt.end()

    def _try(self, session: Session, name: str, channel: Channel, initial: list[str], attempt: Attempt) -> Reply:
        is_failure = True
        try:
            if initial and not MECHANISMS[name].takes_initial:
                return canned.AUTH_NO_INITIAL
            if not attempt.begin():
                raise Refused(canned.AUTH_TOO_MANY_FAILURES)
            responses = [b"" if word == "=" else decode_response(word) for word in initial]
            identity = self._runner.run(session, self._begin(session, name, channel), responses, attempt)
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
                # Staged: a success that an outer middleware refuses stays counted as a failure.
                session.stage(attempt.succeed)
        # 421 counts as a failure: the client sent a line without end, or another protocol, in place of an answer.
        if not reply.is_positive and (not is_failure or not (reply.is_permanent_failure or reply.ends_connection)):
            attempt.give_back()
        return reply

    def _begin(self, session: Session, name: str, channel: Channel) -> Exchange:
        if isinstance(self._backend, MechanismRelay) and self._policy.is_relayed(name):
            return self._backend.relay(name, session)
        return MECHANISMS[name].begin(channel)

    def __repr__(self) -> str:
        flags = {"required": self.required, "allow_plaintext": self._allow_plaintext}
        return f"Auth({', '.join([str(self._runner), *(f'{flag}=True' for flag, is_set in flags.items() if is_set)])})"


def _check_secret(secret: bytes | str | None) -> bytes | None:
    """Return the secret as bytes.

    :raises TypeError, ValueError: it is invalid; the text shows nothing of it.
    """
    if secret is None:
        return None
    if not isinstance(secret, bytes | str):
        raise TypeError(f"secret must be bytes or a str, not {type(secret).__name__}")
    data = secret.encode() if isinstance(secret, str) else secret
    if len(data) < _MIN_SECRET:
        raise ArgumentError("secret", f"must have at least {_MIN_SECRET} bytes, not {len(data)}")
    return data


def _check_external(external: bool | CertificateUser) -> CertificateUser | None:
    if isinstance(external, bool):
        return user_of if external else None
    if not callable(external):
        raise ArgumentError(
            "external", f"takes True, False or a callable (certificate) -> str | None, not {external!r}"
        )
    return external


def _out_of_place(session: Session) -> Reply | None:
    """Return the refusal of AUTH where it is not allowed (RFC 4954 sections 3 and 4)."""
    if session.greeting in (None, "helo"):
        return canned.AUTH_NEEDS_EHLO
    if session.identity is not None:
        return canned.AUTH_ALREADY
    if session.state > State.GREETED:
        return canned.AUTH_IN_TRANSACTION
    return None
