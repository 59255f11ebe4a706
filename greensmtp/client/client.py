"""The client: ``send`` for a whole message and ``login``, on top of one method for each command."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from typing import Unpack

from greensmtp.client.auth import check_credential, log_in
from greensmtp.client.commands import ClientCommands
from greensmtp.client.envelope_lines import MailExt, RcptExt
from greensmtp.client.envelope_options import SendKeywords
from greensmtp.client.message import PreparedMessage, Sendable
from greensmtp.client.options import UNVERIFIED, StartTLS
from greensmtp.client.signing import Signer
from greensmtp.client.transactions import Transactions
from greensmtp.errors import (
    AuthenticationFailed,
    ClientError,
    Disconnected,
    HelloRefused,
    TLSFailed,
    TLSRefused,
    TLSUnverified,
)
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.sasl import client as sasl
from greensmtp.protocol.send_result import SendResult

logger = logging.getLogger("greensmtp")


class SMTPClient(ClientCommands):
    """A connection to a server, used by one greenlet at a time. ``connect`` returns one.

    Each command is a method that returns the Reply; 4xx and 5xx are returned like any other. A ClientError means that
    the connection is closed: it was lost, or the replies are out of step. A ProtocolError about an
    argument (CR or LF in it, not a mailbox) is raised before anything is sent.

    As a context manager, it sends QUIT at the end of the block.
    """

    # High level

    def send(
        self,
        message: Sendable,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        from_ext: MailExt = None,
        to_ext: RcptExt | Sequence[RcptExt] = None,
        raise_on_partial: bool = False,
        add_fields: bool | None = None,
        sign: Signer | None = None,
        **options: Unpack[SendKeywords],
    ) -> SendResult:
        """Send a message. EHLO is sent first if necessary, and STARTTLS as ``starttls=`` requires.

        It takes several transactions if the server limits the recipients or messages that it accepts at once
        (LIMITS, 452). Another connection is opened for that only if it can replace this one: the client must have
        opened it itself, and must not have sent AUTH or XCLIENT.

        :param message: an EmailMessage, bytes, or a binary file, which is read from its current position. A parsed
            message is sent as it was read; a composed EmailMessage gets Date and Message-ID if it lacks them.
        :param sender: None: the message's Sender or From.
        :param recipients: None: the message's To, Cc and Bcc; then Bcc is removed. From an EmailMessage, it always is.
        :param from_ext: more parameters for MAIL, such as a session's ``from_ext``, or private ones. SIZE, BODY and
            SMTPUTF8 are always computed from the message.
        :param to_ext: more parameters for every RCPT; or a sequence of them, one for each recipient:
            ``[RcptOptions(orcpt=...), {}]``, or a session's ``to_ext``.
        :param raise_on_partial: raise PartiallyRefused when some recipients are refused; else the result has them.
        :param add_fields: add missing Date and Message-ID fields: True, to every message that is not signed;
            False, to none; None, to a composed EmailMessage.
        :param sign: returns header fields to put before the message, such as DKIM-Signature. It is called in a native
            thread with the whole message as it is sent to this server, so even a large file is in memory.
        :param options: parameters of MAIL and of every RCPT, typed: ``ret``, ``envid``, ``notify``, ``require_tls``,
            ``priority``, ``deliver_by``, ``hold_for``, ``hold_until``, ``valid_since``, ``auth``; see ``from_`` and
            ``to``. If the server lacks an extension, its parameters are left out if a relay may do so.
        :raises ProtocolError: an address, parameter or address field of the message is malformed.
        :raises SenderRefused, RecipientsRefused, DataRefused: no recipient got the message; their base is Refused.
        :raises NotOffered: the message needs an extension that the server does not offer.
        :raises TLSRefused, TLSUnverified: ``require_tls`` was given, and the connection is not secure enough for it.
        :raises Disconnected: with ``safe_to_retry`` False if the server may have accepted the message.
        :raises ClientError: the base class of all of them except ProtocolError.
        """
        prepared = PreparedMessage(
            message,
            sender,
            recipients,
            from_ext=from_ext,
            to_ext=to_ext,
            add_fields=add_fields,
            sign=sign,
            options=options,
        )
        try:
            return self._send(prepared, raise_on_partial=raise_on_partial)
        finally:
            prepared.close()

    def send_many(
        self,
        messages: Iterable[Sendable | tuple[Sendable, str | None, str | Iterable[str] | None]],
        *,
        add_fields: bool | None = None,
        sign: Signer | None = None,
        **options: Unpack[SendKeywords],
    ) -> Generator[SendResult | ClientError, None, None]:
        """Send messages one after another, and yield the outcome of each: ``for outcome in mail.send_many(messages)``.

        With PIPELINING, the end of a message and the envelope of the next one go out in one write, and their replies
        come together. So a message waits for the server once, not twice.

        An outcome is a SendResult; or the error that ``send`` would raise, as long as the connection stays usable. An
        error that ends the connection is raised, and so is one about an argument, after the outcomes of the messages
        before.

        A message is sent when the next one has been taken from ``messages``; one that is read from a file of more than
        4 MiB, before that. It may be changed, or its file closed, once the next one is asked for. Until the loop has
        ended, the client sends nothing else. If it is left early, and the envelope of the next message has been sent,
        the connection is closed.

        :param messages: messages; or tuples ``(message, sender, recipients)``, where None stands for what ``send``
            takes from the message.
        :param add_fields: this, ``sign`` and the options are for all messages; see ``send``.
        """
        items = iter(messages)

        def prepare() -> PreparedMessage | None:
            for item in items:
                message, sender, recipients = item if isinstance(item, tuple) else (item, None, None)
                return PreparedMessage(message, sender, recipients, add_fields=add_fields, sign=sign, options=options)
            return None

        self._exchange.check_ready()
        prepared = prepare()
        following: PreparedMessage | None = None
        outcome: SendResult | ClientError
        try:
            while prepared is not None:
                failure: Exception | None = None
                if not self._begun:
                    self.begin()
                is_ahead = False
                # The caller may change a message or close its file when the next one is taken.
                if self._is_kept(prepared):
                    try:
                        following = prepare()
                    except Exception as error:
                        failure = error
                    is_ahead = following is not None and self._is_kept(following)
                try:
                    outcome = self._send(prepared, following=following if is_ahead else None)
                except ClientError as error:
                    if self.closed:
                        raise
                    outcome = error
                prepared.close()
                yield outcome
                if failure is not None:
                    raise failure
                prepared, following = following or prepare(), None
        finally:
            for each in (prepared, following):
                if each is not None:
                    each.close()
            if self._exchange.in_flight is not None:
                self.close()

    def _is_kept(self, prepared: PreparedMessage) -> bool:
        """Encode a message, also before it is its turn; an error is raised when it is."""
        try:
            return prepared.keep(self._exchange.extensions)
        except Exception:
            return False

    def _send(
        self, prepared: PreparedMessage, *, raise_on_partial: bool = False, following: PreparedMessage | None = None
    ) -> SendResult:
        if not self._begun:
            self.begin()
        transactions = Transactions(prepared)
        try:
            while not transactions.send(self._exchange, following=following):
                if self._is_renewable:
                    self._renew()
                else:
                    transactions.send(self._exchange, beyond_limits=True)
        except ClientError as error:
            return transactions.result_after(error, raise_on_partial=raise_on_partial)
        return transactions.result(raise_on_partial=raise_on_partial)

    def _renew(self) -> None:
        """Send QUIT, connect to the same server again, and call ``begin``; TLS is required if it was used before."""
        policy = self.starttls_policy
        if self.tls and policy not in UNVERIFIED:
            policy = "require"
        self._try_quit()
        self._reconnect()
        self._begin(policy)

    def begin(self) -> Reply:
        """Send EHLO (HELO if that is refused; LHLO for LMTP) and STARTTLS, as ``send`` does before the first message.

        Commands that have already been sent are skipped.

        :return: the reply to the last EHLO, HELO or LHLO.
        :raises HelloRefused: the server refused it.
        :raises TLSRefused: TLS is required, and the server does not provide it.
        """
        return self._begin(self.starttls_policy)

    def login(
        self,
        username: str,
        password: str | None = None,
        mechanism: str | None = None,
        *,
        token: str | None = None,
        allow_plaintext: bool = False,
    ) -> Reply:
        """Send AUTH, after ``begin`` if EHLO has not been sent. The reply is 235 if the credentials are accepted.

        Credentials need TLS or a unix socket, unless ``starttls="offered"`` or ``"never"`` was passed to ``connect``,
        or the caller sent EHLO itself. Then SCRAM is used without TLS too, and CRAM-MD5 if ``mechanism`` names it.

        :param mechanism: SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER or XOAUTH2; None: the strongest one offered
            for which the credentials are suitable. If the server refuses it (504, 534, 535), the next one is tried;
            without TLS, never one that exposes more to eavesdroppers.
        :param token: an OAuth access token, instead of a password.
        :param allow_plaintext: also without TLS, use mechanisms that expose the secret: PLAIN, LOGIN, CRAM-MD5, tokens.
        :raises AuthenticationFailed: no mechanism is usable, a challenge is invalid (the exchange was cancelled
            with ``*``), or the server could not prove that it knows the password.
        """
        check_credential(username, "username")
        for text, what in ((password, "password"), (token, "token")):
            if text is not None:
                check_credential(text, what)
        if password is None and token is None:
            raise TypeError("expected a password or a token; got neither")
        self._exchange.check_ready()
        if self.starttls_policy in UNVERIFIED:
            text = f'starttls="{self.starttls_policy}" verifies no server, so no credentials are sent to any'
            raise AuthenticationFailed(text)
        policy = self._starttls_given or ("offered" if allow_plaintext or self._unix else "require")
        if self.hello is None:
            self._begin(policy)
        # A caller that sent EHLO itself is responsible for TLS, unless it passed starttls="require".
        if policy == "require" and not self.tls and (self._begun or self._starttls_given is not None):
            raise AuthenticationFailed(
                'the credentials would be sent in the clear: starttls() first, or pass starttls="offered" to connect'
            )
        reply = log_in(
            self._exchange,
            lambda offered: sasl.choose(offered, mechanism, username, password, token),
            mechanism,
            secure=self.tls or self._unix,
            allow_plaintext=allow_plaintext,
        )
        self.authenticated = self.authenticated or reply.is_positive
        return reply

    # EHLO and STARTTLS by policy

    def _begin(self, policy: StartTLS) -> Reply:
        reply = self._say_hello() if self.hello is None else self.hello
        if not self.tls and policy != "never":
            reply = self._starttls_by_policy(policy, reply)
        self._begun = True
        return reply

    def _say_hello(self) -> Reply:
        """Send LHLO; or EHLO, and HELO if that is refused (RFC 5321 section 3.2)."""
        if self.lmtp:
            reply = self.lhlo()
        else:
            reply = self.ehlo()
            if reply.is_permanent_failure:
                try:
                    reply = self.helo()
                except Disconnected as error:  # right after the reply to EHLO
                    raise HelloRefused("the server refused EHLO", reply) from error
        if not reply.is_positive:
            raise HelloRefused(f"the server refused {'LHLO' if self.lmtp else 'EHLO'}", reply)
        return reply

    def _starttls_by_policy(self, policy: StartTLS, hello: Reply) -> Reply:
        """Send STARTTLS as the policy requires; return the reply to the last EHLO, HELO or LHLO."""
        required = policy in ("require", "encrypt")
        if "STARTTLS" not in self.extensions:
            if required:
                raise TLSRefused(f'the server does not offer STARTTLS, and starttls="{policy}"')
            return hello
        if self._unix and not required and not self._server_hostname and self._context().check_hostname:
            # A unix socket connects to this machine, and has no name that a certificate could contain.
            return hello
        try:
            reply = self.starttls()
            if reply.code == 220:
                return self._say_hello()
            if required:
                raise TLSRefused(f'the server refuses STARTTLS, and starttls="{policy}": {reply}', reply)
            if self.closed:
                raise TLSRefused(f"the server refuses STARTTLS: {reply}", reply)
        except (TLSFailed, Disconnected) as error:
            # RFC 7435: prefer TLS, but send the message without it rather than not at all.
            if policy != "opportunistic" or self._dial is None or isinstance(error, TLSUnverified):
                raise
            logger.debug("TLS with %r failed: %s; reconnecting without TLS", self, error)
            self._reconnect()
            return self._say_hello()
        return hello
