"""Users from an htpasswd file with argon2 and bcrypt hashes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from greensmtp.middleware._validate import check_path
from greensmtp.middleware._watched_file import WatchedFile
from greensmtp.middleware.auth.credentials import Credentials, Unavailable
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
        self._verify = _verifier()
        self._pool = BoundedPool(AT_ONCE)
        try:
            self._file = WatchedFile(Path(check_path("Htpasswd", path)), _read_users)
        except OSError as error:
            raise ValueError(f"htpasswd: cannot read {str(Path(path).absolute())!r}: {error.strerror}") from error
        #: The file contents that have been warned of: for many kinds of hashes, and for one that cannot be computed.
        self._warned_of: _Users | None = None
        self._broken: _Users | None = None
        self._write_log()

    def check_password(self, credentials: Credentials) -> bool:
        """Return whether this is the user's password. Other greenlets run meanwhile."""
        assert credentials.password is not None
        try:
            return self._pool.call(self._check, credentials.username, credentials.password)
        finally:
            self._write_log()

    def _write_log(self) -> None:
        while self._file.problems:
            logger.error("auth: %s: %s", self, self._file.problems.popleft())
        users = self._file.content
        if len(users.stand_ins) > MANY_KINDS and users is not self._warned_of:
            self._warned_of = users
            logger.warning(
                "auth: %s has %d kinds of hashes, and every login computes one of each; rehash the old passwords",
                self,
                len(users.stand_ins),
            )

    # In the thread pool

    def _check(self, username: str, password: str) -> bool:
        """Check one hash of every kind in the file, for known and unknown users alike.

        So each attempt takes equally long. With one hash for each attempt, a quick answer would show that a user has a
        cheap hash, and an unknown user would sometimes take longer than a known one.
        """
        users = self._file.refresh()
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
            if self._broken is not self._file.content:
                self._broken = self._file.content
                self._file.problems.append(str(error))
            return None

    def __repr__(self) -> str:
        return f"Htpasswd({str(self._file.path)!r})"


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
