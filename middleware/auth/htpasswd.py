"""Users from an htpasswd file with argon2 and bcrypt hashes."""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gevent.monkey import get_original

from greensmtp.middleware.auth.credentials import Credentials, Unavailable, check_path
from greensmtp.thread_pool import BoundedPool

logger = logging.getLogger("greensmtp")

#: Bytes that the file may have.
MAX_FILE = 16 * 1024 * 1024
#: Hashes computed at once.
AT_ONCE = 4

#: More kinds of hashes than this in one file are logged: every login computes one hash of each kind.
MANY_KINDS = 3

# The group is the kind of the hash: hashes of one kind take equally long.
_BCRYPT = re.compile(r"\$2[aby](\$(?:0[4-9]|[12][0-9]|3[01])\$)[./A-Za-z0-9]{53}")
_ARGON2 = re.compile(r"(\$argon2(?:id|i|d)\$v=[0-9]+\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$)[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")

_STALE = "auth: {} cannot be read again, and the users read before stay in force: {}"

#: Modification time, size and inode: another stamp means that the file has changed.
_Stamp = tuple[int, int, int]


class _Users(NamedTuple):
    """The content of the file."""

    #: name -> kind and hash
    hashes: Mapping[str, tuple[str, str]]
    #: kind -> a hash of that kind that no password matches, and that takes equally long to check
    stand_ins: Mapping[str, str]


class Htpasswd:
    """Users in a file of ``htpasswd -B`` or argon2's tools, with a line ``name:hash`` for each.

    Serves PLAIN and LOGIN; other mechanisms need more than a hash. All work is done in gevent's thread pool. The file
    is read again when it has changed. If it cannot be read then, or is malformed, the users read before stay in force.
    Needs ``greensmtp[passwords]``.

    :param path: the file. Empty lines and lines that begin with ``#`` are skipped.
    :raises ValueError: the file cannot be read, a line is malformed, or a hash is neither argon2 nor bcrypt. The text
        names the line, and shows no hash.
    :raises ImportError: argon2-cffi or bcrypt is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(check_path("Htpasswd", path))
        self._verify = _verifier()
        self._pool = BoundedPool(AT_ONCE)
        # The unpatched lock, for threads of the pool.
        self._reading = get_original("_thread", "allocate_lock")()
        #: The problems that have been logged of this state of the file.
        self._logged: set[str] = set()
        #: Log entries of the thread pool: loggers belong to the thread of the hub.
        self._log: deque[tuple[int, str]] = deque()
        try:
            self._stamp: _Stamp | None = self._stat()
            self._users = self._read()
        except OSError as error:
            raise ValueError(f"htpasswd: cannot read {str(self._path)!r}: {error.strerror}") from error
        self._write_log()

    def check_password(self, credentials: Credentials) -> bool:
        """Return whether this is the user's password. Other greenlets run meanwhile."""
        assert credentials.password is not None
        try:
            return self._pool.call(self._check, credentials.username, credentials.password)
        finally:
            self._write_log()

    def _write_log(self) -> None:
        while self._log:
            logger.log(*self._log.popleft())

    # In the thread pool

    def _check(self, username: str, password: str) -> bool:
        """Check one hash of every kind in the file, for known and unknown users alike.

        So each attempt takes equally long. With one hash for each attempt, a quick answer would show that a user has a
        cheap hash, and an unknown user would sometimes take longer than a known one.
        """
        users = self._current()
        own, hashed = users.hashes.get(username, ("", ""))
        right: bool | None = False
        for kind, stand_in in users.stand_ins.items():
            if kind == own:
                right = self._compute(hashed, password)
            if kind != own or right is None:
                self._compute(stand_in, password)
        return right is True

    def _compute(self, hashed: str, password: str) -> bool | None:
        """Return whether the password matches; None if the hash cannot be computed."""
        try:
            return self._verify(hashed, password)
        except Unavailable as error:
            # Refused like a wrong password: another reply would show that the user exists.
            self._log_once(f"auth: {self}: {error}")
            return None

    def _current(self) -> _Users:
        """Return the users, from the file if it has changed."""
        with self._reading:
            try:
                stamp = self._stat()
                if stamp != self._stamp:
                    self._stamp = stamp  # a malformed file is not read at every login
                    self._users = self._read()
                    self._logged.clear()
            except ValueError as error:
                self._log_once(_STALE.format(self, error))
            except OSError as error:
                self._stamp = None
                self._log_once(_STALE.format(self, error.strerror))
            return self._users

    def _log_once(self, problem: str) -> None:
        if problem not in self._logged:  # not at every login
            self._logged.add(problem)
            self._log.append((logging.ERROR, problem))

    def _read(self) -> _Users:
        users = _read_users(self._path)
        if len(users.stand_ins) > MANY_KINDS:
            text = f"auth: {self} has {len(users.stand_ins)} kinds of hashes, and every login computes one of each"
            self._log.append((logging.WARNING, f"{text}; rehash the old passwords"))
        return users

    def _stat(self) -> _Stamp:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def __repr__(self) -> str:
        return f"Htpasswd({os.fspath(self._path)!r})"


def _read_users(path: Path) -> _Users:
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"htpasswd: {str(path)!r} has more than {MAX_FILE} bytes")
    hashes: dict[str, tuple[str, str]] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            raise ValueError(f"htpasswd: {str(path)!r}, line {number}: not UTF-8") from None
        if not line or line.startswith("#"):
            continue
        name, colon, hashed = line.partition(":")
        if not name or not colon:
            raise ValueError(f"htpasswd: {str(path)!r}, line {number}: expected name:hash")
        match = _BCRYPT.fullmatch(hashed) or _ARGON2.fullmatch(hashed)
        if match is None:
            raise ValueError(f"htpasswd: {str(path)!r}, line {number}: the hash is neither bcrypt nor argon2")
        if name in hashes:
            # Programs differ in which line they use: an old password might stay valid.
            raise ValueError(f"htpasswd: {str(path)!r}, line {number}: second line for {name!r}")
        hashes[name] = match[1], hashed
    stand_ins = {kind: _stand_in(kind) for kind in sorted({kind for kind, _ in hashes.values()})}
    return _Users(hashes, stand_ins)


def _stand_in(kind: str) -> str:
    if kind.startswith("$argon2"):
        return f"{kind}{'A' * 22}${'A' * 43}"  # 16 and 32 bytes of zero
    return f"$2b{kind}{'.' * 53}"


def _verifier() -> Callable[[str, str], bool]:
    """Return ``verify(hash, password)`` for both libraries.

    :raises ModuleNotFoundError: one of them is missing.
    """
    try:
        import bcrypt
        from argon2 import PasswordHasher
        from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"htpasswd files need {error.name}: pip install 'greensmtp[passwords]'", name=error.name
        ) from error
    hasher: Any = PasswordHasher()

    def verify(hashed: str, password: str) -> bool:
        try:
            if hashed.startswith("$2"):
                # bcrypt takes 72 bytes. Programs that make such hashes cut the rest off.
                return bcrypt.checkpw(password.encode()[:72], hashed.encode())
            return bool(hasher.verify(hashed, password))
        except VerifyMismatchError:
            return False
        except (InvalidHashError, VerificationError, ValueError):
            raise Unavailable("a hash in the file cannot be computed") from None

    return verify
