"""Whether something could be written to the disk, found out without writing anything."""

from __future__ import annotations

import os
from pathlib import Path


def probe_maildir(path: str) -> None:
    """Could there be a Maildir here?

    :raises ValueError: no; the text says why.
    """
    for folder in (Path(path, name).absolute() for name in ("tmp", "new", "cur")):
        there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
        if not there.is_dir():
            raise ValueError(f"maildir: cannot make {path!r}: {str(there)!r} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"maildir: cannot write to {str(there)!r}")


def probe_log(target: str) -> None:
    """Could there be a log here?

    :raises ValueError: no; the text says why.
    """
    path = Path(target)
    if target == "stderr":
        return
    if path.is_dir():
        raise ValueError(f"target: cannot write to {target!r}: it is a folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"target: cannot write to {target!r}: there is no such folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"target: cannot write to {target!r}")
