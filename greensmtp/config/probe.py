"""Check, without writing anything, that a Maildir, a log or a unix socket can be created."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from greensmtp.log_writer import STREAMS


def probe_maildir(path: str) -> None:
    """Check that a Maildir can be created here.

    :raises ValueError: it cannot; the text says why.
    """
    for folder in (Path(path, name).absolute() for name in ("tmp", "new", "cur")):
        there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
        _check_names(folder, there, f"cannot make {path!r}")
        if not there.is_dir():
            raise ValueError(f"cannot make {path!r}: {str(there)!r} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"cannot write to {str(there)!r}")


def probe_special_log(target: str) -> None:
    """Check that a log is not a pipe or a socket: opening it would wait for a reader, or fail.

    :raises ValueError: it is one.
    """
    try:
        mode = Path(target).stat().st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        raise ValueError(f"cannot write to {target!r}: it is a pipe or a socket, not a file")


def probe_socket(path: str) -> None:
    """Check that a unix socket can be created here; a stale one will be replaced.

    :raises ValueError: it cannot; the text says why.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        what = "not a folder" if os.path.lexists(folder) else "no such folder"
        raise ValueError(f"cannot listen on {path!r}: {str(folder)!r}: {what}")
    _check_names(Path(path), folder, f"cannot listen on {path!r}")
    if os.path.lexists(path) and not Path(path).is_socket():
        raise ValueError(f"cannot listen on {path!r}: it exists and is not a socket")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"cannot listen on {path!r}: cannot write to {str(folder)!r}")


def _check_names(path: Path, there: Path, what: str) -> None:
    """Check the length of the path and of its parts.

    :param there: the part of the path that exists.
    :raises ValueError: the path or a name is longer than the file system allows.
    """
    longest, whole = os.pathconf(there, "PC_NAME_MAX"), os.pathconf(there, "PC_PATH_MAX")
    if len(os.fsencode(path)) >= whole or any(len(os.fsencode(part)) > longest for part in path.parts):
        raise ValueError(f"{what}: File name too long")


def probe_log(target: str) -> None:
    """Check that a log can be written here.

    :raises ValueError: it cannot; the text says why.
    """
    path = Path(target)
    if target in STREAMS:
        return
    probe_special_log(target)
    if path.is_dir():
        raise ValueError(f"cannot write to {target!r}: it is a folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write to {target!r}: the folder does not exist")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"cannot write to {target!r}")
