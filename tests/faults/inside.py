"""A plugin of a server: the verb XINSIDE collects garbage, and tells what is alive in the process."""

from __future__ import annotations

import gc
import threading
from collections import Counter

from greenlet import greenlet

from greensmtp import signals
from greensmtp.protocol.command import Command
from greensmtp.session import Session
from greensmtp.session.ack import Ack


@signals.on("command")
def tell(session: Session, command: Command, ack: Ack) -> None:
    """Answer XINSIDE: sessions, greenlets, threads, and all objects that the collector knows."""
    if command.verb != "XINSIDE":
        return
    gc.collect()
    everything = gc.get_objects()
    kinds = Counter(type(each).__name__ for each in everything)
    greenlets = sum(1 for each in everything if issubclass(type(each), greenlet))
    counts = {"sessions": kinds["Session"], "greenlets": greenlets, "threads": threading.active_count()}
    counts["objects"] = len(everything)
    ack.replace(250, " ".join(f"{name}={count}" for name, count in counts.items()))
