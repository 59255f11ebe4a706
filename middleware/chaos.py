"""Chaos: a server that fails on purpose, for tests of those who send to it."""

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

#: In the midst of a body, which no command marks.
BODY = "BODY"

_STAGES = frozenset({CONNECT, END_OF_DATA, BODY}) | KNOWN_BUT_NOT_IMPLEMENTED | frozenset(PARSERS)
#: Their replies have no enhanced status codes (RFC 2034 section 4).
_PLAIN = frozenset({CONNECT, "HELO", "EHLO", "LHLO"})

_REFUSED = Reply(451, "4.3.0 Refused by chaos, for a test")
#: Never heard: the connection is cut before.
_CUT = Reply(421, "4.4.2 Cut by chaos, for a test")


class Chaos:
    """At a chosen stage, with a chosen probability: refuses, delays, or cuts the connection.

    ``Chaos("RCPT", probability=0.5, seed=1)`` refuses every second recipient or so, the same ones each time that it is
    run; ``Chaos("BODY", "cut")`` never lets a message end. Several can be stacked, each with its own chance.

    :param stage: where: a verb (``"CONNECT"`` is before the banner, ``"END-OF-DATA"`` when the body is complete, in
        LMTP once for each recipient), or ``"BODY"``: in the midst of a body, after ``octets`` of it.
    :param action: ``"refuse"`` (with ``code``), ``"delay"`` (by ``delay`` seconds, then go on), ``"cut"`` (close
        without a word, by a reset where that can be). A body cannot be refused midway: that is what END-OF-DATA is for.
    :param probability: 0, never, to 1, always.
    :param seed: makes its decisions the same in each run; None: they are not.
    :param code, message: the refusal, instead of ``451 4.3.0 ...``.
    :param delay: seconds.
    :param octets: how much of a body may pass before something happens to it; it happens at its end at the latest.
    :raises ValueError: there is no such stage, or an argument is out of range.
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
            raise ValueError('a body cannot be refused midway; refuse at stage "END-OF-DATA"')
        self.probability = check_number("probability", probability, most=1.0)
        self.seed = seed
        self.delay = check_number("delay", delay)
        self.octets = check_count("octets", octets, least=0)
        self._random = Random(seed)
        refusal = make_refusal(code, message, _REFUSED)
        self._refusal = Reply(refusal.code, *refusal.lines, enhanced=None) if self.stage in _PLAIN else refusal
        #: The commands that it wants to see.
        self.verbs = ("DATA", "BDAT") if self.stage == BODY else (self.stage,)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Have it happen, or not."""
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
    """A body that something happens to, once, behind so many octets."""

    def __init__(self, body: Body, octets: int, happen: Callable[[], None]) -> None:
        self._body = body
        self._left: int | None = octets
        self._happen = happen
        #: Read from the body behind, and not handed on.
        self._held = b""
        self.complete = False

    def open(self, reply: Reply) -> None:
        """As the body's."""
        self._body.open(reply)

    def read_chunk(self) -> bytes:
        """As the body's, up to the point where it happens, and on from there."""
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
                self._happen()
            else:
                self._left -= len(chunk)
        self.complete = self._body.complete
        return chunk


def _cut(session: Session) -> None:
    """End the connection with nothing more said: what the server writes from now on has nowhere to go."""
    try:
        # To close at once, whatever is on its way, is a reset.
        session.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        session.socket.close()
    except OSError:
        pass  # the peer was quicker


def _check_stage(stage: str) -> str:
    verb = str(stage).upper()
    if verb in _STAGES:
        return verb
    hint = did_you_mean(verb, _STAGES)
    raise ArgumentError("stage", f"takes a verb, {CONNECT!r}, {END_OF_DATA!r} or {BODY!r}, not {stage!r}{hint}")
