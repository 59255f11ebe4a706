"""The documented name of ``greensmtp.middleware.auth.htpasswd``."""

from greensmtp.middleware.auth.htpasswd import *  # noqa: F403
