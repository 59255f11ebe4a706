"""Chaos: failures on purpose, for tests of programs that send mail."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from socket import SO_LINGER, SOL_SOCKET
from typing import Literal

from greensmtp._suggest import did_you_mean
from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError, ConnectionLost
from greensmtp.middleware._pause import pause
from greensmtp.middleware._validate import check_choice, check_count, check_number, make_refusal
from greensmtp.protocol.command import (
    CONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    PARSERS,
    Command,
)
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.session import Session
from greensmtp.session.interfaces import Body

#: The stage within a body.
BODY = "BODY"

_STAGES = frozenset({CONNECT, END_OF_DATA, BODY}) | KNOWN_BUT_NOT_IMPLEMENTED | frozenset(PARSERS)
#: Stages whose replies have no enhanced status codes (RFC 2034 section 4).
_PLAIN = frozenset({CONNECT, "HELO", "EHLO", "LHLO"})

_REFUSED = Reply(451, "4.3.0 Refused by chaos, for a test")
#: Never sent: the connection is closed before.
_CUT = Reply(421, "4.4.2 Cut by chaos, for a test")


class Chaos:
    """Refuses, delays, or cuts the connection, at a chosen stage and with a chosen probability.

    ``Chaos("RCPT", probability=0.5, seed=1)`` refuses about every second recipient, the same ones in each run.
    ``Chaos("BODY", "cut")`` lets no message end. Several can be stacked; each has its own probability.

    :param stage: a verb (``"CONNECT"`` is before the banner, ``"END-OF-DATA"`` when the body is complete, in LMTP once
        for each recipient), or ``"BODY"``: within a body, after ``octets`` bytes of it.
    :param action: ``"refuse"`` (with ``code``), ``"delay"`` (by ``delay`` seconds, then continue) or ``"cut"`` (close
        without a reply, with a TCP reset if possible). A body cannot be refused before its end; refuse at END-OF-DATA.
    :param probability: from 0 (never) to 1 (always).
    :param seed: makes the decisions the same in each run; None: random.
    :param code: the code of the refusal; None: 451.
    :param message: its text.
    :param delay: seconds.
    :param octets: bytes of a body that pass before the action. A shorter body gets it at its end.
    :raises ValueError: the stage is unknown, or an argument is out of range.
    """

    def __init__(
        self,
        stage: str,
        action: Literal["refuse", "delay", "cut"] = "refuse",
        *,
        probability: float = 1.0,
        seed: int | None = None,
        code: int | None = None,
        message: str | None = None,
        delay: float = 5.0,
        octets: int = 1,
    ) -> None:
        self.stage = _check_stage(stage)
        self.action = check_choice("action", action, ("refuse", "delay", "cut"))
        if self.stage == BODY and action == "refuse":
            raise ValueError('a body cannot be refused before its end; refuse at stage "END-OF-DATA"')
        self.probability = check_number("probability", probability, most=1.0)
        self.seed = seed
        self.delay = check_number("delay", delay)
        self.octets = check_count("octets", octets, least=0)
        self._random = Random(seed)
        refusal = make_refusal(code, message, _REFUSED)
        self._refusal = Reply(refusal.code, *refusal.lines, enhanced=None) if self.stage in _PLAIN else refusal
        #: The commands that pass through here.
        self.verbs = ("DATA", "BDAT") if self.stage == BODY else (self.stage,)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Apply the action, or pass the command on."""
        if self.stage == BODY:
            return self._disturb_body(session, command, proceed)
        if self._random.random() >= self.probability:
            return proceed(session, command)
        if self.action == "refuse":
            return self._refusal
        if self.action == "cut":
            _cut(session)
            return _CUT
        pause(session, self.delay)
        return proceed(session, command)

    def _disturb_body(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        begins = session.state is State.RECIPIENTS and command.error is None
        if not begins or self._random.random() >= self.probability:
            return proceed(session, command)
        with session.wrap_body(lambda body: _DisturbedBody(body, self.octets, lambda: self._act(session))):
            return proceed(session, command)

    def _act(self, session: Session) -> None:
        if self.action == "delay":
            pause(session, self.delay)
            return
        _cut(session)
        raise ConnectionLost("reset")

    def __repr__(self) -> str:
        chance = f"probability={self.probability:g}"
        return f"Chaos({self.stage!r}, {self.action!r}, {chance}{'' if self.seed is None else f', seed={self.seed}'})"


class _DisturbedBody:
    """A body with a callback after so many bytes, called once."""

    def __init__(self, body: Body, octets: int, action: Callable[[], None]) -> None:
        self._body = body
        self._left: int | None = octets
        self._action = action
        #: Read from the body, and not returned yet.
        self._held = b""
        self.complete = False

    def open(self, reply: Reply) -> None:
        """Open the body."""
        self._body.open(reply)

    def read_chunk(self) -> bytes:
        """Return the next chunk, and call the action when its point is reached."""
        chunk, self._held = self._held, b""
        if not chunk:
            chunk = self._body.read_chunk()
        if self._left is not None:
            if len(chunk) > self._left > 0:
                self._held = chunk[self._left :]
                chunk, self._left = chunk[: self._left], 0
                return chunk
            if len(chunk) > self._left or self._body.complete:
                self._left = None
                self._action()
            else:
                self._left -= len(chunk)
        self.complete = self._body.complete
        return chunk


def _cut(session: Session) -> None:
    """Close the connection without a reply. Whatever the server writes after this is lost."""
    try:
        # Linger time 0: closing sends a reset at once.
        session.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        session.socket.close()
    except OSError:
        pass  # the client has closed it already


def _check_stage(stage: str) -> str:
    verb = str(stage).upper()
    if verb in _STAGES:
        return verb
    hint = did_you_mean(verb, _STAGES)
    raise ArgumentError("stage", f"takes a verb, {CONNECT!r}, {END_OF_DATA!r} or {BODY!r}, not {stage!r}{hint}")
