"""The documented name of ``greensmtp.middleware.auth.credentials``."""

from greensmtp.middleware.auth.credentials import *  # noqa: F403
