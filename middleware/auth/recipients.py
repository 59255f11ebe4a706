"""The search for open relays: does anything in a server decide which recipients a client may send to?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greensmtp.chain.chain import wanted_verbs
from greensmtp.chain.compose import Composed, When
from greensmtp.signals import shared

if TYPE_CHECKING:
    from greensmtp.chain.chain import StackInfo

#: Middleware of the catalogue that handles MAIL or RCPT, and accepts every recipient (Recorder is Logging).
_WITHOUT_POLICY = frozenset({"Chaos", "EarlyTalker", "Metrics", "RateLimit", "Recorder", "Tarpit"})


def decides_recipients(server: StackInfo) -> bool:
    """Return whether a handler or a middleware may refuse a sender or a recipient.

    What a handler checks cannot be seen from outside, so this finds only servers without any check.
    """
    for signals in (shared, server.signals):
        if signals.to.receivers or signals.from_.receivers or signals.command.receivers:
            return True
    return any(map(_may_refuse, server.stack))


def _may_refuse(middleware: Any) -> bool:
    if isinstance(middleware, Composed | When):
        return any(map(_may_refuse, middleware.members))
    # The class that defines __call__ counts: a subclass may merely add arguments, or a name.
    kind = next((kind for kind in type(middleware).__mro__ if "__call__" in vars(kind)), type(middleware))
    name = kind.__name__ if kind.__module__.startswith("greensmtp.middleware.") else ""
    if name == "Auth":
        return bool(middleware.required)
    if name == "AccessList":  # only listed addresses may connect
        return bool(middleware.otherwise == "deny")
    if name in _WITHOUT_POLICY:
        return False
    verbs = wanted_verbs(middleware)
    return verbs is None or not verbs.isdisjoint({"MAIL", "RCPT"})
