"""The signals of the whole process: their handlers are called for every server; ``server.signals`` has one server's.

The sender is always the :class:`greensmtp.Session`: ``signals.to.connect(handler, sender=session)`` is for one
connection. ``on`` holds its handler: ``@signals.on("to")``, ``signals.on("to", handler)``. ``connect`` is blinker's,
which holds it weakly: a handler to which there is no other reference is collected at once, and never called.
"""

from greensmtp._callables import handler_name
from greensmtp.session.signals import FIELDS, LMTP_RECEIVED, Signal, Signals, shared

__all__ = ["FIELDS", "LMTP_RECEIVED", "Signal", "Signals", "handler_name", "shared"]

on = shared.on
connect = shared.connect
command = shared.command
greeting = shared.greeting
auth = shared.auth
from_ = shared.from_
to = shared.to
message = shared.message
received = shared.received
reset = shared.reset
quit = shared.quit
tls = shared.tls
disconnect = shared.disconnect
