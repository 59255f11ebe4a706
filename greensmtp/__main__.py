"""``python -m greensmtp`` and the ``greensmtp`` command: patch the standard library, then run the command line."""

from __future__ import annotations

import errno
import os
import sys

from gevent import monkey


def main() -> None:
    """Run the command line, and exit with its status."""
    _fill_standard_streams()
    # Before anything else is imported, so that blocking libraries in plugins become cooperative. An arbiter waits for
    # signals and processes only, by the system's own functions; its workers patch.
    if not _is_arbiter():
        monkey.patch_all()
    try:
        from greensmtp.cli import cli

        cli(prog_name="greensmtp")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        # Python would try to flush the rest at exit, and print another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"greensmtp: cannot write: {error.strerror}")
    except ModuleNotFoundError as error:
        if (name := (error.name or "").partition(".")[0]) not in (
            "click",
            "pydantic",
            "pythonjsonlogger",
            "rich",
            "tomlkit",
        ):
            raise
        sys.exit(f"greensmtp: the command line needs {name}: pip install 'greensmtp[cli]'")


def _is_arbiter() -> bool:
    """True if ``serve`` has executed this program again to be the arbiter of workers."""
    return os.environ.get("GREENSMTP_ARBITER") == str(os.getpid())


def _fill_standard_streams() -> None:
    """Open /dev/null for closed standard streams.

    Otherwise the next socket or file would get descriptor 0, 1 or 2, and what is printed would go there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


if __name__ == "__main__":
    main()
