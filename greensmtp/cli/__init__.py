"""The ``greensmtp`` command."""

from greensmtp.cli.main import cli

__all__ = ["cli"]
