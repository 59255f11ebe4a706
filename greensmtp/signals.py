"""The signals of the whole process: their handlers are called for every server; ``server.signals`` has one server's.

The sender is always the :class:`greensmtp.Session`: ``signals.to.connect(handler, sender=session)`` is for one
connection. ``on`` holds its handler: ``@signals.on("to")``, ``signals.on("to", handler)``. ``connect`` is blinker's,
which holds it weakly: a handler to which there is no other reference is collected at once, and never called.
"""

from greensmtp._callables import handler_name
from greensmtp.session.signals import FIELDS, LMTP_RECEIVED, Signal, Signals, shared

__all__ = ["FIELDS", "LMTP_RECEIVED", "Signal", "Signals", "handler_name", "shared"]

on = shared.on
connect: Signal = shared.connect
command: Signal = shared.command
greeting: Signal = shared.greeting
auth: Signal = shared.auth
from_: Signal = shared.from_
to: Signal = shared.to
message: Signal = shared.message
received: Signal = shared.received
reset: Signal = shared.reset
quit: Signal = shared.quit
tls: Signal = shared.tls
disconnect: Signal = shared.disconnect
