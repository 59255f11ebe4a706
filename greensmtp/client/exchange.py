"""Commands and their replies on one connection: which reply answers which command, and the state of the transaction.

- A command is a ``Step``: its line, a timeout, and a function that updates the state from the reply. ``send`` sends one
  line, ``execute`` one step, ``send_pipelined`` a group of steps, ``send_lines`` a group of lines.
- A reply that cannot answer the command ends the connection (``protocol_error``): it is no longer known which command
  the next reply would answer. So does 421, after which the server sends nothing.
- Between 354 and the end of the message no command may be sent, since it would become text of the message.
  ``check_ready`` guards that.
- The envelope of the next message may go out behind the end of a message (``end_message``). Its lines are ``in_flight``
  until ``send_lines`` is called with the same ones, which then only reads their replies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from greensmtp.client.envelope_lines import offered
from greensmtp.client.timeouts import Timeouts
from greensmtp.client.trace import AUTH_CONTINUES, Show, show_commands, show_replies, without_echo
from greensmtp.client.transport import SEND_BYTES, ClientTransport
from greensmtp.errors import Disconnected, NotOffered, PeerProtocolError, ProtocolError, TLSRefused, TLSUnverified
from greensmtp.protocol import command_builder, esmtp
from greensmtp.protocol.address import NO_PARAMETERS, Parameters
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.ehlo_parameters import OfferedLimits
from greensmtp.protocol.reply import Reply

#: Commands in one write. The kernel must be able to hold their replies while the client writes: a server that cannot
#: send a reply stops reading (RFC 2920 section 3.1).
MAX_GROUP = 100

NO_EXTENSIONS: Mapping[str, str] = MappingProxyType({})


class Step(NamedTuple):
    """One command."""

    line: bytes
    #: The timeout for its reply.
    seconds: float
    #: Updates the state of the exchange from the reply.
    on_reply: Callable[[Reply], None]
    #: The 3xx code that may answer it; 0 for none.
    expected_3xx: int = 0


class CommandExchange:
    """The commands and replies of one connection."""

    def __init__(self, transport: ClientTransport, timeouts: Timeouts, *, lmtp: bool) -> None:
        self.transport = transport
        self.timeouts = timeouts
        self.lmtp = lmtp
        #: The reply to the last EHLO, HELO or LHLO that was accepted.
        self.hello: Reply | None = None
        #: The command that it answers.
        self.hello_line = b""
        #: The extensions that it offers.
        self.extensions = NO_EXTENSIONS
        #: The limits that it announces; None without LIMITS.
        self.limits: OfferedLimits | None = None
        #: MAIL commands that this session has had, and how many it may have.
        self.mails = 0
        self.mail_max = sys.maxsize
        #: The domains of its recipients, where their number is limited.
        self.domains: set[str] = set()
        #: True after MAIL, until the transaction ends.
        self.open_transaction = False
        #: Accepted recipients: LMTP answers a message with so many replies.
        self.accepted = 0
        #: The lines that were sent behind the end of the last message, until their replies are read; None for none.
        self.in_flight: list[bytes] | None = None
        #: False once the server has refused such lines.
        self.may_send_ahead = True
        #: The reply to DATA, until the message has been sent or skipped.
        self.data_reply: Reply | None = None
        #: True while a message is being written.
        self.writing = False
        #: The replies to the last message.
        self.replies: tuple[Reply, ...] = ()
        #: Receives each line of the dialogue, without secrets; see ``SMTPClient.trace``.
        self.trace: Show | None = None

    # Commands

    @property
    def message_expected(self) -> bool:
        """True if the server expects a message, or soon will: whatever is sent would become its text."""
        return self.in_flight is not None or (self.data_reply is not None and self.data_reply.code == 354)

    def check_ready(self) -> None:
        """Check that a command may be sent.

        :raises ProtocolError: the server expects a message.
        """
        if self.message_expected and not self.transport.closed:
            if self.in_flight is not None:
                raise ProtocolError("send_many() has begun the next message: continue its loop, or close()")
            raise ProtocolError("the server expects a message: call message(), or close()")

    def send(self, line: bytes, seconds: float, expected_3xx: int = 0) -> Reply:
        """Send one command, and return its reply.

        :param seconds: the timeout.
        :param expected_3xx: the 3xx code that may answer it.
        :raises PeerProtocolError: another 3xx code answers it.
        """
        if self.data_reply is not None or self.in_flight is not None:
            self.check_ready()
        transport = self.transport
        transport.check_no_pending_reply()
        secret = expected_3xx == AUTH_CONTINUES
        if self.trace is not None:
            show_commands(self.trace, [line], secret=secret)
        reply = transport.send_and_receive(line, 1, seconds, seconds)[0]
        if secret:
            reply = without_echo(reply, line)
        if self.trace is not None:
            show_replies(self.trace, [reply], secret=secret)
        if 300 <= reply.code < 400 and reply.code != expected_3xx:
            raise self.protocol_error(f"unexpected reply to the command: {reply}")
        if reply.code == 421:
            transport.close()
        return reply

    def execute(self, step: Step) -> Reply:
        """Send one step, and return its reply."""
        reply = self.send(step.line, step.seconds, step.expected_3xx)
        step.on_reply(reply)
        return reply

    def send_lines(self, lines: list[bytes], while_waiting: Callable[[], object] | None = None) -> list[Reply]:
        """Send several commands in one write, unless they are in flight; return their replies in order.

        A 421 also stands for the replies that it made the server omit.

        :param lines: of these, only the last may be DATA.
        :param while_waiting: called while the server works, unless the commands need more than one write.
        :raises Disconnected: the server is gone; ``replies`` are those to all these commands, as far as they came.
        """
        transport, timeouts = self.transport, self.timeouts
        in_flight = self.in_flight is not None and self.in_flight == lines
        if not in_flight:
            if self.data_reply is not None or self.in_flight is not None:
                self.check_ready()
            transport.check_no_pending_reply()
            if self.trace is not None:
                show_commands(self.trace, lines)
        count = len(lines)
        with_data = lines[-1] == b"DATA\r\n"
        last_seconds = timeouts.data_start if with_data else timeouts.command
        if in_flight:
            self.in_flight = None
            replies = transport.send_and_receive(b"", count, timeouts.command, last_seconds)
        elif count <= MAX_GROUP:
            replies = transport.send_and_receive(
                b"".join(lines), count, timeouts.command, last_seconds, while_waiting=while_waiting
            )
        else:
            replies = self._send_in_groups(lines, last_seconds)
        if self.trace is not None:
            show_replies(self.trace, replies)
        if replies[-1].code == 421:
            transport.close()
            replies += [replies[-1]] * (count - len(replies))
        elif with_data:
            self._check_data(replies[-1])
        for reply in replies[:-1] if with_data else replies:
            if 300 <= reply.code < 400:
                raise self.protocol_error(f"unexpected reply to a command: {reply}")
        return replies

    def _send_in_groups(self, lines: Sequence[bytes], last_seconds: float) -> list[Reply]:
        """Send commands in writes of MAX_GROUP; return their replies, or those up to a 421."""
        replies: list[Reply] = []
        seconds = self.timeouts.command
        try:
            while len(replies) < len(lines) and not (replies and replies[-1].code == 421):
                group = lines[len(replies) : len(replies) + MAX_GROUP]
                is_last = len(replies) + len(group) == len(lines)
                replies += self.transport.send_and_receive(
                    b"".join(group), len(group), seconds, last_seconds if is_last else seconds
                )
        except Disconnected as error:
            error.replies = (*replies, *error.replies)
            raise
        return replies

    def send_pipelined(self, steps: Sequence[Step]) -> list[Reply]:
        """Send several steps in one write, or one by one if the server does not offer PIPELINING."""
        if "PIPELINING" in self.extensions:
            replies = self.send_lines([step.line for step in steps])
        else:
            replies = []
            for step in steps:
                if replies and replies[-1].code == 421:
                    replies.append(replies[-1])
                else:
                    replies += self.send_lines([step.line])
        for step, reply in zip(steps, replies, strict=True):
            step.on_reply(reply)
        return replies

    # The steps of a transaction

    def mail(self, address: str, ext: Ext, given: Parameters = NO_PARAMETERS) -> Step:
        """Return the step for MAIL.

        :param ext: parameters that are sent as they are.
        :param given: parameters that are checked against what the server offers.
        :raises NotOffered: the server does not offer the extension of one of them.
        :raises TLSRefused, TLSUnverified: REQUIRETLS is among them, and the connection is not secure.
        """
        if "REQUIRETLS" in given:
            self.check_secure()
        line = command_builder.mail(address, self._checked(ext, given) if given else ext)
        return Step(line, self.timeouts.command, self._on_mail)

    def rcpt(self, address: str, ext: Ext, given: Parameters = NO_PARAMETERS) -> Step:
        """Return the step for RCPT. See ``mail``."""
        line = command_builder.rcpt(address, self._checked(ext, given) if given else ext)
        return Step(line, self.timeouts.command, self._on_rcpt)

    def _checked(self, ext: Ext, given: Parameters) -> str:
        return f"{' '.join(offered(given, self.extensions))}{command_builder.parameters(ext)}"

    def check_secure(self) -> None:
        """Check what a client must before it sends REQUIRETLS (RFC 8689 section 4.2.1), but for the offer.

        :raises TLSRefused: the connection has no TLS.
        :raises TLSUnverified: the server was not verified.
        """
        if not self.transport.tls:
            raise TLSRefused("REQUIRETLS was given, and this connection has no TLS")
        if not self.transport.verified:
            raise TLSUnverified("REQUIRETLS was given, and the certificate of the server was not verified")

    def reset(self) -> Step:
        """Return the step for RSET."""
        return Step(b"RSET\r\n", self.timeouts.command, self._on_reset)

    def data(self) -> Step:
        """Return the step for DATA."""
        return Step(b"DATA\r\n", self.timeouts.data_start, self._on_data, 354)

    def plain(self, verb: str, argument: str | None = None) -> Step:
        """Return the step for a command that changes no state."""
        return Step(command_builder.line(verb, argument), self.timeouts.command, _ignore)

    def lookup(self, verb: str, name: str) -> Step:
        """Return the step for VRFY or EXPN.

        :raises NotOffered: the name needs SMTPUTF8 (RFC 6531 section 3.7.4.2), which the server does not offer.
        """
        if not name:
            raise ProtocolError(f"expected a name behind {verb}; got none")
        if name.isascii():
            return self.plain(verb, name)
        try:
            name = command_builder.mailbox(name)
        except ProtocolError:
            pass  # not a mailbox: a user's name
        if name.isascii():
            return self.plain(verb, name)
        if "SMTPUTF8" not in self.extensions:
            raise NotOffered("SMTPUTF8", f"the name {name!r} has non-ASCII characters")
        return self.plain(verb, f"{name} SMTPUTF8")

    def _on_mail(self, reply: Reply) -> None:
        self.mails += 1
        self.data_reply = None
        if reply.is_positive:
            self.open_transaction = True
            self.accepted = 0

    def _on_rcpt(self, reply: Reply) -> None:
        if reply.is_positive:
            self.accepted += 1

    def _on_reset(self, reply: Reply) -> None:
        if reply.is_positive:
            self.forget_transaction()

    def _on_data(self, reply: Reply) -> None:
        self._check_data(reply)
        self.data_reply = reply

    def _check_data(self, reply: Reply) -> None:
        if reply.code < 400 and reply.code != 354:
            raise self.protocol_error(f"unexpected reply to DATA: {reply}")

    def forget_transaction(self) -> None:
        """Clear the state of the transaction."""
        self.open_transaction = False
        self.accepted = 0
        self.data_reply = None
        self.writing = False

    def on_hello(self, reply: Reply, line: bytes, extensions: Mapping[str, str]) -> None:
        """Keep what a reply to EHLO, HELO or LHLO tells; it ends the transaction (RFC 5321 section 4.1.4)."""
        self.hello, self.hello_line, self.extensions = reply, line, extensions
        self.limits = esmtp.LIMITS.read_offer(extensions)
        self.mail_max = self.limits.mail_max or sys.maxsize if self.limits is not None else sys.maxsize
        self.forget_transaction()

    def forget_hello(self) -> None:
        """Clear what EHLO told, and the transaction, as STARTTLS requires (RFC 3207 section 4.2)."""
        self.hello = self.limits = None
        self.mail_max = sys.maxsize
        self.extensions = NO_EXTENSIONS
        self.forget_transaction()

    def forget_session(self) -> None:
        """Clear everything that the server forgets when XCLIENT begins another session."""
        self.forget_hello()
        self.mails = 0
        self.domains = set()

    # The message

    def send_body(self, data: bytes) -> None:
        """Send a piece of the message that is not its last."""
        if self.trace is not None:
            self.trace(f"> ({len(data)} bytes of the message)")
        self.transport.send(data, self.timeouts.data)

    def end_message(
        self,
        data: bytes,
        following: list[bytes] | None = None,
        while_waiting: Callable[[], object] | None = None,
    ) -> list[Reply]:
        """Send the last piece, and return the replies to the message: one; in LMTP one for each recipient.

        :param following: commands of the next transaction, to send in the same write (RFC 2920 section 3.1). They are
            ``in_flight`` afterwards.
        :param while_waiting: called while the server works.
        """
        if self.trace is not None:
            self.trace(f"> ({len(data)} bytes of the message, and its end)")
            if following is not None:
                show_commands(self.trace, following)
        if len(data) > SEND_BYTES:
            self.transport.send(data[:-SEND_BYTES], self.timeouts.data)
            data = data[-SEND_BYTES:]
        seconds = self.timeouts.final
        count = self.final_count() if self.lmtp else 1
        replies = self.transport.send_and_receive(
            data,
            count,
            seconds,
            seconds,
            ends_message=self.timeouts.data,
            followed_by=b"" if following is None else b"".join(following),
            while_waiting=while_waiting,
        )
        self.in_flight = following
        return self.on_final_replies(replies)

    def final_count(self) -> int:
        """Return how many replies a message gets: one; in LMTP one for each accepted recipient."""
        return self.accepted if self.lmtp and self.accepted > 1 else 1

    def on_final_replies(self, replies: list[Reply]) -> list[Reply]:
        """End the transaction, and return its replies; a 421 also stands for those that it made the server omit."""
        if self.trace is not None:
            show_replies(self.trace, replies)
        for reply in replies:
            if 300 <= reply.code < 400:
                raise self.protocol_error(f"unexpected reply to a message: {reply}")
        self.transport.message_sent = False
        if replies[-1].code == 421:
            self.transport.close()
            replies += [replies[-1]] * (self.final_count() - len(replies))
        self.forget_transaction()
        self.replies = tuple(replies)
        return replies

    def protocol_error(self, text: str, *, after_content: bool = False) -> PeerProtocolError:
        """Close the connection, and return the error to raise."""
        error = PeerProtocolError(text, after_content=after_content or self.transport.message_sent)
        self.transport.close(error)
        return error


def first_refusal_or_last(replies: Sequence[Reply]) -> Reply:
    """Return the first reply that is not positive; else the last one."""
    return next((reply for reply in replies if reply.code >= 300), replies[-1])


def _ignore(reply: Reply) -> None:
    """Do nothing with a reply."""
