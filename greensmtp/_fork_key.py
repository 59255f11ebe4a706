"""A random key that a process shares with those that it forks, if it has imported this module before."""

from __future__ import annotations

from secrets import token_bytes

KEY = token_bytes(32)
