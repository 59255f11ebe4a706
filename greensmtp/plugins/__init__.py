"""Plugins: modules and installed packages that connect handlers to servers."""

from greensmtp.plugins.loader import *  # noqa: F403
