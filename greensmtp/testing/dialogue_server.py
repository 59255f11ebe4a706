"""A server without a socket, on ServerProtocol, against which dialogues are replayed in memory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from greensmtp.protocol import canned, esmtp
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import (
    KNOWN_BUT_NOT_IMPLEMENTED,
    Command,
    EndOfData,
    HelloCommand,
    PathCommand,
)
from greensmtp.protocol.content_checks import NormalNewlines
from greensmtp.protocol.ehlo_parameters import OfferedLimits
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.server_protocol import Data, EndOfChunk, Event, Response, ServerProtocol
from greensmtp.testing.dialogue import Dialogue
from greensmtp.testing.dialogue_player import DialoguePlayer, DialogueResult, Wait
from greensmtp.testing.dialogue_text import escape

#: The extensions that it offers where a dialogue needs them.
_SWITCHABLE = frozenset({"DSN", "REQUIRETLS", "MT-PRIORITY", "DELIVERBY", "RRVS"})

#: The options of a dialogue that this server has, with their defaults.
OPTIONS = {"max_message_size": 1_000_000, "max_recipients": 100, "max_command": 2048}


class MemoryServer:
    """A server that accepts everything in order: bytes in, bytes out.

    It is as small as a server on ServerProtocol can be: no AUTH, no real TLS, whole bodies in memory. ``events`` is
    what its handlers would have seen.
    """

    def __init__(
        self, *, lmtp: bool = False, refuse: Iterable[str] = (), extensions: Iterable[str] = (), **options: int
    ) -> None:
        """
        :param refuse: recipients that are refused with 550.
        :param extensions: the EHLO keywords of extensions that are offered beside the standard ones.
        :param options: those in OPTIONS.
        :raises TypeError: there is no such option.
        """
        unknown = ", ".join(options.keys() - OPTIONS.keys())
        if unknown:
            raise TypeError(f"MemoryServer takes the options {', '.join(OPTIONS)}, and not {unknown}")
        limits = OPTIONS | options
        self._lmtp = lmtp
        self._refuse = frozenset(refuse)
        self._max_size = limits["max_message_size"]
        self._max_recipients = limits["max_recipients"]
        self._extensions = esmtp.choose(on=extensions)
        self._parameters = esmtp.ParameterCheck(self._extensions)
        self._protocol = ServerProtocol(lmtp=lmtp, max_command=limits["max_command"])
        self._wire = self._protocol.send(Reply(220, f"mx.example.com {'LMTP' if lmtp else 'ESMTP'}", enhanced=None))
        self._tls = self._waits_for_tls = False
        self._extended = False
        self._sender: Address | None = None
        self._body = b""
        self.events: list[str] = []

    @property
    def is_closed(self) -> bool:
        """True once it has ended the connection."""
        return self._protocol.is_closed

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client; return those for the client."""
        if not self._waits_for_tls:
            self._protocol.receive(data)
        while not self._waits_for_tls and (event := self._protocol.next_event()) is not None:
            for reply in self._replies_to(event):
                self._wire += self._protocol.send(reply)
                self._waits_for_tls = isinstance(event, Command) and event.verb == "STARTTLS" and reply.code == 220
        wire, self._wire = self._wire, b""
        return wire

    def start_tls(self) -> None:
        """Go on as if the handshake were over."""
        self._waits_for_tls = False
        self._tls = True
        self._extended = False

    def _replies_to(self, event: Event) -> Iterable[Reply]:
        if isinstance(event, Data):
            if len(self._body) <= self._max_size:
                self._body += event.content
            return ()
        if isinstance(event, EndOfData):
            return self._take_message()
        if isinstance(event, EndOfChunk):
            return (canned.OK,)
        if isinstance(event, Response):
            raise AssertionError("AUTH is not offered, so there is no challenge")
        if event.verb == "BDAT":
            refusal = self._protocol.refusal(event)
            if refusal is not None:
                self._body = b""
            return () if refusal is None else (refusal,)
        return (self._protocol.refusal(event) or self._act(event),)

    def _act(self, command: Command) -> Reply:
        if isinstance(command, HelloCommand):
            return self._hello(command)
        if isinstance(command, PathCommand):
            return self._mail(command.address) if command.verb == "MAIL" else self._rcpt(command.address)
        if command.verb == "RSET":
            self._body = b""
            self.events.append("reset")
            return canned.OK
        if command.verb == "DATA":
            return canned.BINARY_NEEDS_BDAT if self._is_binary() else canned.START_MAIL
        if command.verb == "STARTTLS" and self._tls:
            return canned.TLS_ALREADY
        if command.verb == "QUIT":
            self.events.append("quit")
        unknown = canned.NOT_IMPLEMENTED if command.verb in KNOWN_BUT_NOT_IMPLEMENTED else canned.UNKNOWN_COMMAND
        return _REPLIES.get(command.verb, unknown)

    def _hello(self, greeting: HelloCommand) -> Reply:
        if self._lmtp is not (greeting.verb == "LHLO"):
            return canned.LMTP_SPOKEN_HERE if self._lmtp else canned.SMTP_SPOKEN_HERE
        self.events.append(f"hello {greeting.verb} {greeting.hostname}")
        self._extended = greeting.verb != "HELO"
        first = f"mx.example.com greets {greeting.hostname}"
        return Reply(250, first, *(self._offers() if self._extended else ()), enhanced=None)

    def _offers(self) -> Iterable[str]:
        values = {"SIZE": self._max_size, "LIMITS": OfferedLimits(rcpt_max=self._max_recipients)}
        for extension in self._extensions:
            if not self._tls if extension is esmtp.STARTTLS else self._tls or not extension.needs_tls:
                yield extension.offer_line(values.get(extension.keyword))

    def _mail(self, address: Address) -> Reply:
        refusal = self._check(address, "MAIL")
        if refusal is not None:
            return refusal
        options = address.mail_options
        if (options.size or 0) > self._max_size:
            return canned.TOO_LARGE
        if not address.isascii() and not options.smtputf8:
            return canned.NEED_SMTPUTF8
        self._sender = address
        self._body = b""
        self.events.append(event_of("from", address))
        return canned.SENDER_OK

    def _rcpt(self, address: Address) -> Reply:
        assert self._sender is not None
        refusal = self._check(address, "RCPT")
        if refusal is not None:
            return refusal
        if not address.isascii() and "SMTPUTF8" not in self._sender.parameters:
            return canned.NEED_SMTPUTF8
        if self._protocol.recipients >= self._max_recipients:
            return canned.TOO_MANY_RECIPIENTS
        if str(address) in self._refuse:
            return NO_SUCH_USER
        self.events.append(event_of("to", address))
        return canned.RECIPIENT_OK

    def _check(self, address: Address, verb: str) -> Reply | None:
        check = self._parameters if self._extended else _NO_PARAMETERS
        return check.refusal(verb, address, tls=self._tls)

    def _is_binary(self) -> bool:
        return self._sender is not None and (self._sender.parameters.get("BODY") or "").upper() == "BINARYMIME"

    def _take_message(self) -> Iterable[Reply]:
        body, self._body = self._body, b""
        reply = canned.TOO_LARGE if len(body) > self._max_size else canned.MESSAGE_OK
        if reply is canned.MESSAGE_OK:
            content = body if self._is_binary() else NormalNewlines().feed(body, last=True)
            self.events.append(f"message {escape(content)}")
        return [reply] * (max(self._protocol.recipients, 1) if self._lmtp else 1)


