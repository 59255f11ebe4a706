"""``SMTPSink``: a server that keeps all messages, for tests of code that sends mail.

The code under test may block its thread (smtplib, Django, Celery), and so may the test that waits for it. The sink
therefore runs in a native thread with its own hub, whether or not the process is patched. One native lock guards the
shared state; it is never held while waiting.
"""

from __future__ import annotations

import ssl
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from greensmtp._native import native
from greensmtp.chain.chain import Proceed
from greensmtp.middleware.auth import Auth
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import CONNECT, Command
from greensmtp.protocol.reply import Reply
from greensmtp.server.server import SMTPServer
from greensmtp.server.thread import ServerThread
from greensmtp.session import Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream
from greensmtp.testing.alarm import Alarm, make_alarm
from greensmtp.testing.certificate import Certificate
from greensmtp.testing.refusal import STAGES, Refusal, matches_pattern, values_of
from greensmtp.testing.sink_message import SinkMessage

_FULL = Reply(452, "4.3.1 This sink is full: call clear(), or raise max_messages or max_total_size")

#: Number of messages and of refusals that a failing ``wait_for`` shows.
_SHOWN = 20


class MessageNotReceived(AssertionError, TimeoutError):
    """No matching message arrived in time; the text lists the messages that did, and refused commands."""


