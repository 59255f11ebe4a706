"""The folder of a spool: messages that wait for their next hop, and their states.

    tmp/        files that are being written
    new/        a message each: one line of JSON, its envelope; then the message
    state/      a file for each message that was tried, held or changed: JSON
    dead/       dead letters, with their states
    wake        touched by ``greensmtp spool``, so that servers scan the folder again

Rules of this file:

- A message exists exactly as long as its file is in ``new/``. Files are flushed before they get their names, and a
  state is replaced as a whole. So a process may be killed at any moment.
- A process locks a message's file (``flock``) while it works on it. The kernel releases the lock when the process
  ends, so a lock is never stale. Several processes on one machine may use one folder.
- All functions wait for the disk: call them in a native thread.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from greensmtp.delivery._disk import flush_folder
from greensmtp.protocol.address import Address

logger = logging.getLogger("greensmtp")

#: Maximum length in bytes of the line with the envelope: a thousand recipients with long addresses.
MAX_ENVELOPE = 4 * 1024 * 1024

#: Seconds after which an unfinished file belongs to a dead process.
STALE = 36 * 3600

#: Bytes of a message that is read at once.
_SMALL = 256 * 1024

_NAME = re.compile(r"[0-9a-f]+-[0-9a-f]{6}-[0-9a-f]+(?:_[0-9]+)?")


class Busy(Exception):
    """Another process or greenlet has locked the message."""


class Gone(Exception):
    """The message no longer exists."""


@dataclass
class State:
    """The state of a message. Times are seconds since 1970."""

    #: Number of attempts.
    attempts: int = 0
    #: Time of the next attempt.
    due: float = 0.0
    #: True: it is not sent until it is released.
    held: bool = False
    #: Recipient -> the last reply as ``code text``.
    replies: dict[str, str] = field(default_factory=dict)
    #: Recipients that are delivered, have failed, or were refused when the message arrived.
    done: list[str] = field(default_factory=list)
    #: Those of them that have failed without a report.
    lost: list[str] = field(default_factory=list)
    #: Recipients whose delay was reported to the sender.
    delayed: list[str] = field(default_factory=list)


#: The types of the fields in a state's file.
_KEYS: dict[str, Any] = {
    "attempts": int,
    "due": (int, float),
    "held": bool,
    "replies": dict,
    "done": list,
    "lost": list,
    "delayed": list,
}


class Folder:
    """Manage the messages of a spool's folder.

    :raises OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Create the missing folders."""
        for name in ("tmp", "new", "cur", "state", "dead"):
            (self.path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        flush_folder(self.path)

    def sweep(self, now: float) -> None:
        """Remove files that killed processes have left: files in ``tmp``, and states without a message.

        :param now: seconds since 1970. Files younger than 36 hours stay.
        """
        messages = set(self.names())
        for within in ("tmp", "state"):
            for entry in os.scandir(self.path / within):
                with suppress(OSError):  # not created by the spool: a folder, for example
                    if entry.name not in messages and entry.stat().st_mtime < now - STALE:
                        Path(entry.path).unlink()

    def names(self, within: str = "new") -> list[str]:
        """Return the names of the messages, the oldest first: names begin with the time."""
        return sorted(entry.name for entry in os.scandir(self.path / within) if _NAME.fullmatch(entry.name))

    def open(self, name: str, within: str = "new") -> Entry:
        """Open and lock a message.

        :param within: ``new``, or ``dead`` for a dead letter.
        :raises Busy: the message is locked.
        :raises Gone: the message does not exist.
        :raises ValueError: the file is not a message of a spool.
        """
        path = self.path / within / name
        if not _NAME.fullmatch(name):
            raise Gone(name)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise Gone(name) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_same(file, path):
                raise Gone(name)
            return Entry(self, name, file, within)
        except BlockingIOError:
            file.close()
            raise Busy(name) from None
        except BaseException:
            file.close()
            raise

    def state_path(self, name: str, within: str = "new") -> Path:
        """Return the file of a message's state."""
        return self.path / "dead" / f"{name}.state" if within == "dead" else self.path / "state" / name

    def state(self, name: str) -> State:
        """Return the state of a message, whether or not it is locked."""
        return _read_state(self.path / "state" / name)

    def write_state(self, name: str, state: State, target: Path | None = None) -> None:
        """Replace the state of a message, which must be locked, or not yet in ``new/``.

        :param target: the file of the state; None: the one in ``state/``.
        """
        target = self.path / "state" / name if target is None else target
        partial = self.path / "tmp" / f"{name}.state"
        with partial.open("wb") as file:
            file.write(json.dumps(asdict(state)).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        flush_folder(target.parent)

    def add(self, name: str, envelope: Mapping[str, Any], content: bytes) -> None:
        """Add a message, durably. One that has the same name is replaced."""
        partial = self.path / "tmp" / f"{name}.{uuid4().hex}"
        with partial.open("xb") as file:
            file.write(envelope_line(envelope) + content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / "new" / name)
        flush_folder(self.path / "new")

    def wake(self) -> None:
        """Ask the processes that serve this folder to scan it again."""
        (self.path / "wake").touch()

    def woken(self) -> float:
        """Return the time of the last ``wake``."""
        try:
            return (self.path / "wake").stat().st_mtime
        except FileNotFoundError:
            return 0.0


class Entry:
    """A message, locked until it is closed."""

    def __init__(self, folder: Folder, name: str, file: BinaryIO, within: str = "new") -> None:
        self._folder = folder
        self._path = folder.path / within / name
        self._state_path = folder.state_path(name, within)
        self.name = name
        self._file = file
        line = file.readline(MAX_ENVELOPE)
        try:
            self.envelope: dict[str, Any] = json.loads(line)
            self.sender = _address(self.envelope["from"], self.envelope["from_ext"])
            self.recipients = [_address(text, ext) for text, ext in self.envelope["to"]]
            if not isinstance(self.envelope.get("time", 0.0), int | float):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{name}: not a message of a spool") from None
        self._begin = len(line)
        #: The message, if it is small: then nothing more is read.
        self._content = file.read(_SMALL + 1) if self.size <= _SMALL else None
        self.state = _read_state(self._state_path)

    @property
    def log_id(self) -> str:
        """The ID for the log, as in the reply ``queued as ID``."""
        return self.name

    @property
    def arrived(self) -> float:
        """The time of arrival, in seconds since 1970."""
        return float(self.envelope.get("time", 0.0))

    @property
    def waiting(self) -> list[Address]:
        """The recipients that are not done."""
        done = set(self.state.done)
        return [each for each in self.recipients if each not in done]

    @property
    def size(self) -> int:
        """The bytes of the message."""
        return os.fstat(self._file.fileno()).st_size - self._begin

    def source(self) -> BinaryIO:
        """Return the message as a new file, at its beginning. May be called in the hub, since it reads nothing."""
        if self._content is not None:
            return io.BytesIO(self._content)
        file = os.fdopen(os.dup(self._file.fileno()), "rb")
        file.seek(self._begin)  # they share their position, but ``read`` needs none
        return file

    def read(self, position: int, size: int) -> bytes:
        """Return bytes of the message."""
        return os.pread(self._file.fileno(), size, self._begin + position)

    def save(self, without: Sequence[str] = ()) -> None:
        """Replace the state.

        :param without: recipients to leave out of ``done``, since their report is still to be written.
        """
        state = self.state
        if without:
            state = replace(state, done=[each for each in state.done if each not in without])
        self._folder.write_state(self.name, state)

    def remove(self) -> None:
        """Remove the finished message."""
        self._path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    def revive(self) -> None:
        """Move a dead letter back to the waiting messages, for the recipients that have failed."""
        lost = set(self.state.lost)
        self.state = replace(
            self.state, attempts=0, due=0.0, lost=[], done=[each for each in self.state.done if each not in lost]
        )
        self.save()  # first, so that recipients in ``done`` do not get it again
        new = self._folder.path / "new"
        self._path.replace(new / self.name)
        flush_folder(new)
        self._state_path.unlink(missing_ok=True)

    def bury(self) -> None:
        """Move the message to the dead letters.

        It has a state at every moment, so recipients in ``done`` never get it again.
        """
        self.save()
        dead = self._folder.path / "dead"
        self._folder.write_state(self.name, self.state, dead / f"{self.name}.state")
        (self._folder.path / "new" / self.name).replace(dead / self.name)
        flush_folder(dead)
        (self._folder.path / "state" / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock."""
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_message(folder: Folder, within: str, name: str) -> tuple[dict[str, Any], int, Path]:
    """Return a message's envelope for display, its offset in its file, and the file. It need not be locked.

    :raises FileNotFoundError: the message does not exist.
    :raises ValueError: the file is not a message of a spool.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected the ID of a message; got {name!r}")
    path = folder.path / within / name
    with path.open("rb") as file:
        line = file.readline(MAX_ENVELOPE)
        size = os.fstat(file.fileno()).st_size - len(line)
    try:
        envelope = json.loads(line)
        about = {"time": float(envelope["time"]), "from": str(envelope["from"])}
        to = [str(text) for text, _ in envelope["to"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("not a message of a spool") from None
    state = _read_state(folder.state_path(name, within))
    known = {"id": name, "time": about["time"], "size": size, "from": about["from"], "to": to}
    waiting = [each for each in to if each not in state.done]
    return known | {"waiting": waiting} | asdict(state), len(line), path


def _read_state(path: Path) -> State:
    """Return the state of a message, or a new state if the file is missing. Unknown keys are ignored."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return State()
    try:
        read = {name: value for name, value in json.loads(content).items() if name in _KEYS}
        new = State()
        if all(isinstance(value, _KEYS[name]) for name, value in read.items()):
            return replace(new, **read)
    except (ValueError, AttributeError, RecursionError):
        pass
    logger.error("spool: state file %s is damaged; treating the message as new, so recipients may get it twice", path)
    return State()


def arrival(name: str) -> float:
    """Return the time of arrival of a message, in seconds since 1970. IDs begin with it, in microseconds."""
    return int(name.partition("-")[0], 16) / 1e6


def envelope_line(envelope: Mapping[str, Any]) -> bytes:
    """Return the first line of a message's file."""
    return json.dumps(envelope, separators=(",", ":")).encode() + b"\n"


def describe(sender: Address, recipients: Iterator[Address] | list[Address]) -> dict[str, Any]:
    """Return the envelope of a message."""
    return {
        "time": time.time(),
        "from": str(sender),
        "from_ext": dict(sender.parameters),
        "to": [[str(each), dict(each.parameters)] for each in recipients],
    }


def _address(text: str, parameters: Mapping[str, str | None]) -> Address:
    # Not parsed again: the server may have been more lenient than the parser's default.
    parameters = {**parameters}  # raises TypeError if it is not a mapping
    local_part, at, domain = text.rpartition("@")
    return Address(text, local_part if at else domain, domain if at else "", parameters)


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
