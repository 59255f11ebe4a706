"""``python -m greensmtp`` and the ``greensmtp`` command: patches first thing, then runs the command line."""

from __future__ import annotations

import sys

from gevent import monkey


def main() -> None:
    """Run the command line, and exit with its status."""
    # Before anything else is imported: plugins may use blocking libraries, and are to find them cooperative.
    monkey.patch_all()
    try:
        from greensmtp.cli import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "pythonjsonlogger"):
            raise
        sys.exit(f"greensmtp: the command line needs {error.name}: pip install 'greensmtp[cli]'")
    cli(prog_name="greensmtp")


if __name__ == "__main__":
    main()
