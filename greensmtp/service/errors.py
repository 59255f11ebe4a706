"""The error of a service that cannot start."""

from __future__ import annotations

from greensmtp.errors import GreenSMTPError


class StartError(GreenSMTPError):
    """The service cannot start; the text says why, in one line."""