class SMTPSink:
    """A mail server for tests of code that *sends* mail: it accepts all messages, and keeps them for the test.

    ::

        with SMTPSink() as sink:
            send_welcome_mail("jo@example.com", smtp=(sink.host, sink.port))
            mail = sink.wait_for(to="jo@example.com", subject="Welcome")
            assert mail.links() == ["https://example.com/confirm?token=1"]

    It runs in a native thread with its own gevent hub, so the code under test may block: smtplib, Django, Flask-Mail, a
    Celery worker in another thread. Nothing is patched. The methods may be called from any thread and from greenlets.

    :param host: the address to listen on.
    :param port: the port; 0 means any free port.
    :param hostname: the server's name in the banner and in the reply to EHLO.
    :param users: users and their passwords. AUTH is offered, also without TLS, since this is for tests; it is required
        for mail unless ``auth_required=False``.
    :param tls: ``"starttls"`` offers STARTTLS, ``"implicit"`` uses TLS from the first byte. The trustme library makes a
        certificate for this sink; clients verify it with ``ca_file`` or ``client_context()``.
    :param certfile: a PEM file to use instead of that certificate.
    :param keyfile: a PEM file with its key.
    :param max_messages: how many messages are kept; further ones get 452.
    :param max_total_size: how many bytes of messages are kept; further messages get 452.
    :param options: other arguments of ``SMTPServer``: ``lmtp=True``, limits, ``middleware``.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        hostname: str = "sink.example",
        users: dict[str, str] | None = None,
        auth_required: bool = True,
        tls: Literal["starttls", "implicit"] | None = None,
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        max_messages: int = 1000,
        max_total_size: int = 256 * 1024 * 1024,
        **options: Any,
    ) -> None:
        if tls not in (None, "starttls", "implicit"):
            raise ValueError(f'tls: expected "starttls", "implicit" or None; got {tls!r}')
        self._thread: ServerThread[SMTPServer] | None = None
        self._messages: list[SinkMessage] = []
        self.max_messages = max_messages
        self.max_total_size = max_total_size
        #: The certificate authority (PEM) for clients that verify; None without ``tls``.
        self.ca_file: Path | None = None
        if tls is not None and certfile is None:
            certificate = Certificate(hostname, host, "localhost", "127.0.0.1", "::1")
            weakref.finalize(self, certificate.remove)
            certfile, self.ca_file = certificate.certfile, certificate.ca_file
        elif certfile is not None:
            self.ca_file = Path(certfile)
        middleware = [self._watch, *options.pop("middleware", ())]
        if users is not None:
            middleware.insert(1, Auth(dict(users), required=auth_required, allow_plaintext=True))
        self.server = SMTPServer(
            (host, port),
            hostname=hostname,
            certfile=certfile,
            keyfile=keyfile,
            implicit_tls=tls == "implicit",
            middleware=middleware,
            **options,
        )
        self.server.on("message", self._take)
        self.server.on("received", self._keep)
        if users is not None:
            self.server.on("auth", self._admit)
        # Unpatched, since the two sides are native threads.
        self._lock: Any = native("_thread", "allocate_lock")()
        self._waiting: list[Alarm] = []
        self._refusals: list[Refusal] = []
        self._refused: deque[str] = deque(maxlen=_SHOWN)
        self._connections = 0
        #: Total size in bytes of the messages that are kept or being received.
        self._size = 0

    # Start and stop

    def start(self) -> SMTPSink:
        """Start listening, and return when clients can connect.

        :raises OSError: the address cannot be bound.
        """
        if self._thread is None:
            thread = self.server.in_thread()
            thread.start()
            self._thread = thread
        return self

    def stop(self) -> None:
        """Stop listening, and disconnect all clients. The messages are kept."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop(timeout=1.0)

    def __enter__(self) -> SMTPSink:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def host(self) -> str:
        """The address that the sink listens on."""
        return str(self.server.address[0])

    @property
    def port(self) -> int:
        """The port that the sink listens on."""
        return int(self.server.address[1])

    def client_context(self) -> ssl.SSLContext:
        """Return an SSL context for clients that trusts only the sink's certificate.

        :raises RuntimeError: the sink has no TLS.
        """
        if self.ca_file is None:
            raise RuntimeError('this sink has no TLS: make it with tls="starttls" or tls="implicit"')
        return ssl.create_default_context(cafile=str(self.ca_file))

    # Messages

    @property
    def messages(self) -> list[SinkMessage]:
        """A new list of the messages so far, oldest first."""
        with self._lock:
            return list(self._messages)

    def clear(self) -> None:
        """Remove all messages. Rules made by ``refuse`` stay; end one with its ``cancel()``."""
        with self._lock:
            self._size -= sum(len(message.raw) for message in self._messages)
            self._messages.clear()
            self._refused.clear()

    def wait_for(self, to: str | None = None, subject: str | None = None, timeout: float = 10.0) -> SinkMessage:
        """Return the first message that matches, waiting for it if necessary.

        In a greenlet, other greenlets run meanwhile; in a thread without a hub, the thread waits.

        :param to: a recipient of the envelope, case-insensitive; ``*`` matches anything: ``"*@example.com"``.
        :param subject: a part of the subject, case-insensitive; or the whole subject with ``*`` in it.
        :param timeout: in seconds.
        :raises MessageNotReceived: none arrived; it is an AssertionError and a TimeoutError.
        """
        deadline = monotonic() + timeout
        while True:
            alarm = make_alarm()
            try:
                with self._lock:
                    self._waiting.append(alarm)
                    messages = list(self._messages)
                for message in messages:
                    if _fits(message, to, subject):
                        return message
                left = deadline - monotonic()
                if not left > 0:  # (nan is not)
                    raise MessageNotReceived(self._explain(to, subject, timeout))
                alarm.wait(left)
            finally:
                with self._lock:
                    self._waiting.remove(alarm)
                    alarm.close()

    def refuse(
        self,
        stage: str,
        code: int | Reply = 550,
        message: str | None = None,
        *,
        matching: str | None = None,
        times: int | None = None,
    ) -> Refusal:
        """Refuse matching commands from now on.

        :param stage: ``"CONNECT"``, ``"EHLO"`` (HELO and LHLO too), ``"STARTTLS"``, ``"AUTH"``, ``"MAIL"``, ``"RCPT"``,
            ``"DATA"`` or ``"END-OF-DATA"``.
        :param code: 4xx or 5xx, or a ``Reply``; 421 also closes the connection.
        :param message: the reply's text.
        :param matching: refuse only if this matches, case-insensitive, with ``*`` for anything: the recipient (RCPT),
            one of the recipients (DATA, END-OF-DATA), the sender (MAIL), the client's name (EHLO) or address (CONNECT),
            the authenticated user (AUTH).
        :param times: refuse this many commands, then accept; None to refuse all.
        """
        refusal = Refusal(stage, code, message, matching, times)
        with self._lock:
            self._refusals.append(refusal)
        return refusal

    # In the sink's thread

    def _watch(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """The outermost middleware: apply the rules, and record refused commands."""
        if command.verb == CONNECT:
            self._connections += 1
        reply = self._refusal_of(session, command) or proceed(session, command)
        if reply.code >= 400:
            with self._lock:
                self._refused.append(f"{str(command)[:200]}: {str(reply)[:200]}")
        return reply

    def _refusal_of(self, session: Session, command: Command) -> Reply | None:
        stage = STAGES.get(command.verb)
        if stage is None or command.error is not None or (command.verb == "BDAT" and session.message is not None):
            return None
        return self._find_refusal(stage, lambda: values_of(session, command))

    def _find_refusal(self, stage: str, values: Callable[[], list[str] | None]) -> Reply | None:
        """Return the reply of the first rule that applies, and count the hit."""
        with self._lock:
            self._refusals = [refusal for refusal in self._refusals if not refusal.is_over]
            for refusal in self._refusals:
                if refusal.stage == stage and refusal.matches(values()):
                    refusal.count()
                    return refusal.reply
        return None

    def _admit(self, session: Session, identity: Any, ack: Ack) -> None:
        """Handle ``auth``, the first moment at which the user is known."""
        reply = self._find_refusal("AUTH", lambda: [str(identity)])
        if reply is None:
            ack.accept()
        else:
            ack.reject(reply.code, f"{reply.enhanced} {reply.text}" if reply.enhanced else reply.text)

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Handle ``message``."""
        with self._lock:
            full = len(self._messages) >= self.max_messages or self._size >= self.max_total_size
        if full:
            ack.reject(_FULL)
            return
        session.notes[self] = body = bytearray()
        stream.at_end(lambda: self._forget(session))
        ack.accept()
        for chunk in stream:
            body += chunk
            with self._lock:
                self._size += len(chunk)
                full = self._size > self.max_total_size
            if full:
                stream.abort(_FULL.code, f"{_FULL.enhanced} {_FULL.text}")

    def _keep(self, session: Session, ack: Ack, recipient: Address | None = None) -> None:
        """Handle ``received``; in LMTP it is emitted for each recipient. Keep the message if the client gets 250."""
        ack.accept()
        session.stage(self._add, session, recipient)

    def _add(self, session: Session, recipient: Address | None) -> None:
        kept = session.notes[self]
        if isinstance(kept, SinkMessage):  # LMTP: a further recipient
            kept.recipients.append(str(recipient))
        else:
            session.notes[self] = kept = SinkMessage(
                sender=str(session.from_),
                recipients=[str(each) for each in (session.to if recipient is None else [recipient])],
                raw=bytes(kept),
                tls=session.tls,
                username=None if session.identity is None else str(session.identity),
                client_hostname=session.hostname,
            )
            with self._lock:
                self._messages.append(kept)
        with self._lock:
            for alarm in self._waiting:
                alarm.ring()

    def _forget(self, session: Session) -> None:
        """At the end of a transaction, subtract the size of a message that was not kept."""
        body = session.notes.pop(self, b"")
        if not isinstance(body, SinkMessage):
            with self._lock:
                self._size -= len(body)

    # Helpers

    def _explain(self, to: str | None, subject: str | None, timeout: float) -> str:
        wanted = " and".join(
            f" {word} {value!r}" for word, value in (("to", to), ("with subject", subject)) if value is not None
        )
        with self._lock:
            arrived, refused = self._messages[-_SHOWN:], list(self._refused)
        lines = [f"no message{wanted} arrived within {timeout:g} s"]
        lines.append(f"Messages that did arrive ({len(arrived)}):" if arrived else "No message arrived at all.")
        lines += [f"  to {', '.join(each.recipients)}: {each.subject!r}" for each in arrived]
        if refused:
            lines += ["Refused commands:", *(f"  {each}" for each in refused)]
        elif not arrived:
            lines.append(f"Connections so far: {self._connections}.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        state = f"at {self.host}:{self.port}" if self._thread is not None else "stopped"
        return f"<SMTPSink {state}, {len(self._messages)} messages>"


def _fits(message: SinkMessage, to: str | None, subject: str | None) -> bool:
    if to is not None and not any(matches_pattern(recipient, to) for recipient in message.recipients):
        return False
    if subject is None:
        return True
    return subject.casefold() in message.subject.casefold() or matches_pattern(message.subject, subject)
