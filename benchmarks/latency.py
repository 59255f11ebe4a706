"""Latency under load: messages come at a fixed rate, whether or not the server keeps up (an open loop).

The time of a message counts from the moment when it was due. So if a server stalls, the result includes the wait of
every message behind it, not only of the first one.
"""

from __future__ import annotations

import selectors
import time
from collections import deque

from benchmarks import load

#: Connections: enough that messages wait for the server, not for a connection.
CONNECTIONS = 32

_STEPS = ((load.MAIL, b"250"), (load.RCPT, b"250"), (load.DATA, b"354"))


class _Sender:
    """A connection in the middle of a message."""

    def __init__(self, client: load.Client, body: bytes) -> None:
        self.client = client
        self._steps = (*_STEPS, (body, b"250"))
        self._step = 0
        self.due = 0.0

    def begin(self, due: float) -> None:
        """Send the first command of a message that was due at this time."""
        self.due = due
        self._step = 0
        self.client.send(self._steps[0][0])

    def go_on(self) -> bool:
        """Read a reply, and send the next command; return True at the end of the message.

        :raises RuntimeError: the reply is not the expected one.
        """
        self.client.replies(self._steps[self._step][1].decode())
        self._step += 1
        if self._step == len(self._steps):
            return True
        self.client.send(self._steps[self._step][0])
        return False


def at_rate(port: int, rate: float, count: int, body: bytes) -> list[float]:
    """Send messages at a rate, in messages per second; return the seconds from when each was due to its reply."""
    taken: list[float] = []
    with load.clients(port, CONNECTIONS) as those, selectors.DefaultSelector() as selector:
        free = deque(_Sender(client, body) for client in those)
        for sender in free:
            selector.register(sender.client, selectors.EVENT_READ, sender)
        began, started = time.perf_counter(), 0
        until = began + load.BUDGET
        while len(taken) < count and time.perf_counter() < until:
            now = time.perf_counter()
            while free and started < count and (due := began + started / rate) <= now:
                started += 1
                free.popleft().begin(due)
            pause = began + started / rate - time.perf_counter() if free and started < count else 1.0
            for key, _ in selector.select(max(0.0, pause)):
                if key.data.go_on():
                    taken.append(time.perf_counter() - key.data.due)
                    free.append(key.data)
    return taken
