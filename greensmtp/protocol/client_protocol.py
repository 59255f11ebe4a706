"""The client's side of SMTP and LMTP without a socket: commands in, bytes out; bytes in, replies out.

::

    protocol = ClientProtocol()
    protocol.receive(peer.read())
    assert protocol.next_reply() == ("CONNECT", Reply(220, ...))
    peer.write(protocol.hello("client.example") + protocol.mail("jo@example.org"))

The rules of this file:

- Commands may be pipelined (RFC 2920); each reply is returned with the verb that it answers, in order. STARTTLS, AUTH,
  DATA and QUIT end a group: nothing may follow them before they are answered.
- A body may be sent only behind a 354, and a response only behind a 334.
- A reply that answers nothing raises ReplySyntaxError, since it would pass for the reply to the next command. Only 421
  may come at any time (RFC 5321 section 3.8); its verb is then ``""``.

The pooled client does not run on this class, since it has a deadline for every step. It is made of the same parts
(ReplyParser, ``command_builder``, DotEncoder).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from greensmtp.protocol import command_builder, esmtp
from greensmtp.protocol.command import CONNECT, END_OF_DATA
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.dot_stuffing import DotEncoder
from greensmtp.protocol.errors import ReplySyntaxError
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import ReplyParser

#: Verbs behind which nothing may be sent before they are answered (RFC 2920 section 3.1).
_ENDS_GROUP = frozenset({CONNECT, "EHLO", "LHLO", "HELO", "STARTTLS", "AUTH", "DATA", END_OF_DATA, "QUIT"})


class ClientProtocol:
    """One connection, from its banner on."""

    def __init__(self, *, lmtp: bool = False) -> None:
        self._lmtp = lmtp
        self._parser = ReplyParser()
        #: The verbs that have not been answered, in order. The server speaks first.
        self._asked = deque([CONNECT])
        #: Replies to the end of the body that have not come; 0 before the first.
        self._owed = 0
        #: What may be sent because of an intermediate reply: "DATA" or "AUTH"; "" for a command.
        self._invited = ""
        #: What EHLO's reply offers: keyword -> parameters.
        self.extensions: Mapping[str, str] = {}
        #: Recipients that have been accepted in this transaction.
        self.recipients = 0

    @property
    def unanswered(self) -> tuple[str, ...]:
        """The verbs whose replies have not come, in order."""
        return tuple(self._asked)

    # Out

    def hello(self, hostname: str, verb: str = "") -> bytes:
        """Return EHLO, or LHLO in LMTP, or the verb given."""
        return self.command(verb or ("LHLO" if self._lmtp else "EHLO"), hostname)

    def mail(self, address: str, ext: Ext = None) -> bytes:
        """Return MAIL."""
        return self._ask("MAIL", command_builder.mail(address, ext))

    def rcpt(self, address: str, ext: Ext = None) -> bytes:
        """Return RCPT."""
        return self._ask("RCPT", command_builder.rcpt(address, ext))

    def command(self, verb: str, argument: str | None = None) -> bytes:
        """Return any other command.

        :raises ProtocolError: the argument could end the command.
        :raises RuntimeError: the command before must be answered first, or the server waits for something else.
        """
        return self._ask(verb.upper(), command_builder.line(verb, argument))

    def chunk(self, content: bytes, *, last: bool = False) -> bytes:
        """Return BDAT and the bytes of the chunk (RFC 3030)."""
        line = command_builder.line("BDAT", f"{len(content)} LAST" if last else str(len(content)))
        return self._ask(END_OF_DATA if last else "BDAT", line) + content

    def body(self, content: bytes) -> bytes:
        """Return a body with its dots stuffed and its end, as the answer to a 354.

        :raises RuntimeError: the server has not asked for it.
        """
        self._check_invited("DATA", "a body")
        encoder = DotEncoder()
        return self._ask(END_OF_DATA, encoder.feed(content) + encoder.finish())

    def response(self, line: bytes) -> bytes:
        """Return the answer to a 334 challenge: base64, or ``*``.

        :raises RuntimeError: the server has not asked for it.
        """
        self._check_invited("AUTH", "a response")
        return self._ask("AUTH", line + b"\r\n")

    def _check_invited(self, verb: str, what: str) -> None:
        if self._invited != verb:
            raise RuntimeError(f"{what} may be sent only when {verb} has been answered with 3xx")
        self._invited = ""

    def _ask(self, verb: str, data: bytes) -> bytes:
        if self._invited:
            raise RuntimeError(f"the server has answered {self._invited} with 3xx: what it waits for is no command")
        if self._asked and self._asked[-1] in _ENDS_GROUP:
            raise RuntimeError(f"{verb} cannot be sent before {self._asked[-1]} is answered (RFC 2920 section 3.1)")
        self._asked.append(verb)
        return data

    # In

    def receive(self, data: bytes) -> None:
        """Take bytes from the server."""
        self._parser.feed(data)

    def next_reply(self) -> tuple[str, Reply] | None:
        """Return the next reply with the verb that it answers, or None if no whole reply has come.

        The verb is ``CONNECT`` for the banner, ``END-OF-DATA`` for a body or its last chunk.

        :raises ReplySyntaxError: the server has sent what is not a reply, or a reply that answers nothing.
        """
        reply = self._parser.next_reply()
        if reply is None:
            return None
        if not self._asked:
            if reply.code == 421:
                return "", reply
            raise ReplySyntaxError(f"the server sent a reply that answers no command: {reply}")
        verb = self._asked[0]
        if verb == END_OF_DATA:
            # LMTP: a reply for each accepted recipient (RFC 2033 section 4.2).
            self._owed = (self._owed or (max(self.recipients, 1) if self._lmtp else 1)) - 1
            if self._owed:
                return verb, reply
        self._asked.popleft()
        if reply.is_intermediate:
            if verb not in ("DATA", "AUTH"):
                raise ReplySyntaxError(f"{verb} was answered {reply}, which asks for more where nothing follows")
            self._invited = verb
        elif verb == END_OF_DATA or (verb == "BDAT" and not reply.is_positive):
            self.recipients = 0
        elif reply.is_positive:
            self._take_effect(verb, reply)
        return verb, reply

    def _take_effect(self, verb: str, reply: Reply) -> None:
        if verb in ("EHLO", "LHLO", "HELO", "RSET"):
            self.recipients = 0
            if verb != "RSET":
                self.extensions = {} if verb == "HELO" else esmtp.parse_offers(reply)
        elif verb == "RCPT":
            self.recipients += 1
        elif verb == "STARTTLS":
            if self._parser.pending:
                raise ReplySyntaxError("the server sent text in the clear behind its reply to STARTTLS (CVE-2011-0411)")
            self.extensions = {}
