"""The library's logger, ``greensmtp``."""

import logging

logger = logging.getLogger("greensmtp")
