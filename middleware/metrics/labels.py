"""The label values of Metrics. Each label has few, whatever clients send: a value is a time series for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from greensmtp.protocol.command import KNOWN_BUT_NOT_IMPLEMENTED, PARSERS, PSEUDO_COMMANDS

if TYPE_CHECKING:
    from prometheus_client import Counter

#: The label value for everything unknown.
OTHER = "other"

VERBS = frozenset(PARSERS) | KNOWN_BUT_NOT_IMPLEMENTED | PSEUDO_COMMANDS
#: The reasons of ``disconnect``.
ENDS = (
    *(
        "quit",
        "closed",
        "reset",
        "timeout",
        "slow",
        "refused",
        "errors",
        "commands",
        "displaced",
        "foreign",
        "shutdown",
        "tls",
        "error",
    ),
    *("proxy", "xclient"),
    OTHER,
)
TLS_VERSIONS = frozenset({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"})
MECHANISMS = frozenset(
    {
        *("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "GSSAPI", "NTLM"),
        *("SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"),
    }
)
OUTCOMES = ("accepted", "deferred", "refused")

#: Enhanced status codes that have a time series of their own: handlers may use any number of them.
_MAX_ENHANCED = 100

#: Adds one to a counter.
Count = Callable[[], None]


class ReplyCodes(dict[int, Count]):
    """Reply code -> what counts it, for one verb."""

    def __init__(self, commands: Counter, verb: str) -> None:
        self._commands = commands
        self._verb = verb

    def __missing__(self, code: int) -> Count:
        count = self[code] = self._commands.labels(self._verb, str(code)).inc
        return count


class EnhancedCodes(dict[str | None, Count]):
    """Enhanced status code, or None -> what counts it."""

    def __init__(self, refusals: Counter) -> None:
        self._refusals = refusals

    def __missing__(self, enhanced: str | None) -> Count:
        if len(self) >= _MAX_ENHANCED:
            return self._refusals.labels(OTHER).inc
        count = self[enhanced] = self._refusals.labels(enhanced or "none").inc
        return count
