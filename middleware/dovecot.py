"""The documented name of ``greensmtp.middleware.auth.dovecot``."""

from greensmtp.middleware.auth.dovecot import *  # noqa: F403
