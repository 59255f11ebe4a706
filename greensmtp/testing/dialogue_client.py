"""Play the server's side of a dialogue to a client: ServerScript without a socket, and ``replay_client`` to ours."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent import Timeout, sleep, socket, spawn, with_timeout

from greensmtp.client.connect import connect
from greensmtp.errors import ClientError, Refused
from greensmtp.testing.dialogue import Dialogue, Step
from greensmtp.testing.dialogue_player import DialogueResult, Wait
from greensmtp.testing.dialogue_server import check_events
from greensmtp.testing.dialogue_text import escape, glob_start

#: Bytes of one line of a client.
MAX_LINE = 1024 * 1024

#: Seconds that a client may take for any one thing.
TIMEOUT = 10.0

#: Sends the message of a dialogue over a connected gevent socket, and returns the events that it gave.
Send = Callable[[Dialogue, Any], list[str]]


class ServerScript:
    """The server's side of one play.

    ``next_action`` returns bytes to be sent, ``Wait.BYTES``, or None if the play is over; then ``result`` is set.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        if dialogue.send is None:
            raise ValueError("the dialogue tests a server: its header has no send")
        self._dialogue = dialogue
        self._steps = list(reversed(dialogue.steps))
        self._buffer = b""
        self._ended = False
        self._transcript: list[str] = []
        self.result: DialogueResult | None = None

    @property
    def left(self) -> int:
        """The number of steps that are left."""
        return len(self._steps)

    def next_action(self) -> bytes | Wait | None:
        """Return bytes to be sent, or what to wait for; None if the play is over."""
        data = b""
        while self.result is None:
            step = self._steps[-1] if self._steps else None
            if step is not None and step.kind == "send":
                data += step.data
                self._transcript.append(step.source)
                self._steps.pop()
            elif data:
                return data
            elif step is None:
                self.result = DialogueResult(self._dialogue, "pass", transcript=tuple(self._transcript))
            elif step.kind == "hear":
                if not self._hear(step):
                    return Wait.BYTES
            elif not self._buffer and not self._ended:
                return Wait.BYTES
            elif self._buffer:
                self._fail(step, f"C: {_shown(self._buffer)}")
            else:
                self._steps.pop()
        return None

    def receive(self, data: bytes) -> None:
        """Take bytes from the client; ``b""`` is the end of the connection."""
        self._buffer += data
        self._ended = self._ended or not data

    def timed_out(self) -> None:
        """Nothing has come in time."""
        if self._steps:
            self._fail(self._steps[-1], "nothing in time")

    def _hear(self, step: Step) -> bool:
        """Take a line out of the buffer and compare it; return False if it has not come as a whole."""
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            if self._ended or len(self._buffer) > MAX_LINE:
                self._fail(step, "a line of more than a megabyte" if not self._ended else "the end of the connection")
                return True
            return False
        self._buffer = rest
        self._transcript.append(f"C: {_shown(line)}")
        text = line.decode("utf-8", "surrogateescape")
        if "\r" in text or "\n" in text or not _matches(step.pattern.text or "", text):
            self._fail(step, f"C: {_shown(line)}")
        else:
            self._steps.pop()
        return True

    def _fail(self, step: Step, got: str) -> None:
        transcript = tuple(self._transcript)
        self.result = DialogueResult(self._dialogue, "fail", step.line, step.source, got, transcript)


def _matches(pattern: str, text: str) -> bool:
    """Return True if a pattern, in which ``*`` stands for anything, matches a whole line; case does not count."""
    pattern, text = pattern.casefold(), text.casefold()
    start, star, last = pattern.rpartition("*")
    if not star:
        return text == pattern
    return text.endswith(last) and glob_start(start, text[: len(text) - len(last)])


def _shown(data: bytes) -> str:
    return data[:300].decode("utf-8", "backslashreplace").replace("\r", "\\r").replace("\n", "\\n")


def send_with_client(dialogue: Dialogue, sock: Any) -> list[str]:
    """Send the message of a dialogue with greensmtp's client; return the events that it gave."""
    assert dialogue.send is not None
    sender, *recipients = dialogue.send
    try:
        with connect(stream=sock, lmtp=dialogue.lmtp, starttls="never", local_hostname="client.example") as mail:
            try:
                result = mail.send(dialogue.body, sender, recipients)
            except Refused as error:
                return [_raised(error)]  # and QUIT
    except ClientError as error:
        return [_raised(error)]
    refused = (f"refused <{recipient}> {reply}" for recipient, reply in result.refused.items())
    return [escape(event.encode()) for event in (f"sent {result.reply}", *refused)]


def _raised(error: ClientError) -> str:
    return f"raised {type(error).__name__}{'' if error.reply is None else f' {error.reply}'}"


def replay_client(
    dialogue: Dialogue, *, cut: int | None = None, send: Send = send_with_client, timeout: float = TIMEOUT
) -> DialogueResult:
    """Play the server's side of a dialogue to a client, over a socket pair.

    :param cut: send the server's bytes in two pieces, cut at this place.
    :param send: sends the message over a socket, and returns the events; by default with greensmtp's client.
    :param timeout: seconds that the client may take for any one thing.
    :raises gevent.Timeout: the client goes on when the dialogue is over. What else ``send`` raises is raised here.
    """
    script = ServerScript(dialogue)
    ours, theirs = socket.socketpair()
    client = spawn(send, dialogue, theirs)
    try:
        sent = 0
        # One deadline for a whole line, which a client could send byte by byte.
        left, deadline = -1, 0.0
        while (action := script.next_action()) is not None:
            if script.left != left:
                left, deadline = script.left, monotonic() + timeout
            if isinstance(action, bytes):
                place = 0 if cut is None else min(max(cut - sent, 0), len(action))
                sent += len(action)
                _send(ours, action, place, timeout)
                continue
            try:
                data = with_timeout(max(deadline - monotonic(), 0.0), ours.recv, 65536, timeout_value=None)
            except OSError:
                data = b""
            if data is None:
                script.timed_out()
            else:
                script.receive(data)
        ours.close()
        assert script.result is not None
        return script.result if script.result.failed else check_events(script.result, client.get(timeout=timeout))
    finally:
        ours.close()
        client.kill()
        theirs.close()


def _send(sock: Any, data: bytes, place: int, timeout: float) -> None:
    try:
        with Timeout(timeout, TimeoutError()):
            for piece in (data[:place], data[place:]):
                sock.sendall(piece)
                if 0 < place < len(data):
                    sleep(0)  # the client reads the first piece alone
    except OSError:
        pass  # the client has gone; what it has sent is still to be read
