"""The folder of control sockets: one socket for each process, ``greensmtp-PID.sock``.

A server creates its socket in the first folder that it can use, and `greensmtp top` and `greensmtp trace` search all of
them. A socket that a killed process has left is skipped and removed.
"""

from __future__ import annotations

import os
import re
import socket as native
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

#: The folder of services that root starts.
SYSTEM_FOLDER = Path("/run/greensmtp")

_NAME = re.compile(r"greensmtp-(\d+)\.sock")

#: Maximum length in bytes of a name, and of the path of a unix socket (``sockaddr_un``; less on BSD and macOS).
_LONGEST_NAME = len("/greensmtp-4194304.sock")
_LONGEST_PATH = 103


def default_folders(uid: int) -> Iterator[Path]:
    """Yield the default folders; a server uses the first that it can use.

    They are systemd's ``RuntimeDirectory``; ``/run/greensmtp`` if root starts the server, with the number of the user
    that it becomes; the user's runtime folder; a folder for temporary files.

    :param uid: the user that the process will run as.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given.startswith("/"):
        yield Path(given)
    if os.geteuid() == 0:
        yield SYSTEM_FOLDER.with_name(f"{SYSTEM_FOLDER.name}-{uid}") if uid else SYSTEM_FOLDER
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if own.startswith("/"):
        yield Path(own, "greensmtp")
    yield Path(tempfile.gettempdir(), f"greensmtp-{uid}")


def folders_to_search() -> list[Path]:
    """Return the folders in which servers of this user may have sockets; for root, also of users that it has started.

    (Folders that any user could create are left out, since their sockets may belong to other programs.)
    """
    uid = os.geteuid()
    of_users = SYSTEM_FOLDER.parent.glob(f"{SYSTEM_FOLDER.name}-{'*' if uid == 0 else uid}")
    return [*dict.fromkeys([*default_folders(uid), SYSTEM_FOLDER, *sorted(of_users)])]


def check_length(folder: str) -> str:
    """Return the folder, after checking that the paths of its sockets are short enough.

    :raises ValueError: it is too long.
    """
    if len(os.fsencode(folder)) > _LONGEST_PATH - _LONGEST_NAME:
        raise ValueError(f"expected a folder of at most {_LONGEST_PATH - _LONGEST_NAME} bytes, got {folder!r}")
    return folder


def prepare_folder(folder: Path, owner: tuple[int, int] | None = None) -> None:
    """Create a folder for sockets if it is missing; refuse one in which other users could replace them.

    :param owner: user and group that the process will run as; None: the current ones.
    :raises OSError: it cannot be created, is a link, or other users may write to it.
    :raises ValueError: its path is too long.
    """
    check_length(str(folder))
    uid = os.geteuid() if owner is None else owner[0]
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        pass
    else:
        if owner is not None:
            os.chown(folder, *owner)
    found = folder.lstat()  # not stat: the target of a link may change
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError("it is no folder")
    if found.st_uid != uid or found.st_mode & 0o022:
        raise PermissionError(
            f"expected a folder of user {uid} that no other user may write to; it belongs to user {found.st_uid}, and "
            f"has mode {stat.S_IMODE(found.st_mode):04o}"
        )


def socket_path(folder: Path, pid: int) -> Path:
    """Return the path of a process's socket."""
    return folder / f"greensmtp-{pid}.sock"


def connect_each(folders: Iterable[Path], known: Collection[int] = ()) -> Iterator[tuple[int, native.socket]]:
    """Connect to each process that has a socket in these folders, and yield its ID and the connection.

    :param known: processes to skip.
    :raises PermissionError: a socket belongs to another user, and none can be connected to.
    """
    denied: Path | None = None
    found = False
    for path in [path for folder in folders for path in sorted(_listing(folder))]:
        pid = _pid_of(path)
        if pid in known:
            found = True
            continue
        connection = native.socket(native.AF_UNIX)
        connection.settimeout(5.0)
        try:
            connection.connect(str(path))
        except PermissionError:
            denied = path
        except OSError:
            remove_stale(path, pid)
        else:
            found = True
            yield pid, connection
            continue
        connection.close()
    if denied is not None and not found:
        raise PermissionError(f"{str(denied)!r} belongs to another user; try again as that user, or as root")


def _listing(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []


def remove_stale(path: Path, pid: int) -> None:
    """Remove a socket on which no process listens, if its process no longer exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        try:
            path.unlink()
        except OSError:
            pass  # gone, or owned by another user
    except (OSError, OverflowError):
        pass  # it runs as another user


def is_served(path: Path) -> bool:
    """Return True if a process listens on a socket, perhaps in another container, where process IDs differ."""
    with native.socket(native.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # its listen queue is full
        except OSError:
            return False
        return True


def remove_all_stale(folder: Path) -> None:
    """Remove the sockets of processes that no longer exist."""
    for path in _listing(folder):
        if not is_served(path):
            remove_stale(path, _pid_of(path))


def _pid_of(path: Path) -> int:
    return int(path.name.removeprefix("greensmtp-").removesuffix(".sock"))