#: What is allowed after HELO.
_NO_PARAMETERS = esmtp.ParameterCheck(())

NO_SUCH_USER = Reply(550, "5.1.1 No such user")

_REPLIES = {
    "NOOP": canned.OK,
    "VRFY": canned.CANNOT_VERIFY,
    "EXPN": canned.CANNOT_EXPAND,
    "HELP": Reply(214, "2.0.0 See RFC 5321"),
    "STARTTLS": canned.START_TLS,
    "QUIT": canned.BYE,
}


def event_of(name: str, address: Address) -> str:
    """Return the event of an address: ``from <a@b> SIZE=3``; the null sender is ``<>``."""
    parameters = (key if value is None else f"{key}={value}" for key, value in address.parameters.items())
    return " ".join((name, f"<{address}>", *parameters))


def replay_in_memory(dialogue: Dialogue, *, cut: int | None = None) -> DialogueResult:
    """Replay a dialogue against a MemoryServer.

    :param cut: cut the client's bytes at this place, so that the server reads what stands before it first.
    """
    if dialogue.send is not None:
        return DialogueResult(dialogue, "not applicable", got="it is for a client")
    unknown = [name for name in dialogue.server if name not in OPTIONS]
    optional = frozenset(each.partition(" ")[0] for each in dialogue.needs) & _SWITCHABLE
    needs = [each for each in dialogue.needs if each.partition(" ")[0] in ("AUTH", "ETRN", "FUTURERELEASE")]
    if unknown or needs:
        return DialogueResult(dialogue, "not applicable", got=f"needs {', '.join((*unknown, *needs))}")
    options = {name: int(value) for name, value in dialogue.server.items()}
    server = MemoryServer(lmtp=dialogue.lmtp, refuse=dialogue.refuse, extensions=optional, **options)
    player = DialoguePlayer(dialogue)
    player.receive(server.receive(b""))
    sent = 0
    while (action := player.next_action()) is not None:
        if isinstance(action, bytes):
            place = 0 if cut is None else min(max(cut - sent, 0), len(action))
            sent += len(action)
            answer = server.receive(action[:place]) + server.receive(action[place:])
            if answer:
                player.receive(answer)
        elif action is Wait.TLS:
            server.start_tls()
        elif server.is_closed:
            player.receive(b"")
        else:
            player.timed_out()
    assert player.result is not None
    return check_events(player.result, server.events)


def check_events(result: DialogueResult, events: Iterable[str]) -> DialogueResult:
    """Return the result, or a failure if handlers have not seen what the dialogue says."""
    wanted, seen = result.dialogue.events, list(events)
    if wanted is None or result.verdict != "pass" or list(wanted) == seen:
        return result
    differ = next(pair for pair in zip_longest(wanted, seen, fillvalue="none") if pair[0] != pair[1])
    expected, got = (f"the event {each[:300]!r}" for each in differ)
    return DialogueResult(result.dialogue, "fail", 0, expected, got, result.transcript)
