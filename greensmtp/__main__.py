"""``python -m greensmtp`` and the ``greensmtp`` command: patches first thing, then runs the command line."""

from __future__ import annotations

import errno
import os
import sys

from gevent import monkey


def main() -> None:
    """Run the command line, and exit with its status."""
    _fill_standard_streams()
    # Before anything else is imported: plugins may use blocking libraries, and are to find them cooperative.
    monkey.patch_all()
    try:
        from greensmtp.cli import cli

        cli(prog_name="greensmtp")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        # What could not be written would be tried again at the end, and complained of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"greensmtp: cannot write: {error.strerror}")
    except ModuleNotFoundError as error:
        if (name := (error.name or "").partition(".")[0]) not in ("click", "pydantic", "pythonjsonlogger"):
            raise
        sys.exit(f"greensmtp: the command line needs {name}: pip install 'greensmtp[cli]'")


def _fill_standard_streams() -> None:
    """Where 0, 1 or 2 was closed, the next socket or message file would take its place, and get what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


if __name__ == "__main__":
    main()
