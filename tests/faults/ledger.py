"""Messages that prove themselves: each has a number and a digest, and the ledger knows which were acknowledged."""

from __future__ import annotations

import itertools
import random
import re
from base64 import encodebytes
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

#: Sizes of bodies in bytes, and how often each occurs. The Maildir writes in batches of 256 KB: half of a large message
#: is in a file before the other half has come.
_SIZES, _WEIGHTS = (300, 3_000, 40_000, 600_000), (60, 25, 8, 7)

_FIELDS = re.compile(rb"^X-Number: (\d+)\r\nX-Digest: ([0-9a-f]{64})\r\n\r\n", re.MULTILINE)
_RECEIVED_ID = re.compile(rb"^\s+by \S+ with \S+ id (\S+)", re.MULTILINE)
_QUEUED = re.compile(rb"queued as (\S+)")

#: What bodies are cut from.
_TEXT = encodebytes(random.Random(1).randbytes(600_000)).replace(b"\n", b"\r\n")
_LINE = 78


class Ledger:
    """What was sent, and what became of it."""

    def __init__(self, sizes: tuple[int, ...] = _SIZES) -> None:
        self._numbers = itertools.count(1)
        self._sizes = sizes
        #: Numbers whose outcome the client does not know: the connection ended before the reply.
        self.unknown: list[int] = []
        #: Number -> the IDs under which it was acknowledged.
        self.acknowledged: dict[int, list[str]] = {}
        #: Replies by code, and what else happened.
        self.events: Counter[str] = Counter()
        #: What surprised a client, for the report.
        self.surprises: list[str] = []

    def next_number(self) -> int:
        """Return a number to send: again one of an unknown outcome, or a new one."""
        return self.unknown.pop() if self.unknown else next(self._numbers)

    def message(self, number: int) -> bytes:
        """Return the message of a number, without the dot that ends it. It is the same each time."""
        choice = random.Random(number)
        size = choice.choices(self._sizes, _WEIGHTS[: len(self._sizes)])[0]
        start = _LINE * choice.randrange((len(_TEXT) - size) // _LINE)
        body = _TEXT[start : start + max(1, size // _LINE) * _LINE]
        digest = sha256(body).hexdigest()
        return b"Subject: a fault\r\nX-Number: %d\r\nX-Digest: %s\r\n\r\n" % (number, digest.encode()) + body

    def acknowledge(self, number: int, reply: bytes) -> None:
        """Note that a message was accepted."""
        found = _QUEUED.search(reply)
        self.acknowledged.setdefault(number, []).append(found[1].decode() if found else "")
        self.events["acknowledged"] += 1

    def surprise(self, what: str) -> None:
        """Note what must not happen."""
        self.events["surprises"] += 1
        if len(self.surprises) < 10:
            self.surprises.append(what)


@dataclass
class Audit:
    """What a Maildir holds, compared with a ledger."""

    #: Files in ``new``, and in ``tmp``.
    files: int = 0
    partial: int = 0
    torn: list[str] = field(default_factory=list)
    #: Acknowledged IDs without a whole file.
    lost: list[str] = field(default_factory=list)
    #: Messages that are there more than once, because the client sent them again.
    repeats: int = 0
    #: Files that share an ID with another one, or whose name differs from their Received field.
    confused: list[str] = field(default_factory=list)


def audit(ledger: Ledger, maildir: Path) -> Audit:
    """Read all files of a Maildir, and compare them with what was acknowledged.

    The ID is that of the highest Received field: a relay before this server passes its reply on.
    """
    result = Audit()
    numbers: Counter[int] = Counter()
    found: dict[str, int] = {}
    for path in (maildir / "new").iterdir():
        result.files += 1
        content = path.read_bytes()
        match = _FIELDS.search(content)
        received = _RECEIVED_ID.findall(content)
        if match is None or not received or sha256(content[match.end() :]).hexdigest() != match[2].decode():
            result.torn.append(path.name)
            continue
        queue_id = received[0].decode()
        if queue_id in found or queue_id not in path.name:
            result.confused.append(path.name)
        found[queue_id] = number = int(match[1])
        numbers[number] += 1
    result.repeats = sum(count - 1 for count in numbers.values())
    result.lost = [
        queue_id for number, ids in ledger.acknowledged.items() for queue_id in ids if found.get(queue_id) != number
    ]
    result.partial = sum(1 for _ in (maildir / "tmp").iterdir())
    return result
