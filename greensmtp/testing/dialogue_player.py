"""Play the client's side of a dialogue, without a socket: actions out, bytes in, a result.

::

    player = DialoguePlayer(dialogue)
    while (action := player.next_action()) is not None:
        if isinstance(action, bytes):
            sock.sendall(action)
        elif action is Wait.TLS:
            ...                               # shake hands
        else:
            player.receive(sock.recv(65536))  # b"" at the end; player.timed_out() if nothing comes
    print(player.result)

The rules of this file:

- A reply is consumed by one step. What comes without being expected is found by the next step that expects something,
  and, behind the last step, by ``finish``.
- All that a server sends is hostile: a reply has at most MAX_REPLY bytes, and one that is malformed ends the play.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from greensmtp.protocol.log_text import printable
from greensmtp.testing.dialogue import Dialogue, Step
from greensmtp.testing.dialogue_text import ReplyPattern

#: Bytes of one reply, and of all that a server may send behind a dialogue's end.
MAX_REPLY = 64 * 1024

#: Characters of what a report shows of one line.
_MAX_SHOWN = 300

_REPLY_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\r\n]*))?")

Verdict = Literal["pass", "fail", "not applicable"]


class Wait(Enum):
    """What the player waits for."""

    #: Bytes, or the end of the connection.
    BYTES = "bytes"
    #: A short time in which nothing should come.
    SILENCE = "silence"
    #: The TLS handshake.
    TLS = "tls"


@dataclass(frozen=True, slots=True)
class DialogueResult:
    """What became of a dialogue."""

    dialogue: Dialogue
    verdict: Verdict
    #: The line of the file that differs; 0 if it is none.
    line: int = 0
    expected: str = ""
    #: What came instead; or why the dialogue does not apply.
    got: str = ""
    #: The conversation, as far as it came: lines that begin with ``C:`` and ``S:``.
    transcript: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """True if the server has not done what the dialogue expects."""
        return self.verdict == "fail"

    def __str__(self) -> str:
        where = f"{self.dialogue.path}:{self.line}" if self.line else self.dialogue.path
        if self.verdict == "pass":
            return f"pass: {self.dialogue.name}"
        if self.verdict == "fail":
            return f"{where}: {self.dialogue.name}: expected {self.expected}, got {self.got}"
        return f"not applicable: {self.dialogue.name} ({self.got})"


class DialoguePlayer:
    """One play of a dialogue."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._at = 0
        self._buffer = b""
        self._ended = False
        self._code = 0
        #: The condition of the step before, and whether it held.
        self._condition: tuple[ReplyPattern | None, bool] = (None, True)
        self._transcript: list[str] = []
        #: The replies so far: code and text.
        self.replies: list[tuple[int, str]] = []
        #: Set when the play is over.
        self.result: DialogueResult | None = None

    def next_action(self) -> bytes | Wait | None:
        """Return bytes to be sent, or what to wait for; None if the play is over."""
        while self.result is None:
            step = self._step()
            if step is None:
                self._finish()
            elif step.kind == "send":
                return self._send()
            elif step.kind == "tls":
                if self._buffer:
                    self._fail(step, "nothing in the clear behind the reply to STARTTLS", self._rest())
                else:
                    self._advance()
                    self._transcript.append("-- TLS --")
                    return Wait.TLS
            elif step.kind == "reply":
                if not self._take_reply(step):
                    return Wait.SILENCE if step.pattern.or_nothing else Wait.BYTES
            elif self._buffer or (self._ended and step.kind == "nothing"):
                self._fail(step, _EXPECTED[step.kind], self._rest())
            elif not self._ended:
                return Wait.SILENCE if step.kind == "nothing" else Wait.BYTES
            else:
                self._transcript.append("S: END")
                self._advance()
        return None

    def receive(self, data: bytes) -> None:
        """Take bytes from the server; ``b""`` is the end of the connection."""
        self._buffer += data
        self._ended = self._ended or not data

    def timed_out(self) -> None:
        """Nothing has come in time, which is what Wait.SILENCE waits for."""
        step = self._step()
        if step is None:
            return
        if step.kind == "nothing":
            self._advance()
        elif step.pattern.or_nothing and not self._buffer:
            self._pass()
        else:
            self._fail(step, _EXPECTED.get(step.kind, step.source), f"nothing in time{self._unread()}")

    def tls_failed(self, why: str) -> None:
        """The handshake that Wait.TLS asked for has failed, which ends the play."""
        step = self._dialogue.steps[self._at - 1]
        if step.pattern.or_end:
            self._transcript.append("S: END")
            self._pass()
        else:
            self._fail(step, "a TLS handshake", why)

    def _step(self) -> Step | None:
        """Return the step at which the play stands; skip those whose condition does not hold."""
        steps = self._dialogue.steps
        while self._at < len(steps):
            step = steps[self._at]
            before, held = self._condition
            if step.condition != before:
                held = step.condition is None or step.condition.matches_code(self._code)
                self._condition = step.condition, held
            if held:
                return step
            self._at += 1
        return None

    def _advance(self) -> None:
        self._at += 1

    def _send(self) -> bytes:
        """Return what all the lines send that follow each other."""
        data = b""
        while (step := self._step()) is not None and step.kind == "send":
            data += step.data
            self._advance()
        lines = data.removesuffix(b"\r\n").split(b"\r\n")
        self._transcript += [f"C: {_shown(line)}" for line in lines[:100]]
        return data

    def _take_reply(self, step: Step) -> bool:
        """Take a reply out of the buffer and compare it; return False if it has not come as a whole."""
        taken = _split_reply(self._buffer)
        if isinstance(taken, str):
            self._fail(step, step.source, taken)
            return True
        if taken is None:
            if not self._ended:
                return False
            if step.pattern.or_end and not self._buffer:
                self._transcript.append("S: END")
                self._pass()
            else:
                self._fail(step, step.source, f"the end of the connection{self._unread()}")
            return True
        code, lines, self._buffer = taken
        text = "\n".join(lines)
        self.replies.append((code, text))
        self._transcript += [
            f"S: {code}{'-' if number < len(lines) else ' '}{_shown(line.encode())}"
            for number, line in enumerate(lines, 1)
        ]
        if not step.pattern.matches(code, text):
            self._fail(step, step.source, f"S: {code} {_shown(text.encode())}".rstrip())
            return True
        self._code = code
        self._advance()
        if code == 421:
            following = self._step()
            if following is None or following.kind != "end":
                self._pass()
        return True

    def _finish(self) -> None:
        """The last step is done: nothing may be left in the buffer."""
        if self._buffer:
            self._fail(None, "nothing behind the last line", self._rest())
        else:
            self._pass()

    def _pass(self) -> None:
        self.result = DialogueResult(self._dialogue, "pass", transcript=tuple(self._transcript))

    def _fail(self, step: Step | None, expected: str, got: str) -> None:
        line = step.line if step else self._dialogue.steps[-1].line
        transcript = tuple(self._transcript)
        self.result = DialogueResult(self._dialogue, "fail", line, expected, got, transcript)

    def _rest(self) -> str:
        return f"S: {_shown(self._buffer.rstrip())}" if self._buffer else "the end of the connection"

    def _unread(self) -> str:
        return f", behind {_shown(self._buffer)}" if self._buffer else ""


_EXPECTED = {"end": "the end of the connection", "nothing": "no reply yet"}


def _split_reply(data: bytes) -> tuple[int, list[str], bytes] | str | None:
    """Return the code and the texts of the first reply, and the bytes behind it.

    None: it has not come as a whole. A str: it is no reply; this is what it is instead.
    """
    lines: list[str] = []
    code = b""
    at = 0
    while (end := data.find(b"\r\n", at, MAX_REPLY)) >= 0:
        match = _REPLY_LINE.fullmatch(data, at, end)
        if match is None:
            return f"what is not a reply: {_shown(data[at:end])}"
        if code and match[1] != code:
            return f"a reply whose code changes: {_shown(data[at:end])}"
        code = match[1]
        lines.append((match[3] or b"").decode("utf-8", "backslashreplace"))
        at = end + 2
        if match[2] != b"-":
            return int(code), lines, data[at:]
    return f"a reply of more than {MAX_REPLY} bytes" if len(data) > MAX_REPLY else None


def _shown(line: bytes) -> str:
    text = printable(line.decode("utf-8", "backslashreplace"))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(line)} bytes)"
