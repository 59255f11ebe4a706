"""An htpasswd file: users and hashes of their passwords, argon2 and bcrypt."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gevent.monkey import get_original

from greensmtp.middleware.auth.credentials import Credentials, Unavailable, check_path
from greensmtp.thread_pool import BoundedPool

logger = logging.getLogger("greensmtp")

#: Octets that the file may have.
MAX_FILE = 16 * 1024 * 1024
#: Hashes computed at once.
AT_ONCE = 4

#: Kinds of hashes in one file beyond which the log says that every login computes that many.
MANY_KINDS = 3

# The group is the kind of the hash, which tells how long it takes.
_BCRYPT = re.compile(r"\$2[aby](\$(?:0[4-9]|[12][0-9]|3[01])\$)[./A-Za-z0-9]{53}")
_ARGON2 = re.compile(r"(\$argon2(?:id|i|d)\$v=[0-9]+\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$)[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")

_STALE = "auth: %s has changed, and what it had before counts: %s"

#: What tells one state of the file from another.
_Stamp = tuple[int, int, int]


class _Users(NamedTuple):
    """What was read."""

    #: Name -> kind and hash.
    hashes: Mapping[str, tuple[str, str]]
    #: Each kind of hash in the file -> a hash of that kind which is nobody's, and takes equally long to check.
    stand_ins: Mapping[str, str]


class Htpasswd:
    """Users in a file, as ``htpasswd -B`` and argon2's tools make it: a line ``name:hash`` for each.

    For PLAIN and LOGIN: hashes are of no use for others. All of the work is done in gevent's thread pool. The file
    is read again when it has changed; while what is there cannot be read, or is malformed, what was there before
    counts. Needs ``greensmtp[passwords]``.

    :param path: of the file; lines that are empty or begin with ``#`` are skipped.
    :raises ValueError: it cannot be read, or has a line that is malformed, or a hash that is neither argon2 nor bcrypt;
        the text names the line, and shows no hash.
    :raises ImportError: argon2-cffi or bcrypt is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(check_path("Htpasswd", path))
        self._verify = _verifier()
        self._pool = BoundedPool(AT_ONCE)
        #: For threads of the pool, and so the real one, in a patched process too.
        self._reading = get_original("_thread", "allocate_lock")()
        try:
            self._stamp: _Stamp | None = self._look()
            self._users = _read(self._path)
            #: What has been logged about this state of the file.
            self._told: set[str] = set()
        except OSError as error:
            raise ValueError(f"htpasswd: cannot read {str(self._path)!r}: {error.strerror}") from error

    def check_password(self, credentials: Credentials) -> bool:
        """Is this his password? Other greenlets go on meanwhile."""
        assert credentials.password is not None
        return self._pool.call(self._check, credentials.username, credentials.password)

    # In the thread pool

    def _check(self, username: str, password: str) -> bool:
        """Check one hash of every kind that the file has, whichever user it is and whether there is such a user.

        So each attempt takes equally long. With one hash for each attempt, a quick answer would tell of a user with a
        cheap hash, and an unknown user would sometimes be slower than a known one.
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
        """None: it cannot be computed."""
        try:
            return self._verify(hashed, password)
        except Unavailable as error:
            # Refused like a wrong password: another reply would tell that there is such a user.
            self._complain("auth: %s: %s", str(error))
            return None

    def _current(self) -> _Users:
        """The users, as the file has them now."""
        with self._reading:
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    self._stamp = stamp  # once, whatever is in it
                    self._users = _read(self._path)
                    self._told.clear()
            except ValueError as error:
                self._complain(_STALE, str(error))
            except OSError as error:
                self._stamp = None
                self._complain(_STALE, str(error.strerror))
            return self._users

    def _complain(self, text: str, trouble: str) -> None:
        if trouble not in self._told:  # once, not at every login
            self._told.add(trouble)
            logger.error(text, self, trouble)

    def _look(self) -> _Stamp:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def __repr__(self) -> str:
        return f"Htpasswd({os.fspath(self._path)!r})"


def _read(path: Path) -> _Users:
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"htpasswd: {str(path)!r} has more than {MAX_FILE} octets")
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
            raise ValueError(f"htpasswd: {str(path)!r}, line {number}: a line is name:hash")
        match = _BCRYPT.fullmatch(hashed) or _ARGON2.fullmatch(hashed)
        if match is None:
            raise ValueError(f"htpasswd: {str(path)!r}, line {number}: the hash is neither bcrypt nor argon2")
        if name in hashes:
            # Which of them counts, programs do not agree about: an old password might live on.
            raise ValueError(f"htpasswd: {str(path)!r}, line {number}: {name!r} is there already")
        hashes[name] = match[1], hashed
    stand_ins = {kind: _stand_in(kind) for kind in sorted({kind for kind, _ in hashes.values()})}
    if len(stand_ins) > MANY_KINDS:
        logger.warning(
            "auth: %r has %d kinds of hashes, and every login computes one of each; rehash the old passwords",
            str(path),
            len(stand_ins),
        )
    return _Users(hashes, stand_ins)


def _stand_in(kind: str) -> str:
    if kind.startswith("$argon2"):
        return f"{kind}{'A' * 22}${'A' * 43}"  # 16 and 32 octets of zero
    return f"$2b{kind}{'.' * 53}"


def _verifier() -> Callable[[str, str], bool]:
    """``verify(hash, password)``, for both kinds."""
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
                # bcrypt looks at 72 octets; htpasswd cuts off what is more, as all have done.
                return bcrypt.checkpw(password.encode()[:72], hashed.encode())
            return bool(hasher.verify(hashed, password))
        except VerifyMismatchError:
            return False
        except (InvalidHashError, VerificationError, ValueError):
            raise Unavailable("a hash in the file cannot be computed") from None

    return verify
