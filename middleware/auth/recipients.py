"""Whether anything in a server has a say in which recipients a client may send to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greensmtp.chain.chain import wanted_verbs
from greensmtp.chain.compose import Composed, When
from greensmtp.signals import shared

if TYPE_CHECKING:
    from greensmtp.chain.chain import StackInfo

#: Those of the catalogue that see MAIL or RCPT, and let every recipient pass.
_WITHOUT_POLICY = frozenset({"Chaos", "EarlyTalker", "Logging", "Metrics", "RateLimit", "Tarpit"})


def decides_recipients(server: StackInfo) -> bool:
    """True if there is a handler, or a middleware, that may refuse a sender or a recipient.

    What it looks at cannot be told from outside: this finds servers where nothing looks at anything.
    """
    for signals in (shared, server.signals):
        if signals.to.receivers or signals.from_.receivers or signals.command.receivers:
            return True
    return any(map(_may_refuse, server.stack))


def _may_refuse(middleware: Any) -> bool:
    if isinstance(middleware, Composed | When):
        return any(map(_may_refuse, middleware.members))
    # What decides is the class that handles the commands: a subclass may only have other arguments, or a name.
    kind = next((kind for kind in type(middleware).__mro__ if "__call__" in vars(kind)), type(middleware))
    name = kind.__name__ if kind.__module__.startswith("greensmtp.middleware.") else ""
    if name == "Auth":
        return bool(middleware.required)
    if name == "AccessList":  # with a list of those who may connect, clients are known by their addresses
        return bool(middleware.otherwise == "deny")
    if name in _WITHOUT_POLICY:
        return False
    verbs = wanted_verbs(middleware)
    return verbs is None or not verbs.isdisjoint({"MAIL", "RCPT"})
