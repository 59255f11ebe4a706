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
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.server_protocol import Data, EndOfChunk, Event, Response, ServerProtocol
from greensmtp.testing.dialogue import Dialogue
from greensmtp.testing.dialogue_player import DialoguePlayer, DialogueResult, Wait
from greensmtp.testing.dialogue_text import escape

_PARAMETERS = esmtp.allowed_parameters((*esmtp.STANDARD, esmtp.SUBMITTER))

#: The options of a dialogue that this server has, with their defaults.
OPTIONS = {"max_message_size": 1_000_000, "max_recipients": 100, "max_command": 2048}


class MemoryServer:
    """A server that accepts everything in order: bytes in, bytes out.

    It is as small as a server on ServerProtocol can be: no AUTH, no real TLS, whole bodies in memory. ``events`` is
    what its handlers would have seen.
    """

    def __init__(self, *, lmtp: bool = False, refuse: Iterable[str] = (), **options: int) -> None:
        """
        :param refuse: recipients that are refused with 550.
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
        for extension in esmtp.STANDARD:
            if extension is esmtp.SIZE:
                yield f"SIZE {self._max_size}"
            elif extension is not esmtp.STARTTLS or not self._tls:
                yield extension.keyword

    def _mail(self, address: Address) -> Reply:
        parameters = address.parameters
        refusal = self._check(address, "MAIL")
        if refusal is not None:
            return refusal
        size = parameters.get("SIZE", "0") or ""
        if not size.isascii() or not size.isdigit() or len(size) > 20:
            return Reply(501, "5.5.4 SIZE takes a number of octets")
        if int(size) > self._max_size:
            return canned.TOO_LARGE
        if "BODY" in parameters and (parameters["BODY"] or "").upper() not in esmtp.BODY_TYPES:
            return Reply(501, "5.5.4 BODY takes 7BIT, 8BITMIME or BINARYMIME")
        if parameters.get("SMTPUTF8") is not None:
            return Reply(501, "5.5.4 SMTPUTF8 takes no value")
        if not address.isascii() and "SMTPUTF8" not in parameters:
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
        for keyword in address.parameters:
            if not self._extended or keyword not in _PARAMETERS[verb]:
                return Reply(555, f"5.5.4 Unsupported parameter: {keyword}")
        return None

    def _is_binary(self) -> bool:
        return self._sender is not None and (self._sender.parameters.get("BODY") or "").upper() == "BINARYMIME"

    def _take_message(self) -> Iterable[Reply]:
        body, self._body = self._body, b""
        reply = canned.TOO_LARGE if len(body) > self._max_size else canned.MESSAGE_OK
        if reply is canned.MESSAGE_OK:
            content = body if self._is_binary() else NormalNewlines().feed(body, last=True)
            self.events.append(f"message {escape(content)}")
        return [reply] * (max(self._protocol.recipients, 1) if self._lmtp else 1)


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
    needs = [each for each in dialogue.needs if each.partition(" ")[0] == "AUTH"]
    if unknown or needs:
        return DialogueResult(dialogue, "not applicable", got=f"needs {', '.join((*unknown, *needs))}")
    options = {name: int(value) for name, value in dialogue.server.items()}
    server = MemoryServer(lmtp=dialogue.lmtp, refuse=dialogue.refuse, **options)
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
