"""The table of faults."""

from __future__ import annotations

from tests.faults.disk import disk
from tests.faults.killed import kill
from tests.faults.run import Fault

_ALL = ("plain", "workers", "gunicorn")

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill", "kill -9 under load, 100 times", "every acknowledged message is found whole; none is torn", kill, _ALL),
        Fault("disk", "the disk is full, read-only, slow, or hangs", "4xx; 250 when it is well again; others are served", disk),
    )
}
